"""Watching: the newest changes, and who waits for further ones.

May live here: the *feed*, which holds committed changes by their *sequence*, and what it answers
(SPEC.md, Watching); the requests that are parked until there is a change for them are in
`watchers`. No sockets. The feed is bounded: who asks for what it does not hold any more is told to
resync. A sequence is never used twice, also not by the next daemon: it begins with the microseconds
that the clock shows.

While nobody watches, nothing is held, and a change costs no more than a comparison.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import orjson

from pickledbd.clock import now_ms
from pickledbd.watchers import Group, Peer, Watchers

CHANGES_MAX = 2**17
"""Changes that the feed holds."""

BYTES_MAX = 64 * 2**20
"""Bytes of their keys and values, at most."""

MANY = 10_000
"""Changes made at once beyond which they are not told one by one."""

TOLD_AT_ONCE = 250
"""Changes in an answer, at most."""

TOLD_BYTES = 2**18
"""Bytes of an answer beyond which it is not made larger."""

LOOKED_AT_ONCE = 1000
"""Changes that are looked at for one request, at most."""

ANSWER_SECONDS = 0.001
"""How long those who were woken are answered at a time; the others then have their turn later."""

IDLE_SECONDS = 60.0
"""How long after the last watcher has gone its changes are still held, for it to come back."""

Change = tuple[str, bytes | None]
"""A key, and the text of its value; None if it was removed."""


class Feed:
    """The changes, and the requests that wait for them."""

    def __init__(self) -> None:
        self._sequence = now_ms() * 1000  # of the newest change
        # Their keys and values. In two lists, as the garbage collector would look at each pair
        self._keys: list[str | None] = []
        self._values: list[bytes | None] = []
        self._first = 0  # in these lists; what stands before was given up
        self._bytes = 0
        self._watchers = Watchers()
        self.active = False
        """Whether changes are to be noted one by one."""
        self._idle_since = 0.0
        self.told = 0
        """How many changes watchers were told of, each time one of them was."""

    def __len__(self) -> int:
        return len(self._watchers)

    def of(self, peer: Peer) -> int:
        """How many requests of this connection wait."""
        return self._watchers.of(peer)

    @property
    def sequence(self) -> int:
        """Of the newest change."""
        return self._sequence

    # For the store

    def note(self, key: str, value: bytes | None) -> None:
        """A change was committed. Only while it is `active`."""
        self._sequence += 1
        self._keys.append(key)
        self._values.append(value)
        self._bytes += _size(key, value)
        self._watchers.wake(key, self._sequence - 1)
        if self._is_full:
            self._trim()

    def note_all(self, count: int, changes: Iterable[Change]) -> None:
        """So many changes were committed at once."""
        if self.active and count <= MANY:
            for key, value in changes:
                self.note(key, value)
        else:
            self.skip()

    def skip(self) -> None:
        """Changes were committed that are not told one by one."""
        self._sequence += 1
        if self.active:
            self._keys.clear()
            self._values.clear()
            self._first = self._bytes = 0
            self._watchers.wake_all(self._sequence - 1)

    @property
    def _is_full(self) -> bool:
        return self._bytes > BYTES_MAX or len(self._keys) - self._first > CHANGES_MAX

    def _trim(self) -> None:
        while self._is_full:
            at = self._first
            self._bytes -= _size(self._keys[at] or "", self._values[at])
            self._keys[at] = self._values[at] = None
            self._first += 1
        if self._first > CHANGES_MAX:
            del self._keys[: self._first], self._values[: self._first]
            self._first = 0

    # For the engine

    @property
    def restless(self) -> bool:
        """Whether there is somebody to be answered."""
        return self._watchers.restless

    def ask(
        self, peer: Peer, request_id: int, *, prefix: str, since: int | None, watcher: str
    ) -> bytes | None:
        """The answer to a request, or None if it is parked."""
        self.active = True
        self._idle_since = time.monotonic()
        if self._watchers.has_left(watcher):  # a moment before
            return b"{}"
        if since is None:
            return self._answer([])
        if self._lacks(since):
            return self._resync()
        found, upto = self._since(since, prefix)
        if found or upto < self._sequence:
            self.told += len(found)
            return self._answer(found, upto)
        self._watchers.park((peer, request_id), prefix, watcher)
        return None

    def answers(self) -> Iterable[tuple[Peer, int, bytes]]:
        """The answers to those whom the changes since they were parked concern, or to some."""
        until = time.monotonic() + ANSWER_SECONDS
        known: Group | None = None
        answer = b""
        count = 0
        while (taken := self._watchers.take()) is not None:
            name, group = taken
            if group is not known:
                known = group
                if self._lacks(group.since):
                    answer, count = self._resync(), 0
                else:
                    found, upto = self._since(group.since, group.prefix)
                    answer, count = self._answer(found, upto), len(found)
            self.told += count
            yield *name, answer
            if time.monotonic() >= until:
                return

    def leave(self, watcher: str) -> list[tuple[Peer, int]]:
        """Have the requests of a watcher wait no longer, nor what may be on its way; these."""
        return self._watchers.leave(watcher)

    def gone(self, peer: Peer) -> None:
        """The connection of `peer` was lost."""
        self._watchers.gone(peer)

    def upkeep(self) -> None:
        """Hold no changes if nobody has watched for long."""
        now = time.monotonic()
        if self._watchers or not self.active:
            self._idle_since = now
        elif now - self._idle_since > IDLE_SECONDS:
            self.skip()
            self.active = False

    def _lacks(self, since: int) -> bool:
        held = len(self._keys) - self._first
        return not self._sequence - held <= since <= self._sequence

    def _since(self, since: int, prefix: str) -> tuple[list[bytes], int]:
        """The texts of the changes of the prefix, and up to which sequence that are all."""
        found: list[bytes] = []
        size = 0
        start = len(self._keys) - (self._sequence - since)
        some = slice(start, start + LOOKED_AT_ONCE)
        for key, value in zip(self._keys[some], self._values[some], strict=True):
            since += 1
            if key is not None and key.startswith(prefix):
                rest = b"" if value is None else b",%b" % value
                found.append(b"[%d,%b%b]" % (since, orjson.dumps(key), rest))
                size += len(found[-1])
                if len(found) >= TOLD_AT_ONCE or size >= TOLD_BYTES:
                    break
        return found, since

    def _answer(self, found: list[bytes], upto: int | None = None) -> bytes:
        upto = self._sequence if upto is None else upto
        return b'{"changes":[%b],"seq":%d}' % (b",".join(found), upto)

    def _resync(self) -> bytes:
        return b'{"resync":true,"seq":%d}' % self._sequence


def _size(key: str, value: bytes | None) -> int:
    return len(key) + (0 if value is None else len(value))
