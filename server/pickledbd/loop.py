"""The daemon's one thread: sockets and signals around the engine, and tasks between the turns.

With `connections`, `listeners` and `outbox`, which it owns, all that touches ZeroMQ. One turn takes
what has arrived, hands it to the engine and sends the replies; nothing else runs, so every
operation is atomic. Nobody is waited for: what a client does not read at once stays in the outbox,
and what it asks meanwhile in the inbox.

Tasks get what time the clients leave. While there are requests they get a part of it, in slices
so short that nobody notices.
"""

from __future__ import annotations

import logging
import math
import select
import time
from collections import deque
from dataclasses import replace

import zmq

from pickledbd.admission import REFUSED_SECONDS, Admission
from pickledbd.clock import now_ms
from pickledbd.connections import Connection, Connections
from pickledbd.endpoints import Claim
from pickledbd.engine import Engine
from pickledbd.guard import LARGE_BYTES, Guard
from pickledbd.inbox import Inbox
from pickledbd.listeners import Listeners
from pickledbd.notify import EXTEND_USEC, notify
from pickledbd.outbox import Outbox
from pickledbd.ownership import AlreadyOwnedError, Ownership
from pickledbd.signals import Signals
from pickledbd.status import Status
from pickledbd.tasks import Tasks
from pickledbd_protocol import ProtocolError, SaveFailed, decode_requests, encode_error

log = logging.getLogger(__name__)

MESSAGES_A_TURN = 128
TURN_SECONDS = 0.0005
SHARED_TURN_SECONDS = 0.0015
"""What comes beyond these is left for the next turn: who waits for the replies of this one, and
signals, and tasks, are not to wait long. The latter where a turn waits for the disk, which is
worth being shared."""

SLICE_SECONDS = 0.0015
"""How long tasks run at a time while nobody asks anything."""

BUSY_SLICE_SECONDS = 0.0003
BUSY_PAUSE = 2.0
"""How long they run at a time while requests come, and the pause after that, in such slices."""

QUIET_SECONDS = 0.002
"""After so long without a request nobody is asking."""

LOST_A_TURN = 64
"""Lost connections of which the engine is told at a time: each may have held locks, and others may
wait for these."""

MESSAGES_QUEUED = 16
"""Messages of one connection that libzmq takes in before the loop does."""

FRAMES_MAX = 16
"""Frames of a message, which has one, until its sender is hung up on."""

HANDSHAKE_MS = 3000
"""How long a connection may take until it has said that it speaks ZeroMQ."""

KEEPALIVE = (60, 15, 4)
"""Seconds until a silent tcp connection is probed, between the probes, and their number."""

ENDING_SECONDS = 5.0
"""How long a client may read its last replies in peace, when the daemon stops."""

UPKEEP_SECONDS = 5.0
"""How often the daemon looks whether its socket and lock file are still there."""

HALT_MS = 200
"""How much longer than it was to the loop sleeps, or works, when it is taken to have been halted:
the process was stopped, the machine slept, or a disk did not answer."""

ARRIVAL_SECONDS = 2.0
"""How long after its start, and after any connection was made, it stays at least: whoever started
it is given the time to come, and so is a client, which connects to look before it does to talk."""

SAVE_AGAIN_SECONDS = 5.0
"""How much later than else it tries again to exit, where it could not save."""

CLOSING_MS = 1000
"""How long the last replies may take to leave when the daemon stops."""


