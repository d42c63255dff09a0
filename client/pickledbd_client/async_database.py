"""AsyncPickleDB: PickleDB for asyncio, with many requests in flight on one connection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from pickledbd_client import calls
from pickledbd_client.async_link import AsyncLink
from pickledbd_client.batch import AsyncBatch
from pickledbd_client.cache import ABSENT, UNKNOWN
from pickledbd_client.handle import Handle


class AsyncPickleDB(Handle):
    """PickleDB, whose methods are coroutines.

    The arguments are PickleDB's. It connects when first used. One object may be used by any number
    of tasks, in several event loops and threads, and after a fork; each event loop has its
    connection.
    A coroutine that is cancelled stops waiting: what it asked may or may not be done.

    What cannot be awaited has another way to write it: `await db.set(key, value)` for
    `db[key] = value`, `await db.exists(key)` for `key in db`, `await db.len()`, and
    `await db.replace(content)` for `db.db = content`. Every method raises as PickleDB's does.
    """

    def _open(self) -> None:
        self._link = AsyncLink(self._route)

    @property
    def location(self) -> str:
        """The database file; of an endpoint that was not reached yet, that."""
        return self._route.location

    # As in pickleDB

    async def set(self, key: Any, value: Any) -> bool:
        """Store `value` under `key`; True. InvalidValue if it is not JSON, nor bytes."""
        return await self._link.request(calls.set_(str(key), value))

    async def get(self, key: Any, default: Any = None) -> Any:
        """A copy of the value of `key`, or `default` if there is none."""
        found = await self._read(str(key))
        return default if found is ABSENT else found

    async def all(self) -> list[str]:
        """All keys, in the order of their insertion."""
        return await self._link.request(calls.all_())

    async def remove(self, key: Any) -> bool:
        """Remove `key`; True if it was there."""
        return await self._link.request(calls.remove(str(key)))

    async def purge(self) -> bool:
        """Remove everything; True."""
        return await self._link.request(calls.purge())

    async def save(self) -> bool:
        """Have all that was acknowledged so far on disk when this returns; True. SaveFailed."""
        return await self._link.request(calls.save())

    async def load(self) -> Self:
        """This object. There is nothing to load: reads are current."""
        await self._link.request(calls.ping())
        return self

    @property
    def db(self) -> Awaitable[dict[str, Any]]:
        """The content now, as a dict of the caller's own: `await db.db`."""
        return self._link.request(calls.dump())

    async def replace(self, content: Mapping[Any, Any]) -> bool:
        """Have `content`, and nothing else, at once or not at all; True."""
        return await self._link.request(calls.replace(content))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            await self.save()

    # As a mapping

    async def _read(self, key: str) -> Any:
        found = self._cache.lookup(key)
        return await self._link.request(calls.get(key, ABSENT)) if found is UNKNOWN else found

    async def __getitem__(self, key: Any) -> Any:
        """`await db[key]`; KeyError if there is no such key."""
        found = await self._read(str(key))
        if found is ABSENT:
            raise KeyError(str(key))
        return found

    # Without these Python would take __getitem__ for a sequence's, and count on and on
    __contains__ = None
    __iter__ = None

    async def exists(self, key: Any) -> bool:
        """Whether there is such a key."""
        found = self._cache.lookup(str(key))
        if found is UNKNOWN:
            return await self._link.request(calls.exists(str(key)))
        return found is not ABSENT

    async def len(self) -> int:
        """How many keys there are."""
        return await self._link.request(calls.len_())

    async def __aiter__(self) -> AsyncIterator[str]:
        for key in await self.all():
            yield key

    async def keys(self) -> AsyncIterator[str]:
        """`async for key in db.keys()`: as they are at its start."""
        for key in await self.all():
            yield key

    async def items(self) -> AsyncIterator[tuple[str, Any]]:
        """`async for key, value in db.items()`: as they are at its start."""
        for item in (await self.db).items():
            yield item

    async def values(self) -> AsyncIterator[Any]:
        """`async for value in db.values()`: as they are at its start."""
        for value in (await self.db).values():
            yield value

    async def pop(self, key: Any, default: Any = calls.MISSING) -> Any:
        """Remove `key` and return its value, or `default`; KeyError without one. Atomic."""
        return await self._link.request(calls.pop(str(key), default))

    async def popitem(self) -> tuple[str, Any]:
        """Remove the item that was inserted last and return it; KeyError if empty. Atomic."""
        return await self._link.request(calls.popitem())

    async def setdefault(self, key: Any, default: Any = None) -> Any:
        """The value of `key`, which is set to `default` first if there is none. Atomic."""
        return await self._link.request(calls.setdefault(str(key), default))

    async def update(self, /, *args: Any, **kwargs: Any) -> None:
        """Set all items of a mapping or of pairs, and of keywords, at once or not at all."""
        await self.set_many(dict(*args, **kwargs))

    async def clear(self) -> None:
        """Remove everything."""
        await self.purge()

    # Many at once: each is one request, and happens whole or not at all

    async def set_many(self, items: Mapping[Any, Any]) -> bool:
        """Set all `items`; True. InvalidValue names the key at fault, and nothing is set."""
        return await self._link.request(calls.set_many(items))

    async def get_many(self, keys: Iterable[Any]) -> dict[str, Any]:
        """The values of those of `keys` that are there, all read at the same moment."""
        return await self._link.request(calls.get_many(keys))

    async def remove_many(self, keys: Iterable[Any]) -> int:
        """Remove `keys`; how many of them were there."""
        return await self._link.request(calls.remove_many(keys))

    def batch(self) -> AsyncBatch:
        """Several writes as one: `async with db.batch() as batch: batch.set(...)`; no await inside.

        They are sent at the end of the block, as one request: all of them happen at once, or, if
        one of them is refused, none. An exception in the block means none. Then `batch.results`
        has what each of them returned.
        """
        return AsyncBatch(self._link.request)

    # About itself

    async def info(self, *, reset: bool = False) -> dict[str, Any]:
        """What the daemon tells of itself; see PickleDB.info."""
        return await self._link.request(calls.info(reset=reset))

    async def ping(self) -> bool:
        """True if the daemon answers."""
        return await self._link.request(calls.ping())

    async def close(self) -> None:
        """Drop the connections; the object cannot be used any more. Nothing is saved by it."""
        self._link.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location!r})"
