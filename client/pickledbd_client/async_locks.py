"""`lock()` for asyncio: a task holds a lock as a thread does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

from pickledbd_client.calls import Call
from pickledbd_client.keeper import Held
from pickledbd_client.locks import BaseLock, Locks


class AsyncLock(BaseLock):
    """`async with db.lock(name) as held:` see AsyncPickleDB.lock."""

    def __init__(
        self,
        request: Callable[[Call[Any]], Awaitable[Any]],
        locks: Locks,
        name: Any,
        ttl: float,
        timeout: float | None,
    ) -> None:
        super().__init__(locks, name, ttl, timeout)
        self._request = request
        # What is held by whoever took this last: wait_for takes it in a task of its own
        self._taken: dict[str, Held] = {}

    async def acquire(self) -> Held:
        """Wait for the lock. RequestTimeout if it was not free in time."""
        keeper = self._locks.keeper()
        mine = self._locks.of_task(asyncio.current_task())
        held = self._again(mine)
        if held is not None:
            return held
        held, call = self._begin(keeper)
        try:
            token = await self._request(call)
            mine[self.name] = self._got(keeper, held, token)
        except BaseException:
            mine.pop(self.name, None)
            keeper.give_up(held)
            raise
        self._taken = mine
        return held

    async def release(self) -> None:
        """Give it back: what this task holds, or else what was taken by this object.

        LockLost if it was not held any more.
        """
        keeper = self._locks.keeper()
        mine = self._locks.of_task(asyncio.current_task())
        held = self._last(mine if self.name in mine else self._taken)
        if held is None:
            return
        try:
            was_held = await self._request(keeper.drop(held))
        except BaseException:
            keeper.give_up(held)
            raise
        self._released(was_held=was_held)

    async def __aenter__(self) -> Held:
        return await self.acquire()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.release()
        except Exception:
            if exc_type is None:  # else that is what the user is to hear of
                raise
