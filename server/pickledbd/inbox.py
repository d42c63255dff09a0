"""Messages that are not taken in yet, of peers who ask more than they can be answered.

May live here: those messages, as they came. They are few bytes where a parsed request and its reply
are many, so who asks much and reads little costs little. Bounded for each and for all together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice

Peer = bytes

ALL = 2
"""Of so many peers at their limit, all may have."""

MESSAGE_BYTES = 100
"""What a message takes beside its text."""


class Inbox:
    """The messages, of each peer in the order in which they came."""

    def __init__(self, most_bytes: int) -> None:
        self.bytes = 0
        self._most = most_bytes
        self._kept: dict[Peer, deque[bytes]] = {}
        self._sizes: dict[Peer, int] = {}

    def __contains__(self, peer: Peer) -> bool:
        return peer in self._kept

    def __bool__(self) -> bool:
        return bool(self._kept)

    def put(self, peer: Peer, body: bytes) -> Peer | None:
        """Keep a message; the peer that has to go, since it has too much here."""
        size = len(body) + MESSAGE_BYTES
        self._kept.setdefault(peer, deque()).append(body)
        self._sizes[peer] = self._sizes.get(peer, 0) + size
        self.bytes += size
        if self._sizes[peer] > self._most and len(self._kept[peer]) > 1:
            return peer
        if self.bytes > ALL * self._most:
            return max(self._sizes, key=lambda each: self._sizes[each])
        return None

    def take(self, may: Callable[[Peer], bool], looks: int = 64) -> tuple[Peer, bytes] | None:
        """One message of a peer that `may`; each has its turn. Not all are asked at once."""
        for peer in list(islice(self._kept, looks)):
            kept = self._kept.pop(peer)
            if not may(peer):
                self._kept[peer] = kept
                continue
            body = kept.popleft()
            size = len(body) + MESSAGE_BYTES
            self.bytes -= size
            self._sizes[peer] -= size
            if kept:
                self._kept[peer] = kept
            else:
                del self._sizes[peer]
            return peer, body
        return None

    def gone(self, peer: Peer) -> None:
        """The connection of `peer` was lost."""
        self._kept.pop(peer, None)
        self.bytes -= self._sizes.pop(peer, 0)
