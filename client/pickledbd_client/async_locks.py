"""`lock()` for asyncio: a task holds a lock as a thread does."""

from __future__ import annotations

import asyncio
from types import TracebackType

from pickledbd_client.keeper import Held
from pickledbd_client.locks import BaseLock


class AsyncLock(BaseLock):
    """`async with db.lock(name) as held:` see AsyncPickleDB.lock."""

    # What is held by whoever took this last: wait_for takes it in a task of its own
    _taken: dict[str, Held] | None = None

    async def acquire(self) -> Held:
        """Wait for the lock. RequestTimeout if it was not free in time."""
        keeper = self._locks.keeper()
        mine = self._locks.of_task(asyncio.current_task())
        held = self._again(mine)
        if held is not None:
            return held
        held, call = self._begin(keeper)
        with self._asking(keeper, held, mine):
            mine[self.name] = self._got(keeper, held, await self._request(call))
        self._taken = mine
        return held

    async def release(self) -> None:
        """Give it back: what this task holds, or else what was taken by this object.

        LockLost if it was not held any more.
        """
        keeper = self._locks.keeper()
        mine = self._locks.of_task(asyncio.current_task())
        if self.name not in mine and self._taken is not None:
            mine = self._taken
        held = self._last(mine)
        if held is None:
            return
        with self._asking(keeper, held, mine):
            was_held = await self._request(keeper.drop(held))
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
