"""Limits: what a daemon takes, from whom, and how much of it; and the errors where it is too much.

May live here: the numbers, as the options have them, and what is said of them. Each error names
what was over which limit, the option, and what to do. Who is judged by a limit looks it up here.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from pickledbd.store import ENTRY_BYTES, Size
from pickledbd_protocol import PickleDBError, TooLarge, Unavailable, WritesRefused, shown

MIB = 2**20

CANONICAL_GROWTH = 4
"""A value's text is at most so many times as long as it was in the request (in escapes: less)."""


@dataclass(frozen=True)
class Limits:
    """All limits but that of a request, which is the status's."""

    key_bytes: int = 64 * 2**10
    value_bytes: int = 256 * MIB
    keys: int | None = None
    memory_bytes: int | None = None
    clients: int = 10_000
    waiting: int = 20_000
    """Requests that wait for something, and locks that are held; of one connection half of it."""
    unread_bytes: int = 64 * MIB
    """Replies that one connection leaves unread, and requests that wait for it to read them; of
    all connections together four times that."""

    @classmethod
    def of(cls, options: argparse.Namespace) -> Limits:
        """As the command line has them."""
        return cls(
            options.max_key,
            (options.max_value or options.max_request) * MIB,
            options.max_keys,
            options.max_memory and options.max_memory * MIB,
            options.max_clients,
            options.max_waiting,
            options.max_unread * MIB,
        )

    def told(self) -> dict[str, Any]:
        """For `info`."""
        return asdict(self)

    @property
    def bounded(self) -> bool:
        """Whether the store may only grow so far."""
        return self.keys is not None or self.memory_bytes is not None

    def may_exceed(self, request_bytes: int) -> bool:
        """Whether a key or value of a request so large can be too large: most are not looked at."""
        return request_bytes * CANONICAL_GROWTH > min(self.key_bytes, self.value_bytes)

    def check_key(self, key: str) -> None:
        """TooLarge."""
        if len(key) * 4 > self.key_bytes and len(key.encode()) > self.key_bytes:
            raise TooLarge(
                f"key {shown(key)} has {len(key.encode()):,} bytes, and this daemon takes keys of "
                f"up to {self.key_bytes:,}; use a shorter one, or start it with a larger --max-key"
            )

    def check_items(self, keys: Collection[str], texts: Collection[bytes]) -> None:
        """TooLarge if one of these is, be it a key or a value."""
        if max(map(len, keys), default=0) * 4 > self.key_bytes:
            for key in keys:
                self.check_key(key)
        if max(map(len, texts), default=0) > self.value_bytes:
            key, text = next(
                each for each in zip(keys, texts, strict=True) if len(each[1]) > self.value_bytes
            )
            raise TooLarge(
                f"the value of key {shown(key)} has {len(text):,} bytes, and this daemon takes "
                f"values of up to {self.value_bytes:,}; divide it, or start the daemon with a "
                "larger --max-value"
            )

    def check_growth(self, before: Size, after: Size, what: str) -> None:
        """WritesRefused if that made what is over a limit larger: what shrinks it is welcome."""
        if self.keys is not None and after.keys > max(self.keys, before.keys):
            raise WritesRefused(
                f"{what} was refused, nothing was changed: there would be {after.keys:,} keys, and "
                f"this daemon holds up to {self.keys:,}; remove some, or start it with a larger "
                "--max-keys"
            )
        if self.memory_bytes is not None and after.bytes > max(self.memory_bytes, before.bytes):
            raise WritesRefused(
                f"{what} was refused, nothing was changed: keys and values would take "
                f"{after.bytes / MIB:,.1f} MiB of memory, and this daemon gives them "
                f"{self.memory_bytes // MIB:,}; remove some, or start it with a larger "
                "--max-memory"
            )

    def may_refuse(self, size: Size, request_bytes: int) -> bool:
        """Whether a request so large might be refused, where so much is there."""
        more = Size(request_bytes, request_bytes * ENTRY_BYTES + request_bytes * CANONICAL_GROWTH)
        return self.bounded and self.exceeded_by(size.plus(more)) is not None

    def exceeded_by(self, size: Size) -> str | None:
        """What was loaded is over a limit: the warning."""
        over = []
        if self.keys is not None and size.keys > self.keys:
            over.append(f"{size.keys:,} keys, over --max-keys {self.keys:,}")
        if self.memory_bytes is not None and size.bytes > self.memory_bytes:
            most = self.memory_bytes // MIB
            over.append(f"{size.bytes / MIB:,.1f} MiB, over --max-memory {most:,}")
        if not over:
            return None
        return f"it holds {' and '.join(over)}: it is served, but nothing can be added"

    def too_many_clients(self, clients: int) -> PickleDBError:
        """For a connection that is one too many."""
        return Unavailable(
            f"this daemon already has {clients:,} clients, the most that it serves; close "
            "some, or start it with a larger --max-clients (and limit of open files)"
        )

    def check_waiting(self, waiting: int, of_peer: int, what: str) -> None:
        """Unavailable if no further request may wait."""
        if of_peer >= max(1, self.waiting // 2):
            who, most = "one connection has", max(1, self.waiting // 2)
        elif waiting >= self.waiting:
            who, most = "all clients together have", self.waiting
        else:
            return
        raise Unavailable(
            f"a {what} would wait, but {who} {most:,} requests waiting and locks, the most that "
            "this daemon bears; nothing was done: try again later, or start it with a larger "
            "--max-waiting"
        )
