"""What the tests of watching share: watches that are read in threads, and a mirror."""

from __future__ import annotations

import asyncio
import queue
import threading
from contextlib import closing

from pickledbd_client import AsyncPickleDB, PickleDB, Resync
from support import PATIENCE

KINDS = ["blocking", "asynchronous"]


class Told:
    """What a watch of a client of its own tells, until it ends."""

    def __init__(self, kind, location, prefix="", since=None, **options):
        self.ended = None
        """How it ended: True, or the exception."""
        self._location = location
        self._options = {"autostart": False, "timeout": PATIENCE, **options}
        self._about = prefix, since
        self._told = queue.SimpleQueue()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(getattr(self, f"_{kind}"),))
        self._thread.daemon = True  # if it hangs, the test tells so
        self._thread.start()
        assert self._begun.wait(PATIENCE)

    def _work(self, read):
        try:
            read()
            self.ended = True
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.ended = error
        finally:
            self._begun.set()
            self._told.put(None)

    def _blocking(self):
        db = PickleDB(self._location, **self._options)
        with closing(db), db.watch(*self._about) as watch:
            self.close = watch.close
            self._begun.set()
            for one in watch:
                self._told.put(one)

    def _asynchronous(self):
        async def work():
            loop = asyncio.get_running_loop()
            db = AsyncPickleDB(self._location, **self._options)
            closing = asyncio.Lock()

            async def close(watch):
                async with closing:
                    await watch.close()

            async with db.watch(*self._about) as watch:
                self.close = lambda: asyncio.run_coroutine_threadsafe(close(watch), loop).result(
                    PATIENCE
                )
                self._begun.set()
                async for one in watch:
                    self._told.put(one)
            async with closing:
                await db.close()

        asyncio.run(work())

    def next(self):
        """What it tells next."""
        one = self._told.get(timeout=PATIENCE)
        if isinstance(self.ended, BaseException):
            raise self.ended
        assert one is not None, "it has ended"
        return one

    def upto(self, key):
        """What it tells before the change of `key`."""
        told = []
        while isinstance(one := self.next(), Resync) or one.key != key:
            told.append(one)
        return told

    def join(self):
        """Wait for its end; what was not looked at yet."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "it waits on"
        assert self.ended is True, self.ended
        left = []
        while (one := self._told.get(timeout=PATIENCE)) is not None:
            left.append(one)
        return left

    def __enter__(self):
        return self

    def __exit__(self, exc_type, *_rest):
        if exc_type is None:
            self.close()
            self.join()


class Mirror:
    """The content as a watcher has it from what it is told alone."""

    def __init__(self, content=(), seq=0):
        self.content = dict(content)
        self.seq = seq
        self.resyncs = 0

    def take(self, one):
        assert one.seq > self.seq or (isinstance(one, Resync) and one.seq == self.seq)
        self.seq = one.seq
        if isinstance(one, Resync):
            self.content = dict(one.items)
            self.resyncs += 1
        elif one.removed:
            assert one.value is None
            assert one.key in self.content, "it was removed twice"
            del self.content[one.key]
        else:
            self.content[one.key] = one.value
