"""kill -9 of the daemon in the midst of continual saving: the file is always a good one."""

from __future__ import annotations

import contextlib
import json
import random
import threading

import pytest

from support import PATIENCE, Daemon, left_by, wait_until

PADDING = "x" * 2000  # makes a save long enough to be hit in each of its steps


class Writer(threading.Thread):
    """Sets growing numbers and saves, without pause, whatever becomes of the daemon.

    `saved` is the number that the last acknowledged save() held, `acknowledged` the last one that
    was set, `attempted` the last one that was asked to be set.
    """

    def __init__(self, daemon):
        super().__init__()
        self.db = daemon.client()
        self.saved = self.acknowledged = self.attempted = 0
        self.over = threading.Event()

    def run(self):
        while not self.over.is_set():
            self.attempted += 1
            self.db.set_many({"n": self.attempted, "twin": self.attempted, "p": PADDING})
            self.acknowledged = self.attempted
            self.db.save()
            self.saved = self.attempted
        self.db.close()


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(n, marks=pytest.mark.long) for n in (2, 3, 4))]
)
def test_after_kill_9_the_file_parses_and_holds_at_least_the_last_acknowledged_save(location, seed):
    """10 moments in each of 5 tests: 50 in all, of which the default run has 20."""
    moments = random.Random(seed)
    location.write_text(json.dumps({"n": 0, "twin": 0} | {f"k{n}": PADDING for n in range(500)}))
    daemon = Daemon(location)
    writer = Writer(daemon)
    writer.start()
    try:
        for _ in range(10):
            target = writer.saved + moments.randrange(1, 15)
            wait_until(lambda target=target: writer.saved >= target, "saves")
            # a moment between two acknowledgements, anywhere in a save or between two
            threading.Event().wait(moments.random() * 0.02)
            daemon.kill()
            saved, acknowledged = writer.saved, writer.acknowledged
            content = json.loads(location.read_bytes())
            assert len(content) == 503
            assert content["n"] == content["twin"], "half of an all-or-nothing write"
            assert saved <= content["n"] <= writer.attempted
            daemon = Daemon(location)  # the writer goes on there, and is told of nothing
            with contextlib.closing(daemon.client()) as db:
                assert db["n"] >= acknowledged
    finally:
        writer.over.set()
        writer.join(PATIENCE)
    assert not writer.is_alive()
    assert writer.saved == writer.attempted
    daemon.check_and_stop()
    assert left_by(location) == ["my.db"]  # what killed saves left has been swept
