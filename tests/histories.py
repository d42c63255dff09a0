"""A process that does all that can be done to single keys, and notes what it was answered.

`histories.py NUMBER TARGET HISTORY ORIGIN KEYS`, run as a script, as process NUMBER. Each operation
becomes a line of HISTORY, as writers.py has it, with `kind` and `value` as linearizable.py has
them. It says "ready" once it is connected, and goes on until its standard input is closed.

There are threads with a PickleDB in common, which keeps what it reads, and tasks with an
AsyncPickleDB in common. Of each kind there is one more with little patience: a thread and a task
whose requests time out, and a task that cancels them. What they asked for in vain has no end, if
nothing is known of its outcome; if it is known that nothing was done, it is left out.

So many KEYS are used for an epoch, counted from ORIGIN (time.monotonic()), and never again: what
has no end may have taken effect at any later time, so whoever checks has to think of all of that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import time
import traceback

from pickledbd_client import AsyncPickleDB, PickleDB, RequestTimeout, Unavailable
from support import seeded

TIMEOUT = 60.0
IMPATIENT = 0.1
EPOCH = 1.0
TTLS = (0.02, 0.05, 0.1, 0.3)
PAUSE = 0.002

KINDS = {
    "get": 6,
    "exists": 1,
    "set": 2,
    "set_ttl": 3,
    "setdefault": 2,
    "remove": 1,
    "pop": 1,
    "incr": 3,
    "get_versioned": 3,
    "cas": 4,
    "expire": 2,
    "persist": 1,
    "ttl": 1,
}

WRITES = KINDS.keys() - {"get", "exists", "get_versioned", "ttl"}


class Worker:
    """What one thread or task does next, and what came of it."""

    def __init__(self, name, db, origin, keys, *, is_async=False):
        self.name = name
        self.keys = keys
        self.db = db
        self.origin = origin
        self.is_async = is_async
        self.random = seeded()
        self.unique = 0
        self.versions = {}
        self.noted = []
        self.started = 0.0

    def choose(self):
        """A key, a kind, a value, and the method and the arguments for it."""
        epoch = int((time.monotonic() - self.origin) / EPOCH)
        key = f"{epoch}:{self.random.randrange(self.keys)}"
        [kind] = self.random.choices(list(KINDS), KINDS.values())
        self.unique += 1
        new = (self.name * 100_000 + self.unique) * 100  # never what an incr comes to
        ttl = self.random.choice(TTLS)
        method, keywords = kind, {}
        if kind == "set":
            value, args = new, (new,)
        elif kind == "set_ttl":
            method, value, args, keywords = "set", [new, ttl], (new,), {"ttl": ttl}
        elif kind == "setdefault":
            value, args = new, (new,)
        elif kind == "incr":
            value, args = 1, (1,)
        elif kind == "cas":
            version = self.versions.get(key, 0) if self.random.random() < 0.8 else 0
            value, args = [version, new], (version, new)
            if self.random.random() < 0.3:
                value, keywords = [*value, ttl], {"ttl": ttl}
        elif kind == "expire":
            value, args = ttl, (ttl,)
        else:
            value, args = None, (None,) if kind == "pop" else ()
            if kind == "exists" and not self.is_async:
                method = "__contains__"
        return key, kind, value, method, (key, *args), keywords

    def note(self, key, kind, value, result, start):
        if kind == "get_versioned":
            self.versions[key] = result[1]
        elif kind == "cas":
            self.versions.pop(key, None)
        self.noted.append((key, kind, value, result, start, time.monotonic()))

    def note_failure(self, key, kind, value, start, *, outcome_known):
        if kind in WRITES and not outcome_known:
            self.noted.append((key, kind, value, None, start, None))

    # The same for threads and for tasks

    def work(self, over):
        while not over.is_set():
            key, kind, value, method, args, keywords = self.choose()
            start = time.monotonic()
            try:
                result = getattr(self.db, method)(*args, **keywords)
            except (RequestTimeout, Unavailable) as error:
                self.note_failure(key, kind, value, start, outcome_known=error.outcome_known)
            else:
                self.note(key, kind, value, result, start)
            over.wait(PAUSE)

    async def work_as_task(self, over, patience):
        """`patience`: after so many seconds a call is cancelled."""
        while not over.is_set():
            key, kind, value, method, args, keywords = self.choose()
            start = time.monotonic()
            try:
                async with asyncio.timeout(patience):
                    result = await getattr(self.db, method)(*args, **keywords)
            except (RequestTimeout, Unavailable) as error:
                self.note_failure(key, kind, value, start, outcome_known=error.outcome_known)
            except TimeoutError:
                self.note_failure(key, kind, value, start, outcome_known=False)
            else:
                self.note(key, kind, value, result, start)
            await asyncio.sleep(PAUSE)


class Process:
    def __init__(self, number, target, origin, keys):
        self.over = threading.Event()
        self.failures = []
        self.names = iter(range(number * 100 + 1, number * 100 + 100))
        self.origin = origin
        self.keys = keys
        options = {"autostart": False, "timeout": TIMEOUT}
        impatient = options | {"timeout": IMPATIENT}
        self.dbs = [
            PickleDB(target, **options),
            PickleDB(target, **impatient, cache_bytes=0),
        ]
        self.async_dbs = [AsyncPickleDB(target, **options), AsyncPickleDB(target, **impatient)]
        shared, short = self.dbs
        self.workers = [self.worker(db) for db in (shared, shared, short)]
        async_shared, async_short = self.async_dbs
        self.tasks = {
            self.worker(async_shared, is_async=True): None,
            self.worker(async_short, is_async=True): None,
            self.worker(async_shared, is_async=True): IMPATIENT,
        }

    def worker(self, db, *, is_async=False):
        return Worker(next(self.names), db, self.origin, self.keys, is_async=is_async)

    def guarded(self, work, *args):
        try:
            work(*args)
        except BaseException:  # noqa: BLE001 - told at the end
            self.failures.append(traceback.format_exc())
            self.over.set()

    async def tasks_work(self):
        await asyncio.gather(
            *(worker.work_as_task(self.over, patience) for worker, patience in self.tasks.items())
        )
        for db in self.async_dbs:
            await db.close()

    def work(self):
        threads = [
            threading.Thread(target=self.guarded, args=(worker.work, self.over))
            for worker in self.workers
        ]
        threads.append(
            threading.Thread(target=self.guarded, args=(lambda: asyncio.run(self.tasks_work()),))
        )
        for thread in threads:
            thread.start()
        sys.stdin.read()
        self.over.set()
        for thread in threads:
            thread.join()
        for db in self.dbs:
            db.close()


def main():
    number, target, history, origin, keys = sys.argv[1:]
    process = Process(int(number), target, float(origin), int(keys))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    process.work()
    with contextlib.closing(open(history, "w")) as file:
        for worker in [*process.workers, *process.tasks]:
            for operation in worker.noted:
                json.dump(operation, file)
                file.write("\n")
    if process.failures:
        sys.exit("\n".join(process.failures))


if __name__ == "__main__":
    main()
