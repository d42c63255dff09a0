"""Replies on their way, and what becomes of a peer that does not read them.

May live here: sending, and the bytes that each peer has not taken yet. libzmq counts messages only,
and keeps them all. So it is given little at a time, of which pyzmq tells when it has gone, and the
rest is kept here: bounded in bytes, for each peer and for all together. Who is over that is hung up
on; its client then begins anew, and what it repeats is recognised. Nobody else's replies wait, but
large ones, where all together leave so much unread that there is no `room`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import zmq

from pickledbd.status import Status
from pickledbd.tasks import Pause

Peer = bytes

MARK_BYTES = 2**16
"""So many bytes after the last, a message is sent so that it is told when it has gone."""

WINDOW_BYTES = 2**20
"""What libzmq is given for one peer until some of it has gone; the last of it may be larger."""

MESSAGES = 1000
"""Messages that libzmq has for one peer at most."""

ROOM_BYTES = 2**20
"""Who has more than this to read is asked no further, and has no further parts made for it."""

ALL = 4
"""Of so many peers at their limit, all may leave unread."""

STALLED_SECONDS = 60.0
"""A peer that takes nothing for so long, of what waits for it, does not read any more."""

CROWDED_SECONDS = 1.0
"""The same where others wait for room."""

SLOW_BYTES, CROWDED_BYTES = 2**17, 2**24
"""In either case a second more for so many bytes: only when a message has gone is that told."""

SOON_SECONDS, LATER_SECONDS = 0.001, 0.02
"""After how long it is tried again: where something has gone last time, and else at most."""

FLUSH_SECONDS = 0.001
"""How long that takes at a time."""

_NOBLOCK_MORE = zmq.NOBLOCK | zmq.SNDMORE


@dataclass(slots=True)
class _Reader:
    """What one peer has to read."""

    sent: int = 0
    """Messages, so far."""
    unmarked: int = 0
    marked: deque[tuple[zmq.MessageTracker, int]] = field(default_factory=deque)
    given: int = 0
    """Bytes of what is `marked`, which libzmq has."""
    kept: deque[bytes] = field(default_factory=deque)
    kept_bytes: int = 0
    moved_at: float = 0.0
    """When it took something last, or had nothing to take."""
    room: Pause | None = None
    is_over: bool = False
    """It was hung up on: nothing is kept for it any more."""

    @property
    def unread(self) -> int:
        """Bytes, as far as they are counted."""
        return self.given + self.kept_bytes


class Outbox:
    """The replies to all peers of one ROUTER socket."""

    def __init__(
        self,
        router: zmq.Socket[bytes],
        most_bytes: int,
        *,
        status: Status,
        is_there: Callable[[Peer], bool],
        gone: Callable[[Peer], None],
        hang_up: Callable[[Peer, str], None],
    ) -> None:
        """`gone` is told of peers that cannot be reached, `hang_up` on whom to, and why."""
        self.bytes = 0
        """Of all that is unread, be it kept here or marked in libzmq."""
        self.due = float("inf")
        """When to `flush`, by time.monotonic()."""
        self._pause = SOON_SECONDS
        self._router = router
        router.router_mandatory = True  # else what cannot be delivered vanishes
        router.sndhwm = MESSAGES
        router.copy_threshold = 0
        self._most = most_bytes
        self._status = status
        self._is_there = is_there
        self._gone = gone
        self._hang_up = hang_up
        self._readers: dict[Peer, _Reader] = {}
        self._behind: dict[Peer, _Reader] = {}  # those who have something unread
        self._is_crowded = False  # whether somebody waits for room

    def deliver(self, replies: Iterable[tuple[Peer, bytes]]) -> None:
        """Send replies, or keep them until they can be. Waits for nobody."""
        readers = self._readers
        size = 0
        for peer, message in replies:
            size += len(message)
            reader = readers.get(peer)
            if reader is None:
                if not self._is_there(peer):
                    continue
                reader = readers[peer] = _Reader()
            if reader.kept or reader.is_over or not self._give(peer, reader, message):
                self._keep(peer, reader, message)
        self._status.bytes_out += size
        self._status.unread_bytes = self.bytes

    def _give(self, peer: Peer, reader: _Reader, message: bytes) -> bool:
        """Give a message to libzmq; False if it has enough for this peer."""
        if reader.given >= WINDOW_BYTES:
            self._settle(reader)
            if reader.given >= WINDOW_BYTES:
                return False
        size = reader.unmarked + len(message)
        try:
            self._router.send(peer, _NOBLOCK_MORE)
            if size < MARK_BYTES:
                self._router.send(message, zmq.NOBLOCK)
                reader.unmarked = size
                reader.sent += 1
                return True
            self._settle(reader)
            mark = self._router.send(message, zmq.NOBLOCK, copy=False, track=True)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.forget(peer)
            self._gone(peer)
            return True
        if mark is not None:
            self._expect(peer, reader, size)
            reader.marked.append((mark, size))
            reader.given += size
        reader.unmarked = 0
        reader.sent += 1
        return True

    def _settle(self, reader: _Reader) -> bool:
        """Know what has gone: all that was given before the last mark that tells so. If any has."""
        has_gone = False
        while reader.marked and reader.marked[0][0].done:
            size = reader.marked.popleft()[1]
            reader.given -= size
            self.bytes -= size
            has_gone = True
        if has_gone:
            reader.moved_at = time.monotonic()
        return has_gone

    def _expect(self, peer: Peer, reader: _Reader, size: int) -> None:
        """Have so many bytes more be unread."""
        if peer not in self._behind:
            reader.moved_at = time.monotonic()
            self._behind[peer] = reader
            self._pause = SOON_SECONDS
            self.due = min(self.due, reader.moved_at + SOON_SECONDS)
        self.bytes += size

    def _keep(self, peer: Peer, reader: _Reader, message: bytes) -> None:
        if reader.is_over:
            return
        self._expect(peer, reader, len(message))
        reader.kept.append(message)
        reader.kept_bytes += len(message)
        if reader.kept_bytes > self._most and len(reader.kept) > 1:
            self._give_up(peer, reader, f"left over {self._most:,} bytes of replies unread")
        elif self.bytes > ALL * self._most and len(self._behind) > 1:
            self._give_up_most(self._behind)

    def _give_up(self, peer: Peer, reader: _Reader, why: str) -> None:
        self._drop(peer, reader)
        reader.is_over = True
        self._hang_up(peer, why)

    def _give_up_most(self, readers: dict[Peer, _Reader]) -> None:
        peer, reader = max(readers.items(), key=lambda each: each[1].unread)
        why = f"left {reader.unread:,} bytes of replies unread, most of all clients"
        self._give_up(peer, reader, f"{why}, which left {self.bytes:,}")

    def _make_room(self, now: float) -> None:
        """For those who wait: hang up on who takes nothing, if there is anybody."""
        self._is_crowded = False
        stalled = {
            peer: reader
            for peer, reader in self._behind.items()
            if now - reader.moved_at > CROWDED_SECONDS + reader.unread / CROWDED_BYTES
        }
        if stalled:
            self._give_up_most(stalled)

    def _drop(self, peer: Peer, reader: _Reader) -> None:
        """Keep nothing for a peer, for which libzmq then keeps nothing either."""
        self.bytes -= reader.unread
        reader.kept.clear()
        reader.marked.clear()
        reader.kept_bytes = reader.given = 0
        self._behind.pop(peer, None)
        self._tell_room(reader)

    def _tell_room(self, reader: _Reader) -> None:
        if reader.room is not None:
            reader.room.set_result(None)
            reader.room = None

    def flush(self, now: float) -> None:
        """Send of what is kept as much as is taken now, of each peer in turn."""
        until, moved = now + FLUSH_SECONDS, False
        for peer in list(self._behind):
            reader = self._behind.pop(peer, None)
            if reader is None:  # given up since, for the sake of another
                continue
            self._behind[peer] = reader
            moved = self._send_kept(peer, reader, now) or moved
            if not (reader.kept or reader.marked):
                self._behind.pop(peer, None)
            if reader.kept_bytes < ROOM_BYTES // 2:
                self._tell_room(reader)
            if time.monotonic() >= until:
                break
        if self._is_crowded:
            self._make_room(now)
        self._status.unread_bytes = self.bytes
        self._pause = SOON_SECONDS if moved else min(2 * self._pause, LATER_SECONDS)
        self.due = now + self._pause if self._behind else float("inf")

    def _send_kept(self, peer: Peer, reader: _Reader, now: float) -> bool:
        """Send what one peer takes; whether it has taken anything."""
        before, has_gone = len(reader.kept), self._settle(reader)
        while reader.kept and self._give(peer, reader, reader.kept[0]):
            if not reader.kept:  # it has gone
                break
            size = len(reader.kept.popleft())
            reader.kept_bytes -= size
            self.bytes -= size
        if has_gone or len(reader.kept) < before:
            reader.moved_at = now
            return True
        if reader.kept and now - reader.moved_at > STALLED_SECONDS + reader.given / SLOW_BYTES:
            self._give_up(peer, reader, f"read none of its replies for {STALLED_SECONDS:g} s")
        return False

    def has_room(self, size: Callable[[], int]) -> bool:
        """Whether a reply of so many bytes is to be made now: where nothing is unread, any is.

        Small ones are, in any case. They and parts have the rest of what there may be.
        """
        if not self.bytes or (more := size()) < MARK_BYTES:
            return True
        if self.bytes + more <= (ALL - 1) * self._most:
            return True
        self._is_crowded = True
        return False

    def is_behind(self, peer: Peer) -> bool:
        """Whether it has so much to read that it is to be asked no further."""
        reader = self._behind.get(peer)
        return reader is not None and reader.kept_bytes >= ROOM_BYTES

    def pace(self, peer: Peer) -> Pause | None:
        """What to wait for until it is not; None if it is not."""
        reader = self._behind.get(peer)
        if reader is None or not reader.kept:
            return None
        if reader.kept_bytes < ROOM_BYTES and self.has_room(lambda: ROOM_BYTES):
            return None
        if reader.room is None:
            reader.room = Pause()
        return reader.room

    def sent_to(self, peer: Peer) -> int:
        """How many messages it was sent."""
        reader = self._readers.get(peer)
        return 0 if reader is None else reader.sent

    def forget(self, peer: Peer) -> None:
        """The connection of `peer` was lost."""
        reader = self._readers.pop(peer, None)
        if reader is not None:
            self._drop(peer, reader)

    @property
    def behind(self) -> list[Peer]:
        """Those who have something unread, as far as that is known."""
        return list(self._behind)
