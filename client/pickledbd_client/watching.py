"""`watch()`: the changes that others make, one after the other.

May live here: what is asked next, and what becomes of the answers, without I/O; and around that
the iterator. Nothing is polled: the daemon answers when there is something to tell.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

from pickledbd_client import calls
from pickledbd_client.calls import Call, Some
from pickledbd_client.route import generation
from pickledbd_protocol import InvalidValue, PickleDBError

_making = threading.RLock()
"""Held while a watch begins anew in a forked child: of threads that find the fork, one does so."""
os.register_at_fork(after_in_child=_making._at_fork_reinit)  # type: ignore[attr-defined] # noqa: SLF001 - as the standard library does


class Change(NamedTuple):
    """One key was set or removed (or has expired)."""

    key: str
    value: Any
    """None if it was removed."""
    removed: bool
    seq: int
    """Grows with every change; to go on from here later: `watch(prefix, since=seq)`."""


@dataclass(frozen=True)
class Resync:
    """The changes since the last are not known any more: go on from this instead.

    Because the watcher was too far behind, because nobody asked for changes for a minute, because
    very much was changed at once, or because the daemon was started again.
    """

    items: dict[str, Any]
    """All items whose keys have the prefix, at one moment."""
    seq: int
    """Of that moment; changes after it follow.

    Among them may be the removal of a key that is not in `items`, as it had expired just then.
    """


class _Seen(NamedTuple):
    """What a watcher knows."""

    found: deque[Change | Resync]
    upto: int | None
    """The sequence of the newest change that it was told; None if it is still to begin."""
    lost: bool = False
    """Whether changes were missed since."""


class Watching:
    """A watch without I/O: `ask` what `call` tells until there is something `found`."""

    def __init__(self, prefix: Any, since: int | None) -> None:
        if since is not None and (type(since) is not int or not 0 <= since < 2**53):
            raise InvalidValue(f"watch: since is the .seq of a change, not {since!r}")
        self.watcher = uuid.uuid4().hex  # of what is asked now
        self.closed = False
        self._some = Some(prefix)
        self._seen = _Seen(deque(), since)

    @property
    def found(self) -> deque[Change | Resync]:
        """What was told and is still to be given to the user."""
        return self._seen.found

    def call(self) -> Call[Any]:
        if self._seen.lost:
            return calls.snapshot(self._some)
        return calls.watch(self._some.prefix, self._seen.upto, self.watcher)

    def left(self) -> Call[bool]:
        """What ends the waiting for what was asked; what is asked next is another's."""
        watcher, self.watcher = self.watcher, uuid.uuid4().hex
        return calls.unwatch(watcher)

    def take(self, answer: Any) -> None:
        """Know what was told: all of it or, where a signal's handler raises meanwhile, nothing."""
        if self._seen.lost:
            items, seq = answer
            self._seen = _Seen(deque([Resync(items, seq)]), seq)
            return
        changes = (
            Change(key, value[0] if value else None, not value, seq)
            for seq, key, *value in answer.get("changes", ())
        )
        upto = answer.get("seq", self._seen.upto)
        self._seen = _Seen(deque(changes), upto, lost=answer.get("resync", False))


class _Turn(Protocol):
    def locked(self) -> bool: ...


Turn = TypeVar("Turn", bound=_Turn)


class BaseWatch(Generic[Turn]):
    """What Watch and AsyncWatch have in common."""

    def __init__(self, turn: Callable[[], Turn], prefix: Any, since: int | None) -> None:
        """`turn` makes a lock: of those that share the watch, one asks."""
        self._make_turn = turn
        self._turn = turn()
        self._generation = generation()
        self._watching = Watching(prefix, since)

    def _mine(self) -> Watching:
        """The watch, which in a forked child begins anew: what waits is the parent's."""
        if self._generation != generation():
            with _making:
                if self._generation != generation():
                    self._turn = self._make_turn()
                    self._watching.left()
                    self._generation = generation()
        return self._watching

    def _end(self) -> Call[bool] | None:
        """End the iteration; what is to be asked if somebody waits for its next step."""
        watching = self._mine()
        watching.closed = True
        return calls.unwatch(watching.watcher) if self._turn.locked() else None


class Watch(BaseWatch[threading.Lock]):
    """An iterator of Change and, where changes were missed, Resync. It ends when it is closed."""

    def __init__(self, request: Callable[[Call[Any]], Any], prefix: Any, since: int | None) -> None:
        super().__init__(threading.Lock, prefix, since)
        self._request = request
        if since is None:
            self._ask()  # so that what happens from now on is told

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Change | Resync:
        watching = self._mine()
        while not watching.closed:
            with contextlib.suppress(IndexError):
                return watching.found.popleft()
            self._ask()
        raise StopIteration

    def _ask(self) -> None:
        watching = self._mine()
        with self._turn:
            try:
                if not (watching.closed or watching.found):
                    watching.take(self._request(watching.call()))
            except PickleDBError:
                if not watching.closed:  # else it was closed together with the database
                    raise

    def close(self) -> None:
        """End the iteration, also where another thread waits for its next step."""
        call = self._end()
        if call is not None:
            with contextlib.suppress(PickleDBError):  # who waits for nobody hears so himself
                self._request(call)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