class Loop:
    """Serves `engine` at the claimed endpoints until a signal, or until idle for too long."""

    def __init__(
        self,
        engine: Engine,
        claims: list[Claim],
        *,
        owner: Ownership,
        status: Status,
        signals: Signals,
        tasks: Tasks,
        idle_exit: float | None,
    ) -> None:
        self._engine = engine
        self._owner = owner
        self._status = status
        self._signals = signals
        self._tasks = tasks
        self._idle_exit = idle_exit
        self._quiet_at = 0.0  # when nobody is asking any more
        self._next_slice = 0.0  # when tasks may run although somebody is
        self._awake_at = 0  # when it last began to do something, by the daemon's clock
        self._limits = status.limits
        self._turn_seconds = SHARED_TURN_SECONDS if engine.waits_for_disk else TURN_SECONDS
        self._refused: deque[Connection] = deque()  # who were told that they are one too many
        self._discarding: bytes | None = None  # whose message has far too many frames
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.maxmsgsize = status.request_bytes
        self._router.rcvhwm = MESSAGES_QUEUED
        self._router.handshake_ivl = HANDSHAKE_MS
        self._router.tcp_keepalive = 1
        self._router.tcp_keepalive_idle, self._router.tcp_keepalive_intvl = KEEPALIVE[:2]
        self._router.tcp_keepalive_cnt = KEEPALIVE[2]
        self._router.linger = CLOSING_MS
        self._listeners = Listeners(self._router, claims)
        self._connections = Connections(self._context, self._router, first=self._arrived)
        self._outbox = Outbox(
            self._router,
            self._limits.unread_bytes,
            is_there=lambda peer: self._connections.get(peer) is not None,
            gone=self._connections.lost.append,
            hang_up=self._hang_up,
        )
        self._inbox = Inbox(self._limits.unread_bytes)
        self._admission = Admission(self._connections, self._listeners, self._limits)
        status.limits = replace(self._limits, clients=self._admission.clients)
        self._guard = Guard(
            self._connections,
            status.request_bytes,
            explained=lambda: engine.memory + self._outbox.bytes + self._inbox.bytes,
            sent=self._outbox.sent_to,
        )
        engine.paced_by(self._outbox.pace)
        self._offending = engine.offending
        self._made = 0  # connections that were, as far as `admission` knows
        # Their descriptors are polled, not they: zmq_poll asks each of them several times over. But
        # a socket's descriptor tells that something has come only after the socket was asked, and
        # had nothing: so each is asked after it was used, before the loop sleeps.
        self._poller = select.poll()
        self._monitor_fd, self._signals_fd = self._connections.fileno(), signals.fileno()
        for descriptor in (self._router.fileno(), self._monitor_fd, self._signals_fd):
            self._poller.register(descriptor, select.POLLIN)

    def bind(self) -> list[str]:
        """Listen at every claimed endpoint and return them as clients reach them."""
        return self._listeners.bind()

    def run(self) -> str:
        """Serve; return why it ended. The store may then hold unsaved changes."""
        now = begun = started = quiet_since = next_upkeep = time.monotonic()
        self._awake_at = now_ms()
        self._connections.count()
        while not self._signals.received:
            if now >= next_upkeep:
                self._upkeep()
                next_upkeep = now + UPKEEP_SECONDS
            self._tell_lost()
            self._notice_halt()
            wake = min(next_upkeep, self._engine.tick(now))
            # Those of tasks, and of what was held: none is to wait for the next message
            self._outbox.deliver(self._engine.take_replies())
            wake = min(wake, self._see_to_connections(now))
            if self._idle_exit is not None and not self._connections and not self._tasks:
                arrived_at = max(begun, self._connections.accepted_at)
                ends = max(quiet_since + self._idle_exit, arrived_at + ARRIVAL_SECONDS)
                if now >= ends:
                    if self._engine.finish() is None:
                        return f"no client for {self._idle_exit:g} s"
                    # A full disk may have room by the next time
                    quiet_since = time.monotonic() + SAVE_AGAIN_SECONDS
                    ends = quiet_since + self._idle_exit
                wake = min(wake, ends)
            if self._tasks and self._tasks.ready:
                wake = min(wake, self._next_slice) if now < self._quiet_at else now
            arrived = self._discarding is not None or _readable(self._router)
            self._status.slice(time.monotonic() - started)
            ready = self._sleep(0.0 if arrived else wake - now, now)
            started = time.monotonic()
            busy = self._turn(ready, arrived=arrived)
            now = time.monotonic()
            if self._tasks:
                self._run_tasks(now, busy=busy)
                now = time.monotonic()
            if busy or self._connections:
                quiet_since = now
        return self._signals.received.name

    def _sleep(self, seconds: float, now: float) -> list[int]:
        """Wait so long from `now` for something to come; the descriptors where it did."""
        # rounded up, so that a deadline has passed when the poll for it ends
        wait_ms = int(seconds * 1000) + 1 if seconds > 0 else 0
        while True:
            if now >= self._guard.due:
                self._guard.look(now)
            some_ms = wait_ms
            if wait_ms and self._guard.due < now + wait_ms / 1000:
                some_ms = min(wait_ms, int((self._guard.due - now) * 1000) + 1)
            ready = [descriptor for descriptor, _ in self._poller.poll(some_ms)]
            self._notice_halt(some_ms)
            wait_ms -= some_ms
            if ready or wait_ms <= 0:
                return ready
            now = time.monotonic()

    def _notice_halt(self, slept_ms: int = 0) -> None:
        """To be called before anybody is judged by the time: maybe nobody could be heard."""
        before, self._awake_at = self._awake_at, now_ms()
        if self._awake_at - before > slept_ms + HALT_MS:
            self._engine.halted()

    def _run_tasks(self, now: float, *, busy: bool) -> None:
        """Go on with the tasks, as far as the clients leave time for it."""
        if busy:
            self._quiet_at = now + QUIET_SECONDS
        if now >= self._quiet_at:
            self._tasks.run(SLICE_SECONDS)
        elif now >= self._next_slice:
            self._tasks.run(BUSY_SLICE_SECONDS)
            ended = time.monotonic()
            self._next_slice = ended + BUSY_PAUSE * (ended - now)

    def finish(self) -> SaveFailed | None:
        """End what was begun, save what is unsaved, and send the last replies; why that failed."""

        def progress() -> None:
            notify(STATUS="saving", EXTEND_TIMEOUT_USEC=EXTEND_USEC)
            now = time.monotonic()
            self._engine.tell_alive(now)
            self._outbox.deliver(self._engine.take_replies())
            self._outbox.flush(now)
            if now - begun > ENDING_SECONDS:
                for peer in self._outbox.behind:
                    self._hang_up(peer, "did not read its last replies")
                    self._outbox.forget(peer)
                    self._engine.gone(peer)

        begun = time.monotonic()
        while self._connections.lost:
            self._tell_lost()
        failure = self._engine.finish(progress)
        self._outbox.deliver(self._engine.take_replies())
        until = time.monotonic() + CLOSING_MS / 1000
        while self._outbox.behind and time.monotonic() < until:
            time.sleep(SLICE_SECONDS)
            self._outbox.flush(time.monotonic())
        return failure

    def close(self) -> None:
        """Let the last replies leave, and stop listening."""
        self._guard.close()
        self._connections.close()
        self._router.close()
        self._context.term()

    def _turn(self, ready: list[int], *, arrived: bool) -> bool:
        """Take what has arrived, apply it, answer it. False if there was nothing."""
        router, engine = self._router, self._engine
        until = time.monotonic() + self._turn_seconds
        if self._connections.uncounted or self._monitor_fd in ready:
            self._connections.count(until)
            self._status.clients = len(self._connections)
            self._status.hung_up = self._connections.hung_up
            self._guard.watch()
        if self._signals_fd in ready:
            self._signals.drain()
        if arrived or (ready and _readable(router)):
            self._take_in(until)
        else:
            return False
        self._outbox.deliver(engine.finish_turn())
        return True

    def _see_to_connections(self, now: float) -> float:
        """Do what has become due for them; when to be called again at the latest."""
        connections, outbox = self._connections, self._outbox
        if now >= outbox.due:
            outbox.flush(now)
            self._status.unread_bytes = outbox.bytes
        if connections.made != self._made or self._admission.is_waiting:
            self._made = connections.made
            wake = self._admission.look(now)
        else:
            wake = math.inf
        while self._refused and now - (self._refused[0].refused_at or now) > REFUSED_SECONDS:
            connections.hang_up(self._refused.popleft(), "is one client too many")
        while self._offending:
            self._hang_up(*self._offending.popitem())
        wake = min(outbox.due, wake)
        if self._refused:
            wake = min(wake, (self._refused[0].refused_at or now) + REFUSED_SECONDS)
        if connections.lost or connections.uncounted or (self._inbox and self._take_up()):
            return now
        return wake

    def _hang_up(self, peer: bytes, why: str, *, ban: bool = False) -> None:
        connection = self._connections.get(peer)
        if connection is not None:
            self._connections.hang_up(connection, why, ban=ban)

    def _take_up(self) -> bool:
        """Hand to the engine what was kept of those who read their replies again; if anything."""
        until = time.monotonic() + self._turn_seconds
        taken = 0
        while (found := self._inbox.take(self._may_ask)) is not None:
            taken += 1
            self._engine.receive(found[0], [found[1]])
            over = taken >= MESSAGES_A_TURN or self._engine.turn_over
            if over or time.monotonic() >= until:
                break
        if taken:
            self._outbox.deliver(self._engine.finish_turn())
        return taken > 0

    def _may_ask(self, peer: bytes) -> bool:
        return not (self._outbox.is_behind(peer) or self._engine.is_full(peer))

    def _take_in(self, until: float) -> None:
        """Take what has arrived, at least one message, and hand it to the engine."""
        router, engine = self._router, self._engine
        count = 0
        while self._discarding is None or self._discard(until):
            peer = router.recv(zmq.NOBLOCK)
            frame = router.recv(zmq.NOBLOCK, copy=False)
            connection = self._connections.of(peer, frame)
            frames = [frame.bytes]
            while frame.more and len(frames) < FRAMES_MAX:
                frame = router.recv(zmq.NOBLOCK, copy=False)
                frames.append(frame.bytes)
            self._notice_halt()
            if frame.more:
                self._discarding = peer
                self._hang_up(peer, f"sent a message of over {FRAMES_MAX} frames", ban=True)
                self._admission.hold(time.monotonic())
            elif connection is None:
                engine.receive(peer, frames)
                self._connections.lost.append(peer)
            elif not connection.is_out:
                self._take(peer, connection, frames)
            count += 1
            if count >= MESSAGES_A_TURN or engine.turn_over or time.monotonic() >= until:
                break
            if not _readable(router):
                break

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
            self._engine.receive(peer, frames)

    def _discard(self, until: float) -> bool:
        """Take further frames of a message that nobody wants; whether that has ended."""
        while time.monotonic() < until:
            for _ in range(FRAMES_MAX):
                self._router.recv(zmq.NOBLOCK)
                if not self._router.get(zmq.RCVMORE):
                    self._discarding = None
                    return _readable(self._router)
        return False

    def _refuse(self, peer: bytes, connection: Connection, frames: list[bytes]) -> None:
        """Tell a connection that it is one too many."""
        error = self._limits.too_many_clients(self._admission.clients)
        told = [(peer, encode_error(each.id, error)) for each in decode_requests(frames)]
        self._outbox.deliver(told)
        if connection.refused_at is None:
            connection.refused_at = time.monotonic()
            self._refused.append(connection)

    def _put_off(self, peer: bytes, frames: list[bytes]) -> None:
        """Keep what a peer asks that does not read what it is answered."""
        if len(frames) > 1:
            error = ProtocolError(f"a request is one frame, not {len(frames)}")
            self._outbox.deliver([(peer, encode_error(None, error))])
            return
        over = self._inbox.put(peer, frames[0])
        if over is not None:
            self._inbox.gone(over)
            self._hang_up(over, "asks far more than it reads answers to")

    def _arrived(self) -> None:
        """The first client has come, or the first after a while."""
        if self._idle_exit is not None:
            # It could as well have ended since the last client; a new one would have read
            # what is in the file now. A daemon that is to stay is asked to by its owner.
            self._engine.refresh()

    def _tell_lost(self) -> None:
        """Have the engine know of lost connections. It makes what comes of it durable together."""
        lost = self._connections.lost
        if lost:
            some = [lost.popleft() for _ in range(min(LOST_A_TURN, len(lost)))]
            for peer in some:
                self._outbox.forget(peer)
                self._inbox.gone(peer)
            self._engine.gone(*some)

    def _upkeep(self) -> None:
        """Put back what somebody removed: the lock files, and the sockets new clients need."""
        self._engine.upkeep()
        notify(STATUS=f"{self._status.clients} clients, {self._engine.dirty} unsaved changes")
        try:
            self._owner.restore()
        except AlreadyOwnedError as error:
            log.error("%s was removed and is now held by pid %s", error.args[0], error.pid)
        except OSError as error:
            log.error("cannot restore what was removed: %s", error)
        self._listeners.restore()
        self._admission.upkeep()


def _readable(source: zmq.Socket[bytes]) -> bool:
    return source.get(zmq.EVENTS) & zmq.POLLIN != 0  # type: ignore[operator,arg-type] # EVENTS is an int
