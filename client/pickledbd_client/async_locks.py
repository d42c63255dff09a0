"""`lock()` for asyncio: a task holds a lock as a thread does."""

from __future__ import annotations

import asyncio
from types import TracebackType

from pickledbd_client.held import Held, Mine
from pickledbd_client.locks import BaseLock


class AsyncLock(BaseLock):
    """`async with db.lock(name) as held:` see AsyncPickleDB.lock."""

    async def acquire(self) -> Held:
        """Wait for the lock. RequestTimeout if it was not free in time."""
        mine = self._mine()
        held = self._again(mine)
        if held is not None:
            held.times += 1
            return held
        held = self._new(mine)
        try:
            return self._got(held, mine, await self._request(self._asking(held)))
        except BaseException as error:
            self._failed(held, error)
            raise

    async def __aenter__(self) -> Held:
        mine = self._mine()
        mine.blocks.append(self)
        times = self._times(mine)
        try:
            return await self.acquire()
        except BaseException:
            self._not_begun(mine, times)
            raise

    async def release(self) -> None:
        """Give it back: what this task holds, or else what one took by this object that has ended.

        LockLost if it was not held any more.
        """
        await self.__aexit__(None, None, None, False)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        entered: bool = True,
    ) -> None:
        held: Held | None = None
        try:
            held = self._find(entered=entered)
            if held is None:
                raise self._not_held()
            if held.times > 1:
                held.times -= 1
                return
            self._released(held, await self._request(held.keeper.release(held.lease)))
        except BaseException as error:
            self._not_ended(held, error, entered=entered)
            if exc_type is None or not isinstance(error, Exception):
                raise

    def _mine(self) -> Mine:
        try:
            task = asyncio.current_task()
        except RuntimeError:  # its event loop is closed, and what it left is being cleared away
            task = None
        return self._locks.here().of_task(task)
