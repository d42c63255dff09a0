"""A process that counts with others, in all ways in which a number is changed; run as a script.

`counting.py LOCATION COUNT WAY...`: a thread for each WAY, or a task if it is AsyncPickleDB's,
which adds 1 to the key `n:WAY` COUNT times; with COUNT 0, until the standard input is closed. It
says "ready" once it is connected, begins when it is told a line, and prints at last a JSON object
of each way to the numbers that it counted: of all processes that count at one key together,
somebody must have counted each number, and nobody else the same.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import traceback
from contextlib import closing

from pickledbd_client import AsyncPickleDB, PickleDB

TIMEOUT = 300.0
"""However long the daemons take to start, nobody gives up."""

TRIES = 100_000
"""Of modify, for which each daemon that is killed is no reason to fail either."""

OPTIONS = {"autostart": False, "timeout": TIMEOUT}


def add_one(value):
    return value + 1


def by_incr(db, key):
    return db.incr(key)


def by_cas(db, key):
    while True:
        value, version = db.get_versioned(key)
        if db.cas(key, version, (value or 0) + 1):
            return (value or 0) + 1


def by_modify(db, key):
    return db.modify(key, add_one, 0, tries=TRIES)


def by_lock(db, key):
    """What was read is not compared with anything: that nobody interferes is up to the lock."""
    with db.lock(key) as held:
        after = db.get(key, 0) + 1
        db.set(key, after, token=held.token)
        return after


async def by_async_incr(db, key):
    return await db.incr(key)


async def by_async_cas(db, key):
    while True:
        value, version = await db.get_versioned(key)
        if await db.cas(key, version, (value or 0) + 1):
            return (value or 0) + 1


async def by_async_modify(db, key):
    return await db.modify(key, add_one, 0, tries=TRIES)


async def by_async_lock(db, key):
    async with db.lock(key) as held:
        after = await db.get(key, 0) + 1
        await db.set(key, after, token=held.token)
        return after


WAYS = {
    "incr": by_incr,
    "cas": by_cas,
    "modify": by_modify,
    "lock": by_lock,
    "async incr": by_async_incr,
    "async cas": by_async_cas,
    "async modify": by_async_modify,
    "async lock": by_async_lock,
}


def key_of(way):
    """Where it is counted: at the same key by both kinds of client."""
    return f"n:{way.removeprefix('async ')}"


class Counters:
    """The threads of this process; what is async goes on in one of them, as tasks."""

    def __init__(self, location, count, ways):
        self.location = location
        self.count = count
        self.over = threading.Event()
        self.db = PickleDB(location, **OPTIONS)
        self.counted = {way: [] for way in ways}
        self.failures = []
        tasks = [way for way in ways if way.startswith("async")]
        self.threads = [self._thread(self._count, way) for way in ways if way not in tasks]
        if tasks:
            self.threads.append(self._thread(asyncio.run, self._count_as_tasks(tasks)))

    def _thread(self, work, arg):
        def run():
            try:
                work(arg)
            except BaseException:  # noqa: BLE001 - told at the end
                self.failures.append(traceback.format_exc())

        return threading.Thread(target=run)

    def _goes_on(self, done):
        return done < self.count if self.count else not self.over.is_set()

    def _count(self, way):
        done = 0
        while self._goes_on(done):
            self.counted[way].append(WAYS[way](self.db, key_of(way)))
            done += 1

    async def _count_as_tasks(self, ways):
        db = AsyncPickleDB(self.location, **OPTIONS)

        async def count(way):
            done = 0
            while self._goes_on(done):
                self.counted[way].append(await WAYS[way](db, key_of(way)))
                done += 1

        await asyncio.gather(*map(count, ways))
        await db.close()

    def work(self):
        """What they counted, each way's numbers."""
        for thread in self.threads:
            thread.start()
        if not self.count:
            sys.stdin.read()
            self.over.set()
        for thread in self.threads:
            thread.join()
        return self.counted


def main():
    location, count, *ways = sys.argv[1:]
    counters = Counters(location, int(count), ways)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    with closing(counters.db):
        json.dump(counters.work(), sys.stdout)
    if counters.failures:
        sys.exit("\n".join(counters.failures))


if __name__ == "__main__":
    main()
