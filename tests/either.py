"""PickleDB and AsyncPickleDB as one kind of object, for the tests of what both have."""

from __future__ import annotations

import asyncio
import contextlib
import inspect

from batching import as_sync
from looped import async_client


class Waited:
    """AsyncPickleDB, whose coroutines are waited for, in an event loop of its own."""

    def __init__(self, daemon):
        self._runner = asyncio.Runner()
        self._theirs = async_client(daemon)

    def __getattr__(self, name):
        method = getattr(self._theirs, name)

        def call(*args, **kwargs):
            found = method(*args, **kwargs)
            if inspect.isasyncgen(found):
                return self._runner.run(_all_of(found))
            if inspect.iscoroutine(found):
                return self._runner.run(found)
            return found

        return call

    @contextlib.contextmanager
    def block(self, **kwargs):
        """`async with db.batch()`."""
        batch = self._runner.run(self._theirs.batch(**kwargs).__aenter__())
        try:
            yield batch
        except BaseException as error:
            self._runner.run(batch.__aexit__(type(error), error, None))
            raise
        else:
            self._runner.run(batch.__aexit__(None, None, None))

    def close(self):
        self._runner.run(self._theirs.close())
        self._runner.close()


async def _all_of(found):
    return [each async for each in found]


class Plain:
    """PickleDB."""

    def __init__(self, daemon):
        self._theirs = daemon.client()

    def __getattr__(self, name):
        return getattr(self._theirs, name)

    def block(self, **kwargs):
        """`with db.batch()`."""
        return self._theirs.batch(**kwargs) if kwargs else as_sync(self._theirs)


KINDS = {"params": [Plain, Waited], "ids": ["sync", "async"]}
"""Of a fixture: `request.param(daemon)` is a client, to be closed."""
