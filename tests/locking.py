"""A process of those that want a lock; run as a script.

`locking.py wait LOCATION KIND`: for each number that it is told, a line each, it has a thread (KIND
"threads") or a task ("tasks") wait for the lock "x", and prints the number and the token once that
was granted. It ends with its standard input, when all of them were.

`locking.py count LOCATION NUMBER THREADS`: until it is killed, or its standard input is closed,
each of its threads adds 1 to "n", and to a key of its own, under the lock "x", and prints that key
and its count. Who finds the pid of another in "holder" adds 1 to "died": that one has been killed
while it held the lock.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
import time
from contextlib import closing

from pickledbd_client import AsyncPickleDB, PickleDB

TTL = 600.0
"""What becomes free within the patience of a test has not been waited for so long."""

OPTIONS = {"autostart": False, "timeout": 60.0}


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def wait_in_threads(location):
    def wait(number):
        with db.lock("x", ttl=TTL) as held:
            say(number, held.token)

    with closing(PickleDB(location, **OPTIONS)) as db:
        db.ping()
        say("ready")
        threads = []
        for line in sys.stdin:
            threads.append(threading.Thread(target=wait, args=(int(line),)))
            threads[-1].start()
        for thread in threads:
            thread.join()


async def wait_in_tasks(location):
    async def wait(number):
        async with db.lock("x", ttl=TTL) as held:
            say(number, held.token)

    db = AsyncPickleDB(location, **OPTIONS)
    await db.ping()
    say("ready")
    async with asyncio.TaskGroup() as group:
        while line := await asyncio.to_thread(sys.stdin.readline):
            group.create_task(wait(int(line)))
    await db.close()


def count(location, number, threads):
    over = threading.Event()

    def work(key):
        pause = random.Random(key)
        while not over.is_set():
            with db.lock("x", ttl=TTL) as held:
                if db.get("holder") is not None:
                    db.incr("died", token=held.token)
                db.set("holder", os.getpid(), token=held.token)
                n, own = db.get("n", 0), db.get(key, 0)
                time.sleep(0.003 * pause.random())
                db.set_many({"n": n + 1, key: own + 1}, token=held.token)
                db.set("holder", None, token=held.token)
            say(key, own + 1)

    with closing(PickleDB(location, **OPTIONS)) as db:
        working = [
            threading.Thread(target=work, args=(f"by:{number}:{n}",)) for n in range(threads)
        ]
        for thread in working:
            thread.start()
        sys.stdin.read()
        over.set()
        for thread in working:
            thread.join()


if __name__ == "__main__":
    what, location, *rest = sys.argv[1:]
    if what == "count":
        count(location, *map(int, rest))
    elif rest == ["threads"]:
        wait_in_threads(location)
    else:
        asyncio.run(wait_in_tasks(location))
