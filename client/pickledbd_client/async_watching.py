"""`watch()` for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from pickledbd_client.calls import Call
from pickledbd_client.watching import BaseWatch, Change, Resync
from pickledbd_protocol import PickleDBError


class AsyncWatch(BaseWatch[asyncio.Lock]):
    """Watch for `async for`. A step that is cancelled loses nothing: the next one goes on."""

    def __init__(
        self,
        request: Callable[[Call[Any]], Awaitable[Any]],
        tell: Callable[[Call[Any]], object],
        prefix: Any,
        since: int | None,
    ) -> None:
        """`tell` asks without waiting for the answer."""
        super().__init__(asyncio.Lock, prefix, since)
        self._request = request
        self._tell = tell
        self._begun = since is not None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change | Resync:
        watching = self._mine()
        while not watching.closed:
            if watching.found:
                return watching.found.popleft()
            await self._ask()
        raise StopAsyncIteration

    async def _ask(self) -> None:
        watching = self._mine()
        async with self._turn:
            if watching.found or watching.closed:  # another task has asked
                return
            try:
                watching.take(await self._request(watching.call()))
            except PickleDBError:
                if not watching.closed:  # else it was closed together with the database
                    raise
            except asyncio.CancelledError:  # the next step asks again, from where this did
                self._tell(watching.left())
                raise

    async def close(self) -> None:
        """End the iteration, also where another task waits for its next step."""
        call = self._end()
        if call is not None:
            with contextlib.suppress(PickleDBError):  # who waits for nobody hears so himself
                await self._request(call)

    async def __aenter__(self) -> Self:
        if not self._begun:
            self._begun = True
            await self._ask()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
