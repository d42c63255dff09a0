"""kill -9 of the daemon in the midst of continual saving: the file is always a good one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading

import pytest

from pickledbd_client import Unavailable
from support import Daemon, wait_until

PADDING = "x" * 2000  # makes a save long enough to be hit in each of its steps


class Writer(threading.Thread):
    """Sets growing numbers and saves, without pause, until the daemon is gone.

    `saved` is the number that the last acknowledged save() held, `attempted` the last one that
    was asked to be set.
    """

    def __init__(self, daemon, start):
        super().__init__()
        self.db = daemon.client()
        self.saved = start
        self.attempted = start

    def run(self):
        with contextlib.suppress(Unavailable):
            while True:
                self.attempted += 1
                self.db.set_many({"n": self.attempted, "twin": self.attempted, "p": PADDING})
                self.db.save()
                self.saved = self.attempted
        self.db.close()


@pytest.mark.parametrize("seed", range(5))
def test_after_kill_9_the_file_parses_and_holds_at_least_the_last_acknowledged_save(location, seed):
    """10 moments in each of 5 tests: 50 in all."""
    moments = random.Random(seed)
    number = 0
    location.write_text(json.dumps({"n": 0, "twin": 0} | {f"k{n}": PADDING for n in range(500)}))
    for _ in range(10):
        daemon = Daemon(location)
        writer = Writer(daemon, number)
        writer.start()
        target = number + moments.randrange(1, 15)
        wait_until(lambda writer=writer, target=target: writer.saved >= target, "saves")
        # a moment between two acknowledgements, anywhere in a save or between two
        threading.Event().wait(moments.random() * 0.02)
        daemon.kill()
        writer.join()
        content = json.loads(location.read_bytes())
        assert len(content) == 503
        assert content["n"] == content["twin"], "half of an all-or-nothing write"
        assert writer.saved <= content["n"] <= writer.attempted
        number = content["n"]
    daemon = Daemon(location)
    daemon.check_and_stop()
    assert os.listdir(location.parent) == ["my.db"]  # what killed saves left has been swept
