"""What the tests of AsyncPickleDB share: an event loop of bounded time, and a relay within it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from pickledbd_client import AsyncPickleDB
from support import PATIENCE


def run(work):
    """`work`, a coroutine, in an event loop of its own; what hangs there fails."""

    async def bounded():
        async with asyncio.timeout(PATIENCE):
            return await work

    return asyncio.run(bounded())


def async_client(daemon, **options):
    options = {"autostart": False, "timeout": PATIENCE, **options}
    return AsyncPickleDB(daemon.location, **options)


@contextlib.contextmanager
def stopped(daemon):
    """SIGSTOP for a while: a daemon that is there and says nothing."""
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def told(error):
    """What an error tells, to be compared with another's."""
    return type(error), error.args, getattr(error, "outcome_known", None)


async def until(condition):
    """`support.wait_until` that lets the event loop go on meanwhile."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.005)


async def all_sent(db, number=None):
    """Wait until all requests of `db` in this event loop have been sent."""
    line = db._link._lines[asyncio.get_running_loop()]
    await until(lambda: not line._waiting and number in (None, len(line._sent)))


async def each_gets_its_own(db, number, prefix=""):
    """Ask for different things at once; each answer tells of its key."""
    names = [f"{prefix}{n}" for n in range(number)]
    assert all(await asyncio.gather(*(db.set(name, name) for name in names)))
    assert await asyncio.gather(*(db.get_many([name]) for name in names)) == [
        {name: name} for name in names
    ]
    assert await asyncio.gather(*(db.setdefault(name, "other") for name in names)) == names
    assert await asyncio.gather(*(db.get(name) for name in names)) == names
    assert await asyncio.gather(*(db.pop(name) for name in names)) == names


class Relay:
    """Passes bytes between its clients and a daemon, in the test's own event loop.

    `lose_replies`: from now on what the daemon answers is lost, though what it is asked arrives;
    `go_on` cuts the connections that have lost something. `swallow`: the connections there are
    stay, and nothing that is sent there arrives.
    """

    def __init__(self, directory):
        self.endpoint, self.daemon_endpoint = f"ipc://{directory}/r", f"ipc://{directory}/d"
        self.lost = asyncio.Event()
        self.breaks_after = None  # so many pieces of replies, each connection
        self.breaks = 0
        self._losing = False
        self._cut_off = set()
        self._swallowing = set()
        self._is_open = asyncio.Event()
        self._is_open.set()
        self._tasks = set()
        self._writers = set()

    async def __aenter__(self):
        path = self.endpoint.removeprefix("ipc://")
        self._server = await asyncio.start_unix_server(self._accept, path)
        return self

    async def __aexit__(self, *_exc):
        self._server.close()
        self.go_on()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def lose_replies(self):
        self.lost.clear()
        self._losing = True
        self._is_open.clear()

    def swallow(self):
        self._swallowing |= self._writers

    def go_on(self):
        self._losing = False
        while self._cut_off:
            self._cut_off.pop().transport.abort()
        self._is_open.set()

    async def _accept(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._is_open.wait()
                path = self.daemon_endpoint.removeprefix("ipc://")
                there, further = await asyncio.open_unix_connection(path)
                self._writers |= {writer, further}
                ways = {
                    asyncio.create_task(self._pump(reader, further, replies=False)),
                    asyncio.create_task(self._pump(there, writer, replies=True)),
                }
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
                    further.transport.abort()
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _pump(self, source, target, *, replies):
        pieces = 0
        while data := await source.read(2**16):
            pieces += 1
            if replies and self.breaks_after is not None and pieces > self.breaks_after:
                self.breaks += 1
                return
            if target in self._swallowing:
                continue
            if replies and (self._losing or target in self._cut_off):
                self._cut_off.add(target)
                self.lost.set()
                continue
            target.write(data)
            await target.drain()
