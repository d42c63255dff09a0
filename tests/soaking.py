"""A process of mixed clients that go on for long; run as a script.

`soaking.py KIND NUMBER LOCATION`: two clients, as threads that share a PickleDB, or as tasks that
have an AsyncPickleDB each. It says "ready" once they are connected, and goes on until its standard
input is closed; then it writes a line of JSON: how much was done, and all that went wrong. Wrong is
an exception, and also a value that is not what this client wrote last. The keys are always the
same, so that nothing has a reason to grow.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
from contextlib import closing

from pickledbd_client import AsyncPickleDB, PickleDB

TIMEOUT = 30.0
PAUSE = 0.05
"""Seconds between what one client does, on average: it is to last, not to be fast."""

KEYS = 50
BATCH, LARGE_BATCH = 300, 3000


class Client:
    """What is done is written once, for both kinds: `ask` awaits where there is something to."""

    def __init__(self, name, db):
        self.name = name
        self.db = db
        self.random = random.Random(name)
        self.known = {}
        self.done = 0
        self.errors = []
        self.actions = {
            self.write: 20,
            self.read: 40,
            self.remove: 5,
            self.count: 10,
            self.change: 5,
            self.expiring: 5,
            self.many: 5,
            self.batch: 5,
            self.locked: 3,
            self.scan: 2,
            self.large: 0.3,
            self.everything: 0.3,
            self.save: 0.3,
            self.watch: 1,
        }

    async def run(self, ended, pause):
        while not ended.is_set():
            [action] = self.random.choices(list(self.actions), self.actions.values())
            try:
                await action()
            except Exception as error:  # noqa: BLE001 - told at the end
                self.errors.append(f"{self.name}: {action.__name__}: {error!r}")
            self.done += 1
            await pause(self.random.uniform(0, 2 * PAUSE))

    def key(self):
        return f"{self.name}:{self.random.randrange(KEYS)}"

    def value(self):
        size = self.random.choice((1, 10, 100, 1000, 10_000))
        return {"n": self.random.random(), "text": "x" * self.random.randrange(size)}

    def check(self, what, found, expected):
        if found != expected:
            self.errors.append(
                f"{self.name}: {what} was {str(found)[:80]}, not {str(expected)[:80]}"
            )

    async def write(self):
        key, value = self.key(), self.value()
        await ask(self.db.set(key, value))
        self.known[key] = value

    async def read(self):
        key = self.key()
        self.check(key, await ask(self.db.get(key)), self.known.get(key))

    async def remove(self):
        key = self.key()
        there = self.known.pop(key, None) is not None
        self.check(key, await ask(self.db.remove(key)), there)

    async def count(self):
        await ask(self.db.incr("counted"))

    async def change(self):
        key = f"{self.name}:list"
        before = self.known.get(key, [])
        self.known[key] = [*before, self.random.random()][-20:]
        await ask(self.db.modify(key, lambda _: self.known[key], default=[]))
        self.check(key, await ask(self.db.get(key)), self.known[key])

    async def expiring(self):
        await ask(self.db.set(f"{self.name}:session", self.value(), ttl=0.2))

    async def many(self):
        items = {f"{self.name}:many:{n}": n for n in range(BATCH)}
        await ask(self.db.set_many(items))
        self.check("many", await ask(self.db.get_many(items)), items)

    async def large(self):
        items = {f"{self.name}:large:{n}": n for n in range(LARGE_BATCH)}
        await ask(self.db.set_many(items))
        self.check("large", await ask(self.db.remove_many(items)), LARGE_BATCH)

    async def batch(self):
        key, value = self.key(), self.value()
        with_batch = self.db.batch()
        batch = await enter(with_batch)
        batch.set(key, value)
        batch.incr("counted")
        await leave(with_batch)
        self.known[key] = value

    async def locked(self):
        lock = self.db.lock(f"lock:{self.random.randrange(3)}", ttl=10.0, timeout=TIMEOUT)
        held = await enter(lock)
        try:
            await ask(self.db.set(f"{self.name}:held", 1, token=held.token))
        finally:
            await leave(lock)

    async def scan(self):
        found = await ask(self.db.all(f"{self.name}:many:"))
        self.check("scan", len(found) in (0, BATCH), True)

    async def everything(self):
        content = await ask(self.db.db)
        self.check("everything", "counted" in dict(content) or self.done < KEYS, True)

    async def save(self):
        await ask(self.db.save())

    async def watch(self):
        """Follow what it does itself."""
        prefix = f"{self.name}:watched"
        if isinstance(self.db, PickleDB):
            with closing(self.db.watch(prefix, since=0)) as changes:
                next(changes)  # all there is
                self.db.set(prefix, 1)
                self.check("watched", next(changes).value, 1)
        else:
            async with self.db.watch(prefix, since=0) as changes:
                await anext(changes)
                await self.db.set(prefix, 1)
                self.check("watched", (await anext(changes)).value, 1)


async def ask(asked):
    return await asked if hasattr(asked, "__await__") else asked


async def enter(block):
    return await block.__aenter__() if hasattr(block, "__aenter__") else block.__enter__()


async def leave(block):
    if hasattr(block, "__aexit__"):
        await block.__aexit__(None, None, None)
    else:
        block.__exit__(None, None, None)


def drive(steps):
    """Run a coroutine that never waits for anything."""
    try:
        steps.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


def as_threads(number, location, ended):
    async def pause(seconds):
        ended.wait(seconds)

    with closing(PickleDB(location, timeout=TIMEOUT, autostart=False)) as db:
        clients = [Client(f"thread:{number}:{n}", db) for n in range(2)]
        threads = [
            threading.Thread(target=lambda client=client: drive(client.run(ended, pause)))
            for client in clients
        ]
        say("ready")
        for thread in threads:
            thread.start()
        sys.stdin.read()
        ended.set()
        for thread in threads:
            thread.join()
    return clients


async def as_tasks(number, location, ended):
    async with (
        AsyncPickleDB(location, timeout=TIMEOUT, autostart=False) as one,
        AsyncPickleDB(location, timeout=TIMEOUT, autostart=False) as two,
    ):
        clients = [Client(f"task:{number}:{n}", db) for n, db in enumerate((one, two))]
        say("ready")
        running = [asyncio.create_task(client.run(ended, asyncio.sleep)) for client in clients]
        await asyncio.to_thread(sys.stdin.read)
        ended.set()
        await asyncio.gather(*running)
    return clients


def say(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main():
    kind, number, location = sys.argv[1:]
    ended = threading.Event()
    if kind == "threads":
        clients = as_threads(number, location, ended)
    else:
        clients = asyncio.run(as_tasks(number, location, ended))
    errors = [error for client in clients for error in client.errors]
    say(json.dumps({"done": sum(client.done for client in clients), "errors": errors}))


if __name__ == "__main__":
    main()
