"""The daemon's one thread: sockets and signals around the engine, and tasks between the turns.

With `connections` and `listeners`, which it owns, all that touches ZeroMQ. One turn takes what has
arrived, hands it to the engine and sends the replies; nothing else runs, so every operation is
atomic. Nobody is waited for: a reply that a client cannot take at once is lost, and only that
client's.

Tasks get what time the clients leave. While there are requests they get a part of it, in slices
so short that nobody notices.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Iterable

import zmq

from pickledbd.clock import now_ms
from pickledbd.connections import Connections
from pickledbd.door import Curve, Door
from pickledbd.endpoints import Claim
from pickledbd.engine import Engine
from pickledbd.listeners import Listeners
from pickledbd.notify import Notifier
from pickledbd.ownership import AlreadyOwnedError, Ownership
from pickledbd.signals import Signals
from pickledbd.status import Status
from pickledbd.tasks import Tasks
from pickledbd_protocol import SaveFailed

log = logging.getLogger(__name__)

MESSAGES_A_TURN = 128
TURN_SECONDS = 0.0015
"""What comes beyond these is left for the next turn: who waits for the replies of this one, and
signals, and tasks, are not to wait long."""

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

REPLIES_QUEUED = 10_000
"""Replies that one client may leave unread before it loses further ones."""

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

_NOBLOCK_MORE = zmq.NOBLOCK | zmq.SNDMORE
_LARGE = 2**20  # what is smaller is copied quicker than pyzmq can arrange for it not to be


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
        notifier: Notifier,
        tasks: Tasks,
        idle_exit: float | None,
        curve: Curve | None = None,
    ) -> None:
        self._engine = engine
        self._owner = owner
        self._status = status
        self._signals = signals
        self._notifier = notifier
        self._tasks = tasks
        self._idle_exit = idle_exit
        self._quiet_at = 0.0  # when nobody is asking any more
        self._next_slice = 0.0  # when tasks may run although somebody is
        self._awake_at = 0  # when it last began to do something, by the daemon's clock
        self._tell_lost_at = 0.0
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.router_mandatory = True
        self._router.maxmsgsize = status.request_bytes
        self._router.sndhwm = REPLIES_QUEUED
        self._router.tcp_keepalive = 1
        self._router.linger = CLOSING_MS
        self._door = Door(self._context, claims, curve, status)
        self._listeners = Listeners(self._router, claims, self._door)
        self._connections = Connections(
            self._context, self._router, status=status, door=self._door, first=self._arrived
        )
        status.slow.who = self._connections.fields
        status.libzmq = zmq.zmq_version()
        # Their descriptors are polled, not they: zmq_poll asks each of them several times over. But
        # a socket's descriptor tells that something has come only after the socket was asked, and
        # had nothing: so each is asked after it was used, before the loop sleeps.
        self._poller = select.poll()
        self._monitor_fd, self._signals_fd = self._connections.fileno(), signals.fileno()
        first = (self._router.fileno(), self._monitor_fd, self._signals_fd)
        for descriptor in (*first, *self._door.descriptors):
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
            wake = min(
                next_upkeep,
                self._notifier.keep_alive(now),
                self._look_at_keys(now),
                self._engine.tick(now),
            )
            # Those of tasks, and of what was held: none is to wait for the next message
            self._deliver(self._engine.take_replies())
            if self._connections.lost or self._connections.uncounted or self._door.unanswered:
                wake = now
            if self._idle_exit is not None and not self._connections and not self._tasks:
                arrived_at = max(begun, self._connections.accepted_at)
                ends = max(quiet_since + self._idle_exit, arrived_at + ARRIVAL_SECONDS)
                if now >= ends:
                    if self._engine.finish(self._progress) is None:
                        return f"no client for {self._idle_exit:g} s"
                    # A full disk may have room by the next time
                    quiet_since = time.monotonic() + SAVE_AGAIN_SECONDS
                    ends = quiet_since + self._idle_exit
                wake = min(wake, ends)
            if self._tasks and self._tasks.ready:
                wake = min(wake, self._next_slice) if now < self._quiet_at else now
            arrived = _readable(self._router)
            self._status.slice(time.monotonic() - started)
            ready = self._sleep(0.0 if arrived else wake - now)
            started = time.monotonic()
            busy = self._turn(ready, arrived=arrived)
            now = time.monotonic()
            if self._tasks:
                self._run_tasks(now, busy=busy)
                now = time.monotonic()
            if busy or self._connections:
                quiet_since = now
        return self._signals.received.name

    def _look_at_keys(self, now: float) -> float:
        """Hang up on those whose keys were taken back, if it is time; when to look again."""
        if now >= self._door.look_at and self._door.look(now + TURN_SECONDS):
            self._connections.judge_again()
        return self._door.look_at

    def _sleep(self, seconds: float) -> list[int]:
        """Wait so long for something to come; the descriptors where it did."""
        # rounded up, so that a deadline has passed when the poll for it ends
        wait_ms = int(seconds * 1000) + 1 if seconds > 0 else 0
        ready = [descriptor for descriptor, _ in self._poller.poll(wait_ms)]
        self._notice_halt(wait_ms)
        return ready

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
        self._listeners.stop()
        while self._connections.lost:
            self._tell_lost()
        failure = self._engine.finish(self._progress)
        self._deliver(self._engine.take_replies())
        return failure

    def _progress(self) -> None:
        """Tell those who wait for the end of it that the last save gets on."""
        self._notifier.progress(f"stopping: {self._engine.saving}")
        self._engine.tell_alive(time.monotonic())
        self._deliver(self._engine.take_replies())

    def close(self) -> None:
        """Let the last replies leave, and stop listening."""
        self._connections.close()
        self._router.close()
        self._door.close()
        self._context.term()

    def _turn(self, ready: list[int], *, arrived: bool) -> bool:
        """Take what has arrived, apply it, answer it. False if there was nothing."""
        router, engine = self._router, self._engine
        until = time.monotonic() + TURN_SECONDS
        if self._connections.uncounted or self._monitor_fd in ready:
            self._connections.count(until)
        if self._signals_fd in ready:
            self._signals.drain()
        self._door.answer()
        if arrived or (ready and _readable(router)):
            self._take_in(until)
        else:
            return False
        self._deliver(engine.finish_turn())
        return True

    def _take_in(self, until: float) -> None:
        """Take what has arrived, at least one message, and hand it to the engine."""
        router, engine = self._router, self._engine
        count = size = 0
        while True:
            peer = router.recv(zmq.NOBLOCK)
            frame = router.recv(zmq.NOBLOCK, copy=False)
            connection = self._connections.of(peer, frame)
            frames = [frame.bytes]
            while frame.more:
                frame = router.recv(zmq.NOBLOCK, copy=False)
                frames.append(frame.bytes)
            self._notice_halt()
            rights = self._door.sender(frame) if connection is None else connection.rights
            ended = engine.receive(peer, frames, rights)
            if connection is None:
                self._connections.lost.append(peer)
            count += 1
            size += len(frames[0])
            if count >= MESSAGES_A_TURN or engine.turn_over or ended >= until:
                break
            if not _readable(router):
                break
        self._status.bytes_in += size

    def _arrived(self) -> None:
        """The first client has come, or the first after a while."""
        if self._idle_exit is not None:
            # It could as well have ended since the last client; a new one would have read
            # what is in the file now. A daemon that is to stay is asked to by its owner.
            self._engine.refresh(lambda: self._notifier.progress("loading what others wrote"))

    def _tell_lost(self) -> None:
        """Have the engine know of lost connections. It makes what comes of it durable together."""
        lost = self._connections.lost
        if lost:
            self._engine.gone(*(lost.popleft() for _ in range(min(LOST_A_TURN, len(lost)))))

    def _deliver(self, replies: Iterable[tuple[bytes, bytes]]) -> None:
        size = 0
        for peer, message in replies:
            size += len(message)
            try:
                self._router.send(peer, _NOBLOCK_MORE)
                self._router.send(message, zmq.NOBLOCK, copy=len(message) < _LARGE)
            except zmq.Again:
                self._count_lost_reply(peer)
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                self._connections.lost.append(peer)
        self._status.bytes_out += size

    def _count_lost_reply(self, peer: bytes) -> None:
        # One line for many: whoever reads the log must not be able to hold the loop up.
        lost = self._status.replies_lost = self._status.replies_lost + 1
        now = time.monotonic()
        if now >= self._tell_lost_at:
            told = self._connections.fields(peer)
            log.warning(
                "%d replies lost by clients that do not read them, the last by %s",
                lost,
                told["peer"],
                extra={"event": "replies_lost", "count": lost, **told},
            )
            self._tell_lost_at = now + UPKEEP_SECONDS

    def _upkeep(self) -> None:
        """Put back what somebody removed: the lock files, and the sockets new clients need."""
        self._engine.upkeep()
        self._door.refusals.tell()
        self._notifier.status(self._engine.status)
        try:
            self._owner.restore()
        except AlreadyOwnedError as error:
            told = {"event": "lock_taken", "path": str(error.args[0]), "owner_pid": error.pid}
            log.error(
                "%s was removed and is now held by pid %s", error.args[0], error.pid, extra=told
            )
        except OSError as error:
            log.error("cannot restore what was removed: %s", error, extra={"event": "not_restored"})
        self._listeners.restore()


def _readable(source: zmq.Socket[bytes]) -> bool:
    return source.get(zmq.EVENTS) & zmq.POLLIN != 0  # type: ignore[operator,arg-type] # EVENTS is an int
