"""Reads from memory beside acknowledged writes: no read that began later may find less.

Writers set numbers that grow and put each, once it is acknowledged, where all processes see it.
Readers look there first, and then read: what they find must be as much, whether it comes from the
daemon or from their cache. Meanwhile the daemon is killed, stopped and halted, and all is purged.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import RawArray

import pytest

from pickledbd_client import PickleDB
from support import PATIENCE, Daemon, wait_until

PROCESSES = 4
THREADS = 4
WRITERS = 2
KEYS = [f"key {n}" for n in range(64)]

AT_A_TIME = 200
"""Reads between two looks whether it is over, and between two counts."""

# Fork: what is shared is handed on, and a reader may have a client that its parent has used.
# Nothing of this test runs in a thread of the parent.
processes = multiprocessing.get_context("fork")


class Careless(PickleDB):
    """Broken on purpose: whatever it has read once counts for ever."""

    def get(self, key, default=None):
        if not hasattr(self, "_once"):
            self._once = {}
        if key not in self._once:
            self._once[key] = super().get(key, default)
        return self._once[key]


class Trusting(PickleDB):
    """Broken on purpose: it looks at the counters, but not whether their daemon is alive."""

    def get(self, key, default=None):
        entry = self._cache.young.get(key)
        if entry is not None:
            counters, slot, count, _, value, copy = entry
            if counters[slot] == count:
                return value if copy is None else default  # only numbers, or nothing, is there
        return super().get(key, default)


@dataclass
class Shared:
    """What all processes see."""

    acknowledged: object = field(default_factory=lambda: RawArray("Q", len(KEYS)))
    purging: object = field(default_factory=lambda: RawArray("Q", 1))
    """Odd while everything is being purged."""
    reads: object = field(default_factory=lambda: RawArray("Q", PROCESSES * THREADS))
    asked: object = field(default_factory=lambda: RawArray("Q", PROCESSES * THREADS))
    """How many of the reads were requests."""
    writes: object = field(default_factory=lambda: RawArray("Q", WRITERS))
    purges: object = field(default_factory=lambda: RawArray("Q", 1))
    over: object = field(default_factory=lambda: RawArray("B", 1))
    writing: list = field(default_factory=lambda: [processes.Lock() for _ in range(WRITERS)])
    """Each is held while its writer writes; both while everything is purged."""
    found: object = field(default_factory=processes.SimpleQueue)
    """Stale reads, and failures of the processes."""


def read(shared, db, number):
    """Read all keys again and again, as reader `number`."""
    acknowledged, purging, over = shared.acknowledged, shared.purging, shared.over
    keys = list(enumerate(KEYS))
    keys = keys[number:] + keys[:number]  # not all in step
    done = 0
    _, asked_before = db._link.mark()
    while not over[0]:
        for _ in range(max(1, AT_A_TIME // len(keys))):
            for index, key in keys:
                purge = purging[0]
                least = acknowledged[index]
                value = db.get(key)
                if value is None:
                    # Missing it may be only while a purge, or what follows it, is under way
                    if least and not purge % 2 and purging[0] == purge:
                        shared.found.put(f"{key} is missing, {least} was acknowledged")
                elif value < least:
                    shared.found.put(f"{key} is {value}, {least} was acknowledged")
            done += len(keys)
        shared.reads[number] = done
        shared.asked[number] = db._link.mark()[1] - asked_before


def write(shared, db, number, pause):
    """Write the keys that are writer `number`'s, and now and then purge all."""
    mine = range(number, len(KEYS), WRITERS)
    while True:
        for index in mine:
            with shared.writing[number]:
                value = shared.acknowledged[index] + 1
                db.set(KEYS[index], value)
                shared.acknowledged[index] = value
                shared.writes[number] += 1
            if shared.over[0]:
                return
            # A pace, no waiting for anything: what was read is to be read again before it changes
            time.sleep(pause)
        if number == 0 and shared.writes[0] // len(mine) % 5 == 4:
            with contextlib.ExitStack() as stack:
                for lock in shared.writing:
                    stack.enter_context(lock)
                purge(shared, db)


def purge(shared, db):
    shared.purging[0] += 1
    db.purge()
    values = [value + 1 for value in shared.acknowledged]
    db.set_many(dict(zip(KEYS, values, strict=True)))
    shared.acknowledged[:] = values
    shared.purging[0] += 1
    shared.purges[0] += 1


