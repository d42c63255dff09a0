"""Read, change, write by many at once: each number is counted once, whatever the daemon meets."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import defaultdict
from contextlib import closing

import pytest

import counting
from counting import WAYS, key_of
from support import PATIENCE, Daemon, seeded, wait_until

LONG_PATIENCE = 1800.0

KINDS = ["incr", "cas", "modify", "lock"]


class Crowd:
    """Processes that count, and a daemon that is killed meanwhile and started again at once."""

    def __init__(self, location, count, ways_of_each):
        self.location = location
        self.kills = 0
        self.daemon = Daemon(location, "--durability", "journal")
        self.processes = [
            subprocess.Popen(
                [sys.executable, counting.__file__, str(location), str(count), *ways],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for ways in ways_of_each
        ]
        for process in self.processes:
            assert process.stdout.readline() == "ready\n"
        for process in self.processes:
            process.stdin.write("begin\n")
            process.stdin.flush()
        # They read each process to its end at once, so that none has to wait for its reader
        self.told = {}
        self.readers = [threading.Thread(target=self._read, args=(p,)) for p in self.processes]
        for reader in self.readers:
            reader.start()

    def _read(self, process):
        self.told[process.pid] = process.stdout.read()

    def kill(self):
        self.daemon.kill()
        self.daemon = Daemon(self.location, "--durability", "journal")
        self.kills += 1

    def counted_so_far(self):
        with closing(self.daemon.client()) as db:
            return {key: db.get(key, 0) for key in map(key_of, KINDS)}

    @property
    def working(self):
        return any(process.poll() is None for process in self.processes)

    def end(self, patience=PATIENCE):
        """Have them end; of each key, all numbers that were counted there."""
        try:
            for process in self.processes:
                process.stdin.close()
            for process in self.processes:
                assert process.wait(patience) == 0
        finally:
            for process in self.processes:
                process.kill()
            for reader in self.readers:
                reader.join(PATIENCE)
            for process in self.processes:
                process.wait(PATIENCE)
                process.stdout.close()
        counted = defaultdict(list)
        for told in self.told.values():
            for way, numbers in json.loads(told).items():
                counted[key_of(way)] += numbers
        return counted


def check_counted_once(crowd, counted):
    """Each number was counted by just one, and the last is what is there, now and later."""
    for _ in range(2):
        with closing(crowd.daemon.client()) as db:
            for key, numbers in counted.items():
                assert sorted(numbers) == list(range(1, len(numbers) + 1)), key
                assert db[key] == len(numbers)
            assert sorted(db) == sorted(counted)
        crowd.kill()
    crowd.daemon.check_and_stop()


def test_each_number_is_counted_once_in_all_ways_by_threads_processes_and_tasks(location):
    """Four processes with a thread or a task for each way, so that no key has one who counts."""
    ways = [
        [f"async {kind}" if (n + at) % 2 else kind for at, kind in enumerate(KINDS)]
        for n in range(4)
    ]
    crowd = Crowd(location, 0, ways)
    moments = seeded()
    try:
        for _ in range(3):
            before = crowd.counted_so_far()

            def further(before=before):
                return all(n >= before[key] + 20 for key, n in crowd.counted_so_far().items())

            wait_until(further, "more to be counted in each way")
            threading.Event().wait(0.1 * moments.random())
            crowd.kill()
    finally:
        counted = crowd.end()
    assert set(counted) == set(map(key_of, KINDS))
    assert min(map(len, counted.values())) > 40
    check_counted_once(crowd, counted)


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_32_000_are_32_000_beside_a_kill_9_every_second(location, way):
    """8 processes of 4 threads, or tasks, 1,000 times each."""
    crowd = Crowd(location, 1000, [[way] * 4] * 8)
    over = threading.Event()
    try:
        while crowd.working:
            if not over.wait(1.0):
                crowd.kill()
    finally:
        counted = crowd.end(LONG_PATIENCE)
    print(f"{way}: {crowd.kills} kills")  # noqa: T201 - what a long run came to
    assert len(counted[key_of(way)]) == 32_000
    assert crowd.kills > 0
    check_counted_once(crowd, counted)
