"""`batch()`: calls that are collected, to happen as one, all or nothing.

Each value is encoded when it is given, so that a wrong one is refused there, and what becomes of it
later does not matter. Threads may share one batch: what each of them gives it stays in its order.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from pickledbd_client import calls
from pickledbd_client.calls import Call, Version


class Steps:
    """The calls collected so far."""

    def __init__(self, token: int | None = None) -> None:
        self._token = None if token is None else calls.checked_token(token)
        self.results: list[Any] = []
        """What the calls returned, in their order; empty until they have happened."""
        self._calls: list[Call[Any]] = []
        self._covers: list[int] = []  # how many of the user's calls each of these stands for
        # What was set since the last of them: the items, their keys, and by how many calls
        self._pieces: list[bytes] = []
        self._keys: set[str] = set()
        self._settings = 0
        self._begun = self._ended = False
        self._turn = threading.RLock()  # also a signal's handler may add something

    def set(self, key: Any, value: Any, *, ttl: float | None = None) -> None:
        """As PickleDB.set."""
        self._refuse_if_ended()
        key = str(key)
        if ttl is not None:
            self._add(calls.set_(key, value, ttl=ttl))
        else:
            self._put(frozenset((key,)), [calls.piece_of(key, value)])

    def remove(self, key: Any) -> None:
        """As PickleDB.remove."""
        self._add(calls.remove(str(key)))

    def set_many(self, items: Mapping[Any, Any], *, ttl: float | None = None) -> None:
        """As PickleDB.set_many."""
        pieces = calls.pieces_of(items)
        if ttl is not None:
            self._add(calls.set_pieces(pieces, ttl=ttl, whole=True))
        else:
            self._put(frozenset(map(str, items)), pieces)

    def incr(self, key: Any, by: float = 1, default: float = 0) -> None:
        """As PickleDB.incr."""
        self._add(calls.incr(str(key), by, default))

    def expire(self, key: Any, seconds: float) -> None:
        """As PickleDB.expire."""
        self._add(calls.expire(str(key), seconds))

    def persist(self, key: Any) -> None:
        """As PickleDB.persist."""
        self._add(calls.persist(str(key)))

    def if_version(self, key: Any, version: Version) -> None:
        """Have all of the batch happen only if this is still the key's version; else Conflict.

        As `get_versioned` told it; 0: there is no such key. To be said before the batch changes
        that key. Conflict is raised at the end; in `results` it stands for True.
        """
        self._add(calls.if_version(str(key), version))

    def remove_many(self, keys: Iterable[Any]) -> None:
        """As PickleDB.remove_many."""
        self._add(calls.remove_many(keys))

    def purge(self) -> None:
        """As PickleDB.purge."""
        self._add(calls.purge())

    def update(self, /, *args: Any, **kwargs: Any) -> None:
        """As PickleDB.update."""
        self.set_many(dict(*args, **kwargs))

    def __setitem__(self, key: Any, value: Any) -> None:
        self.set(key, value)

    def __delitem__(self, key: Any) -> None:
        """Remove `key`, if it is there."""
        self.remove(key)

    def _add(self, call: Call[Any]) -> None:
        with self._turn:
            self._refuse_if_ended()
            self._close_pieces(whole=True)
            self._calls.append(call)
            self._covers.append(1)

    def _put(self, keys: frozenset[str], pieces: list[bytes]) -> None:
        with self._turn:
            self._refuse_if_ended()
            if not self._keys.isdisjoint(keys):  # or the daemon would not look at what was before
                self._close_pieces(whole=True)
            self._keys |= keys
            self._pieces += pieces
            self._settings += 1

    def _close_pieces(self, *, whole: bool) -> None:
        """Make one call of what was set by calls one after the other."""
        if self._settings:
            self._calls.append(calls.set_pieces(self._pieces, whole=whole))
            self._covers.append(self._settings)
            self._pieces, self._keys, self._settings = [], set(), 0

    def _refuse_if_ended(self) -> None:
        if self._ended:
            raise ValueError("this batch has ended; begin another with batch()")

    def _begin(self) -> Self:
        self._refuse_if_ended()
        if self._begun:
            raise ValueError("this batch has begun already; what is to be in it can be added to it")
        self._begun = True
        return self

    def _end(self, exc_type: type[BaseException] | None) -> Call[list[Any]] | None:
        """What is to be asked, if anything is."""
        with self._turn:
            if self._ended:
                return None
            self._close_pieces(whole=bool(self._calls) or self._token is not None)
            self._ended = True
        if not self._calls or exc_type is not None:
            return None
        return calls.batch(self._calls, token=self._token)

    def _happened(self, results: list[Any]) -> None:
        for result, covers in zip(results, self._covers, strict=True):
            self.results += [result] * covers


class Batch(Steps):
    """`with db.batch() as batch:` see PickleDB.batch."""

    def __init__(
        self, request: Callable[[Call[list[Any]]], list[Any]], token: int | None = None
    ) -> None:
        super().__init__(token)
        self._request = request

    def __enter__(self) -> Self:
        return self._begin()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        call = self._end(exc_type)
        if call is not None:
            self._happened(self._request(call))


class AsyncBatch(Steps):
    """`async with db.batch() as batch:` see AsyncPickleDB.batch. Its calls are not awaited."""

    def __init__(
        self, request: Callable[[Call[list[Any]]], Awaitable[list[Any]]], token: int | None = None
    ) -> None:
        super().__init__(token)
        self._request = request

    async def __aenter__(self) -> Self:
        return self._begin()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        call = self._end(exc_type)
        if call is not None:
            self._happened(await self._request(call))
