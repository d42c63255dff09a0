"""`watch()` for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from pickledbd_client import calls
from pickledbd_client.calls import Call
from pickledbd_client.watching import Change, Resync, Watching


class AsyncWatch:
    """Watch for `async for`. A step that is cancelled loses nothing: the next one goes on."""

    def __init__(
        self, request: Callable[[Call[Any]], Awaitable[Any]], prefix: Any, since: int | None
    ) -> None:
        self._request = request
        self._watching = Watching(prefix, since)
        self._begun = since is not None
        self._asking: asyncio.Future[Any] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change | Resync:
        watching = self._watching
        while not watching.closed:
            if watching.found:
                return watching.found.popleft()
            await self._ask()
        raise StopAsyncIteration

    async def _ask(self) -> None:
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._request(self._watching.call()))
        answer = await asyncio.shield(self._asking)
        if self._asking is not None:
            self._asking = None
            self._watching.take(answer)

    async def close(self) -> None:
        """End the iteration, also where another task waits for its next step."""
        if not self._watching.closed:
            self._watching.closed = True
            await self._request(calls.unwatch(self._watching.watcher))

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
