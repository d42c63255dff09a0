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
        super().__init__(request, locks, name, ttl, timeout)
        # What the tasks hold that took this, the first first: wait_for does that in one of its own
        self._taken: list[tuple[asyncio.Task[Any], dict[str, Held]]] = []

    async def acquire(self) -> Held:
        """Wait for the lock. RequestTimeout if it was not free in time."""
        keeper = self._locks.keeper()
        task = _current_task()
        mine = self._locks.of_task(task)
        held = self._again(mine)
        if held is not None:
            return held
        held = keeper.new(self.name, self._ttl)
        try:
            token = await self._request(self._call(keeper, held))
            mine[self.name] = self._got(keeper, held, token)
            self._taken.append((task, mine))
        except BaseException:
            self._give_up(keeper, held, mine)
            raise
        return held

    async def release(self) -> None:
        """Give it back: what this task holds, or else what one took by this object that has ended.

        LockLost if it was not held any more.
        """
        keeper = self._locks.keeper()
        mine = self._locks.of_task(_current_task())
        if self.name not in mine:
            ended = (held for task, held in self._taken if task.done())
            mine = next(ended, mine)
        held = self._last(mine)
        if held is None:
            return
        self._taken = [each for each in self._taken if each[1] is not mine]
        try:
            was_held = await self._request(keeper.drop(held))
        except BaseException:
            self._give_up(keeper, held, mine)
            raise
        self._demand(was_held)

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


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:  # a coroutine that is driven by hand
        raise RuntimeError("a lock is held by a task: use it inside of one")
    return task