class Crowd:
    """Readers and writers of a database, in processes of their own."""

    def __init__(self, location, kind=PickleDB, *, pause=0.001):
        self.location = location
        self.shared = Shared()
        self.options = {"autostart": False, "timeout": PATIENCE}
        self.daemon = Daemon(location)
        with contextlib.closing(kind(location, **self.options)) as inherited:
            for key in KEYS:
                inherited.set(key, 0)
                inherited.get(key)
            makes = [lambda: kind(location, **self.options)] * PROCESSES
            makes[0] = lambda: inherited  # with what the parent has read
            self.processes = [
                self._started(self._read, number, make) for number, make in enumerate(makes)
            ]
            self.processes += [self._started(self._write, n, pause) for n in range(WRITERS)]

    def _started(self, work, *args):
        process = processes.Process(target=self._run, args=(work, *args), daemon=True)
        process.start()
        return process

    def _run(self, work, *args):
        # What the parent was told to do at a signal is not for its child
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            work(*args)
        except BaseException:
            self.shared.found.put(traceback.format_exc())
            raise

    def _read(self, number, make):
        failures = []

        def reader(thread):
            try:
                read(self.shared, db, number * THREADS + thread)
            except BaseException:  # noqa: BLE001 - told below
                failures.append(traceback.format_exc())
                self.shared.over[0] = 1

        db = make()
        threads = [threading.Thread(target=reader, args=(n,)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        db.close()
        assert not failures, "\n".join(failures)

    def _write(self, number, pause):
        # A timeout of the writer's would leave it unknown what it wrote
        with contextlib.closing(PickleDB(self.location, **self.options)) as db:
            write(self.shared, db, number, pause)

    # What happens to them

    @property
    def reads(self):
        return sum(self.shared.reads)

    @property
    def cached(self):
        return self.reads - sum(self.shared.asked)

    def advance(self, by):
        """Wait until each reader has read `by` more, or something was found."""
        goals = [done + by for done in self.shared.reads]

        def there():
            done = all(now >= goal for now, goal in zip(self.shared.reads, goals, strict=True))
            return done or self.shared.over[0] or not self.shared.found.empty()

        wait_until(there, f"{by} reads of each reader")

    def restart(self, number):
        self.daemon.process.send_signal(number)
        self.daemon.end()
        self.daemon = Daemon(self.location)

    def halt_among_writes(self):
        """Whatever they were about to do, they wait for the daemon to go on."""
        with self.halted():
            deadline = time.monotonic() + 0.05
            goal = self.reads + 20_000
            while time.monotonic() < deadline and self.reads < goal:
                time.sleep(0.001)

    @contextlib.contextmanager
    def peace(self):
        """Nobody writes, and all that there is stands in all caches."""
        with contextlib.ExitStack() as stack:
            for lock in self.shared.writing:
                assert lock.acquire(timeout=PATIENCE)
                stack.callback(lock.release)
            self.advance(4 * AT_A_TIME)  # each process has read each key since
            yield

    def halt_in_peace(self):
        """They all go on without the daemon."""
        with self.peace(), self.halted():
            self.advance(4 * AT_A_TIME)

    def restart_in_peace(self):
        """Nobody has anything to ask, so only the lease tells that there is another daemon."""
        with self.peace():
            self.restart(signal.SIGKILL)

    @contextlib.contextmanager
    def halted(self):
        os.kill(self.daemon.pid, signal.SIGSTOP)
        try:
            os.waitid(os.P_PID, self.daemon.pid, os.WSTOPPED | os.WNOWAIT)
            yield
        finally:
            os.kill(self.daemon.pid, signal.SIGCONT)

    def everything(self, reads):
        """All that may happen to a daemon, with `reads` of each reader in between."""
        for happens in (
            self.halt_in_peace,
            self.restart_in_peace,
            lambda: self.restart(signal.SIGKILL),
            self.halt_among_writes,
            lambda: self.restart(signal.SIGTERM),
        ):
            self.advance(reads)
            if self.shared.over[0] or not self.shared.found.empty():
                return
            happens()
        self.advance(reads)

    def end(self):
        """What was found, once all have ended."""
        self.shared.over[0] = 1
        found = []
        deadline = time.monotonic() + PATIENCE
        while any(process.is_alive() for process in self.processes):
            while not self.shared.found.empty():  # else who tells it could not go on
                found.append(self.shared.found.get())
            if time.monotonic() > deadline:
                break
            self.processes[0].join(0.01)
        for process in self.processes:
            if process.is_alive():
                found.append(f"{process.name} did not end")
                process.kill()
            process.join()
            if process.exitcode:
                found.append(f"{process.name} ended with {process.exitcode}")
        while not self.shared.found.empty():
            found.append(self.shared.found.get())
        return found

    def told(self):
        share = self.cached / max(1, self.reads)
        return (
            f"{self.reads:,} reads, {self.cached:,} of them ({share:.1%}) from the cache, beside "
            f"{sum(self.shared.writes):,} writes and {self.shared.purges[0]} purges"
        )


def crowd_of(location, reads, total, *, kind=PickleDB, **options):
    """Have a crowd read `total` times at least, with all that may happen; what was found."""
    crowd = Crowd(location, kind, **options)
    rounds = 0
    try:
        while not rounds or crowd.reads < total:
            crowd.everything(reads)
            rounds += 1
            if crowd.shared.over[0] or not crowd.shared.found.empty():
                break
    finally:
        found = crowd.end()
    print(f"{crowd.told()}, in {rounds} rounds: {len(found)} found")  # noqa: T201 - the long form's result
    return crowd, found


def test_no_read_finds_less_than_was_acknowledged_before_it_began(location):
    crowd, found = crowd_of(location, 2 * AT_A_TIME, 20_000)
    assert found == []
    assert crowd.cached > 0
    assert sum(crowd.shared.writes) > 0
    crowd.daemon.check_and_stop()


@pytest.mark.long
def test_no_read_of_ten_million_finds_less_than_was_acknowledged_before_it_began(location):
    crowd, found = crowd_of(location, 50 * AT_A_TIME, 10_000_000)
    assert found == []
    assert crowd.cached > crowd.reads / 2
    assert crowd.shared.purges[0] > 0
    crowd.daemon.check_and_stop()


@pytest.mark.parametrize("kind", [Careless, Trusting])
def test_a_client_that_is_wrong_is_found_out(location, kind):
    _, found = crowd_of(location, 4 * AT_A_TIME, 10**9, kind=kind)
    assert any("was acknowledged" in one for one in found), found
    assert all("was acknowledged" in one for one in found), found
