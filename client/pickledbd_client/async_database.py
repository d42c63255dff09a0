"""AsyncPickleDB: PickleDB for asyncio, with many requests in flight on one connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from pickledbd_client import calls, modify
from pickledbd_client.async_link import AsyncLink
from pickledbd_client.async_locks import AsyncLock
from pickledbd_client.async_watching import AsyncWatch
from pickledbd_client.batch import AsyncBatch
from pickledbd_client.cache import ABSENT, UNKNOWN
from pickledbd_client.calls import Some, Version
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

    async def set(
        self, key: Any, value: Any, *, ttl: float | None = None, token: int | None = None
    ) -> bool:
        """Store `value` under `key`; True. InvalidValue if it is not JSON, nor bytes.

        `ttl`: the key is gone after so many seconds; without it, a key that was to expire does so
        no more. `token`, here and elsewhere: only if the lock that has it is held; else LockLost.
        """
        return await self._link.request(calls.set_(str(key), value, ttl=ttl, token=token))

    async def get(self, key: Any, default: Any = None) -> Any:
        """A copy of the value of `key`, or `default` if there is none."""
        found = await self._read(str(key))
        return default if found is ABSENT else found

    async def all(self, prefix: str = "", *, glob: str | None = None) -> list[str]:
        """All keys, or some, in the order of their insertion; see PickleDB.all."""
        return await self._link.request(calls.all_(Some(prefix, glob)))

    async def remove(self, key: Any, *, token: int | None = None) -> bool:
        """Remove `key`; True if it was there."""
        return await self._link.request(calls.remove(str(key), token=token))

    async def purge(self, *, token: int | None = None) -> bool:
        """Remove everything; True."""
        return await self._link.request(calls.purge(token=token))

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
        if exc_type is None and not self._route.read_only:
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

    async def keys(self, prefix: str = "", *, glob: str | None = None) -> AsyncIterator[str]:
        """`async for key in db.keys()`: as they are at its start; some: see PickleDB.all."""
        for key in await self.all(prefix, glob=glob):
            yield key

    async def items(
        self, prefix: str = "", *, glob: str | None = None
    ) -> AsyncIterator[tuple[str, Any]]:
        """`async for key, value in db.items()`: as they are at its start."""
        for item in (await self._link.request(calls.dump(Some(prefix, glob)))).items():
            yield item

    async def values(self, prefix: str = "", *, glob: str | None = None) -> AsyncIterator[Any]:
        """`async for value in db.values()`: as they are at its start."""
        for value in (await self._link.request(calls.dump(Some(prefix, glob)))).values():
            yield value

    async def pop(self, key: Any, default: Any = calls.MISSING, *, token: int | None = None) -> Any:
        """Remove `key` and return its value, or `default`; KeyError without one. Atomic."""
        return await self._link.request(calls.pop(str(key), default, token=token))

    async def popitem(self, *, token: int | None = None) -> tuple[str, Any]:
        """Remove the item that was inserted last and return it; KeyError if empty. Atomic."""
        return await self._link.request(calls.popitem(token=token))

    async def setdefault(self, key: Any, default: Any = None, *, token: int | None = None) -> Any:
        """The value of `key`, which is set to `default` first if there is none. Atomic."""
        return await self._link.request(calls.setdefault(str(key), default, token=token))

    async def update(self, /, *args: Any, **kwargs: Any) -> None:
        """Set all items of a mapping or of pairs, and of keywords, at once or not at all."""
        await self.set_many(dict(*args, **kwargs))

    async def clear(self) -> None:
        """Remove everything."""
        await self.purge()

    # Many at once: each is one request, and happens whole or not at all

    async def set_many(
        self, items: Mapping[Any, Any], *, ttl: float | None = None, token: int | None = None
    ) -> bool:
        """Set all `items`; True. InvalidValue names the key at fault, and nothing is set."""
        return await self._link.request(calls.set_many(items, ttl=ttl, token=token))

    async def get_many(self, keys: Iterable[Any]) -> dict[str, Any]:
        """The values of those of `keys` that are there, all read at the same moment."""
        return await self._link.request(calls.get_many(keys))

    async def remove_many(self, keys: Iterable[Any], *, token: int | None = None) -> int:
        """Remove `keys`; how many of them were there."""
        return await self._link.request(calls.remove_many(keys, token=token))

    def batch(self, *, token: int | None = None) -> AsyncBatch:
        """Several writes as one: `async with db.batch() as batch: batch.set(...)`; no await inside.

        They are sent at the end of the block, as one request: all of them happen at once, or, if
        one of them is refused, none. An exception in the block means none. Then `batch.results`
        has what each of them returned. `batch.if_version(key, version)` makes it conditional: if
        somebody has changed that key meanwhile, nothing happens and Conflict is raised.
        """
        return AsyncBatch(self._link.request, token)

    # Together with others; PickleDB says more about each

    async def incr(
        self, key: Any, by: float = 1, default: float = 0, *, token: int | None = None
    ) -> Any:
        """Add `by` to the number at `key`, or to `default` if there is none; the sum. Atomic."""
        return await self._link.request(calls.incr(str(key), by, default, token=token))

    async def get_versioned(self, key: Any) -> tuple[Any, Version]:
        """A copy of the value of `key`, and its version; (None, 0) if there is none."""
        return await self._link.request(calls.get_versioned(str(key)))

    async def cas(
        self,
        key: Any,
        version: Version,
        value: Any,
        *,
        ttl: float | None = None,
        token: int | None = None,
    ) -> bool:
        """Compare and set: store `value` if the version of `key` is still this; whether it was."""
        return await self._link.request(calls.cas(str(key), version, value, ttl=ttl, token=token))

    async def modify(
        self,
        key: Any,
        fn: Callable[[Any], Any],
        default: Any = None,
        *,
        tries: int = 100,
        token: int | None = None,
    ) -> Any:
        """Store `fn(value)` for the value of `key`, or for `default`; what was stored.

        Again if others have changed it meanwhile; Conflict after so many `tries`. `fn` is a plain
        function.
        """
        steps = modify.modify(str(key), fn, default, tries, token)
        return await modify.drive_async(steps, self._link.request, asyncio.sleep)

    def lock(self, name: Any, ttl: float = 30.0, timeout: float | None = None) -> AsyncLock:
        """A lock that all clients share: `async with db.lock("name") as held: ...`.

        The task that holds it may take it again.
        """
        return AsyncLock(self._link.request, self._locks, name, ttl, timeout)

    def watch(self, prefix: str = "", since: int | None = None) -> AsyncWatch:
        """An async iterator of what is changed, in keys that begin with `prefix`.

        `async for change in db.watch(): ...` tells what is changed from its first step on;
        `async with db.watch() as changes: ...` from the beginning of the block, and lets go of it
        at its end.
        """
        watch = AsyncWatch(self._link.request, self._link.tell, prefix, since)
        self._watches[id(watch)] = watch
        return watch

    # How long a key lives

    async def ttl(self, key: Any) -> float | None:
        """Seconds until `key` is gone; None if it does not expire, or is not there."""
        return await self._link.request(calls.ttl(str(key)))

    async def expire(self, key: Any, seconds: float, *, token: int | None = None) -> bool:
        """Have `key` be gone after so many seconds; True if it is there."""
        return await self._link.request(calls.expire(str(key), seconds, token=token))

    async def persist(self, key: Any, *, token: int | None = None) -> bool:
        """Have `key` not expire; True if it was to."""
        return await self._link.request(calls.persist(str(key), token=token))

    # About itself

    async def info(self, *, reset: bool = False) -> dict[str, Any]:
        """What the daemon tells of itself; see PickleDB.info."""
        return await self._link.request(calls.info(reset=reset))

    async def ping(self) -> bool:
        """True if the daemon answers."""
        return await self._link.request(calls.ping())

    async def close(self) -> None:
        """Drop the connections; the object cannot be used any more. Nothing is saved by it.

        Its locks are let go of, and its watches end.
        """
        self._end_watches()  # those that are waited for end with the connections
        self._locks.close(wait=False)  # else, in all tasks of this event loop
        self._link.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location!r})"
