"""Many who want one lock: in order, without using the processor, and whoever dies with it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

import locking
from support import PATIENCE, Daemon, seeded, wait_until


class Process:
    """One of locking.py; what it says is read as it comes."""

    def __init__(self, *args):
        self.process = subprocess.Popen(
            [sys.executable, locking.__file__, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        self.said = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        self.said.extend(line.split() for line in self.process.stdout if line.endswith("\n"))

    def tell(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def end(self):
        """Wait for it to end by itself; whether it ended well."""
        self.process.stdin.close()
        return self._ended() == 0

    def kill(self):
        self.process.kill()
        self.process.stdin.close()
        self._ended()

    def _ended(self):
        status = self.process.wait(PATIENCE)
        self.reader.join(PATIENCE)
        self.process.stdout.close()
        return status


def cpu_seconds(pid):
    """How long a process with all its threads has run so far."""
    told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux")
@pytest.mark.parametrize("each", [25, pytest.param(250, marks=pytest.mark.long)])
def test_a_crowd_waits_without_using_the_processor_and_is_served_in_order(location, each):
    """Of four processes, two with threads and two with tasks."""
    seconds = 3.0
    daemon = Daemon(location)
    crowd = [Process("wait", location, kind) for kind in ("threads", "tasks") * 2]
    try:
        for process in crowd:
            wait_until(lambda process=process: process.said == [["ready"]], "it to be ready")
        with closing(daemon.client()) as db:
            with db.lock("x", ttl=locking.TTL) as held:
                for number in range(4 * each):
                    random.choice(crowd).tell(number)
                    waiting = number + 1
                    deadline = time.monotonic() + PATIENCE
                    while db.info()["waiting"] < waiting:  # so that nobody comes before
                        assert time.monotonic() < deadline
                pids = [daemon.pid, *(process.pid for process in crowd)]
                used = [-cpu_seconds(pid) for pid in pids]
                time.sleep(seconds)
                used = [before + cpu_seconds(pid) for before, pid in zip(used, pids, strict=True)]
                assert db.info()["waiting"] == 4 * each
            assert all(process.end() for process in crowd)
            served = [tuple(map(int, line)) for process in crowd for line in process.said[1:]]
            served.sort(key=lambda each: each[1])
            assert [number for number, _ in served] == list(range(4 * each))
            assert served[0][1] > held.token
            assert len({token for _, token in served}) == 4 * each
            told = db.info()
            assert (told["locks"], told["waiting"]) == (0, 0)
    finally:
        for process in crowd:
            if process.process.poll() is None:
                process.kill()
    print(f"used: {used} s of {seconds} s")  # noqa: T201 - pytest -rP shows it
    # A wake-up now and then is allowed; one of each waiter every second would be seen
    assert max(used) <= 0.02 * seconds, used
    daemon.check_and_stop()


@pytest.mark.parametrize("kills", [8, pytest.param(300, marks=pytest.mark.long)])
def test_holders_that_are_killed_lose_nothing_and_hold_nobody_up(location, kills):
    """Whoever comes next has it at once, though its ttl is longer than all patience."""
    chance = seeded()
    daemon = Daemon(location)
    numbers = iter(range(1_000_000))

    def start():
        return Process("count", location, next(numbers), 4)

    living, dead = [start() for _ in range(4)], []
    try:
        with closing(daemon.client()) as db:
            for kill in range(kills):
                before = db.get("n", 0)
                wait_until(lambda before=before: db.get("n", 0) >= before + 10, "it to go on")
                victim = None
                if kill % 2:  # the one who has it, as far as can be told
                    pid = wait_until(lambda: db.get("holder"), "somebody to hold it")
                    victim = next((each for each in living if each.pid == pid), None)
                victim = victim or chance.choice(living)
                victim.kill()
                living.remove(victim)
                dead.append(victim)
                living.append(start())
            before = db.get("n")
            wait_until(lambda: db.get("n") >= before + 20, "it to go on")
            assert all(process.end() for process in living)
            content = db.db
            assert db.info()["locks"] == 0
    finally:
        for process in living:
            if process.process.poll() is None:
                process.kill()
    counts = {key: n for key, n in content.items() if key.startswith("by:")}
    assert content["n"] == sum(counts.values()), "two have read the same"
    for process in (*living, *dead):
        told = {}
        for key, n in process.said:
            assert int(n) == told.get(key, 0) + 1
            told[key] = int(n)
        for key, n in told.items():
            # One more may have been counted by who was killed before it could tell
            assert counts[key] in ((n, n + 1) if process in dead else (n,))
    assert content["died"] > 0, "nobody was killed while it held the lock"
    print(f"{content['n']} counted, {content['died']} died of {kills}")  # noqa: T201
    daemon.check_and_stop()
