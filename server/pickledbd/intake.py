"""Messages on their way to the engine: from which connection, whether they count, and when.

May live here: what becomes of each message that the ROUTER has. Most are handed to the engine at
once. One of a peer that does not read its replies waits in the `inbox`; one of a connection too
many, or of too many frames, is not carried out, and its sender is hung up on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import zmq

from pickledbd.admission import REFUSED_SECONDS, Admission
from pickledbd.connections import Connection, Connections, readable
from pickledbd.door import Door
from pickledbd.engine import Engine
from pickledbd.guard import LARGE_BYTES, Guard
from pickledbd.inbox import Inbox
from pickledbd.outbox import Outbox
from pickledbd.status import Status
from pickledbd_protocol import ProtocolError, decode_requests, encode_error

MESSAGES_A_TURN = 128
"""What comes beyond these is left for the next turn."""

FRAMES_MAX = 16
"""Frames of a message, which has one, until its sender is hung up on."""


class Intake:
    """Takes what has come by `router`."""

    def __init__(
        self,
        router: zmq.Socket[bytes],
        engine: Engine,
        *,
        connections: Connections,
        door: Door,
        inbox: Inbox,
        outbox: Outbox,
        guard: Guard,
        admission: Admission,
        status: Status,
        notice_halt: Callable[[], None],
    ) -> None:
        """`notice_halt` is called before anybody is judged by the time."""
        self._router = router
        self._engine = engine
        self._connections = connections
        self._door = door
        self._inbox = inbox
        self._outbox = outbox
        self._guard = guard
        self._admission = admission
        self._status = status
        self._notice_halt = notice_halt
        self._refused: deque[Connection] = deque()  # who were told that they are one too many
        self._discarding: bytes | None = None  # whose message has far too many frames

    @property
    def readable(self) -> bool:
        """Whether there is something to be taken."""
        return self._discarding is not None or readable(self._router)

    def take(self, until: float) -> None:
        """Take what has arrived, at least one message, and hand it to the engine."""
        router, engine = self._router, self._engine
        count = size = 0
        while self._discarding is None or self._discard(until):
            peer = router.recv(zmq.NOBLOCK)
            frame = router.recv(zmq.NOBLOCK, copy=False)
            connection = self._connections.of(peer, frame)
            frames = [frame.bytes]
            while frame.more and len(frames) < FRAMES_MAX:
                frame = router.recv(zmq.NOBLOCK, copy=False)
                frames.append(frame.bytes)
            self._notice_halt()
            size += len(frames[0])
            if frame.more:
                self._discarding = peer
                self._connections.hang_up_on(
                    peer, f"sent a message of over {FRAMES_MAX} frames", ban=True
                )
                self._admission.hold(time.monotonic())
            elif connection is None:
                engine.receive(peer, frames, self._door.sender(frame))
                self._connections.lost.append(peer)
            elif not connection.is_out:
                self._take(peer, connection, frames)
            count += 1
            if count >= MESSAGES_A_TURN or engine.turn_over or time.monotonic() >= until:
                break
            if not readable(router):
                break
        self._status.bytes_in += size

    def _take(self, peer: bytes, connection: Connection, frames: list[bytes]) -> None:
        """Have a message carried out, unless it is to wait, or nobody is to carry it out."""
        inbox, outbox = self._inbox, self._outbox
        connection.heard = self._guard.looks
        if len(frames[0]) >= LARGE_BYTES:
            self._guard.heard_large(connection, len(frames[0]))
        if not connection.admitted:
            self._refuse(peer, connection, frames)
        elif (
            self._engine.is_full(peer)
            or (outbox.bytes and outbox.is_behind(peer))
            or (inbox and peer in inbox)
        ):
            self._put_off(peer, frames)
        else:
            self._engine.receive(peer, frames, connection.rights)

    def _discard(self, until: float) -> bool:
        """Take further frames of a message that nobody wants; whether that has ended."""
        while time.monotonic() < until:
            for _ in range(FRAMES_MAX):
                self._router.recv(zmq.NOBLOCK)
                if not self._router.get(zmq.RCVMORE):
                    self._discarding = None
                    return readable(self._router)
        return False

    def _refuse(self, peer: bytes, connection: Connection, frames: list[bytes]) -> None:
        """Tell a connection that it is one too many."""
        error = self._status.limits.too_many_clients(self._admission.clients)
        told = [(peer, encode_error(each.id, error)) for each in decode_requests(frames)]
        self._outbox.deliver(told)
        if connection.refused_at is None:
            connection.refused_at = time.monotonic()
            self._refused.append(connection)

    def _put_off(self, peer: bytes, frames: list[bytes]) -> None:
        """Keep what a peer asks that does not read what it is answered, or asked much before."""
        if len(frames) > 1:
            error = ProtocolError(f"a request is one frame, not {len(frames)}")
            self._outbox.deliver([(peer, encode_error(None, error))])
            return
        over = self._inbox.put(peer, frames[0])
        if over is not None:
            self._inbox.gone(over)
            self._connections.hang_up_on(over, "asks far more than it can be answered")

    def take_up(self, until: float) -> bool:
        """Hand to the engine what was kept of those who read their replies again; if anything."""
        taken = 0
        while self._inbox and (found := self._inbox.take(self._may_ask)) is not None:
            taken += 1
            peer, body = found
            connection = self._connections.get(peer)
            if connection is not None and not connection.is_out:
                self._engine.receive(peer, [body], connection.rights)
            over = taken >= MESSAGES_A_TURN or self._engine.turn_over
            if over or time.monotonic() >= until:
                break
        return taken > 0

    def _may_ask(self, peer: bytes) -> bool:
        return not (self._outbox.is_behind(peer) or self._engine.is_full(peer))

    def turn_out(self, now: float) -> float:
        """Hang up on who was told to go, and on who sends what never ends; when to do so again."""
        while self._refused and now - (self._refused[0].refused_at or now) > REFUSED_SECONDS:
            self._connections.hang_up(self._refused.popleft(), "is one client too many")
        while self._engine.offending:
            self._connections.hang_up_on(*self._engine.offending.popitem())
        if self._refused:
            return (self._refused[0].refused_at or now) + REFUSED_SECONDS
        return float("inf")
