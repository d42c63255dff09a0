"""The daemon's one thread: sockets and signals around the engine, and tasks between the turns.

It owns the rooms that touch ZeroMQ. One turn takes what has arrived (`intake`), which the engine
carries out, and sends the replies (`outbox`); nothing else runs, so every operation is atomic.
Nobody is waited for: what a client does not read at once stays in the outbox, and what it asks
meanwhile in the inbox.

Tasks get what time the clients leave. While there are requests they get a part of it, in slices
so short that nobody notices.
"""

from __future__ import annotations

import logging
import select
import time
from dataclasses import replace

import zmq

from pickledbd.admission import Admission
from pickledbd.clock import now_ms
from pickledbd.connections import Connections
from pickledbd.door import Curve, Door
from pickledbd.endpoints import Claim
from pickledbd.engine import Engine
from pickledbd.guard import Guard
from pickledbd.inbox import Inbox
from pickledbd.intake import Intake
from pickledbd.listeners import Listeners
from pickledbd.notify import Notifier
from pickledbd.outbox import Outbox
from pickledbd.ownership import AlreadyOwnedError, Ownership
from pickledbd.signals import Signals
from pickledbd.status import Status
from pickledbd.tasks import Tasks
from pickledbd_protocol import SaveFailed

log = logging.getLogger(__name__)

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
        self._ending_at = float("inf")  # when it was told to
        self._turn_seconds = SHARED_TURN_SECONDS if engine.waits_for_disk else TURN_SECONDS
        self._made = 0  # connections that were, as far as `admission` knows
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.maxmsgsize = status.request_bytes
        self._router.rcvhwm = MESSAGES_QUEUED
        self._router.handshake_ivl = HANDSHAKE_MS
        self._router.tcp_keepalive = 1
        self._router.tcp_keepalive_idle, self._router.tcp_keepalive_intvl = KEEPALIVE[:2]
        self._router.tcp_keepalive_cnt = KEEPALIVE[2]
        self._router.linger = CLOSING_MS
        status.libzmq = zmq.zmq_version()
        limits = status.limits
        self._door = Door(self._context, claims, curve, status)
        self._listeners = Listeners(self._router, claims, self._door)
        self._connections = Connections(
            self._context, self._router, status=status, door=self._door, first=self._arrived
        )
        status.slow.who = self._connections.fields
        self._inbox = Inbox(max(limits.unread_bytes, status.request_bytes))
        self._outbox = Outbox(
            self._router,
            limits.unread_bytes,
            status=status,
            is_there=lambda peer: self._connections.get(peer) is not None,
            gone=self._connections.lost.append,
            hang_up=self._connections.hang_up_on,
        )
        engine.paced_by(self._outbox.pace, self._outbox.has_room)
        self._admission = Admission(self._connections, self._listeners, limits)
        status.limits = replace(limits, clients=self._admission.clients)
        self._guard = Guard(
            self._connections,
            status.request_bytes,
            explained=lambda: engine.memory + self._outbox.bytes + self._inbox.bytes,
            sent=self._outbox.sent_to,
        )
        self._intake = Intake(
            self._router,
            engine,
            connections=self._connections,
            door=self._door,
            inbox=self._inbox,
            outbox=self._outbox,
            guard=self._guard,
            admission=self._admission,
            status=status,
            notice_halt=self._notice_halt,
        )
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
            self._outbox.deliver(self._engine.take_replies())
            wake = min(wake, self._see_to_connections(now))
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
            arrived = self._intake.readable
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

    def _look_at_keys(self, now: float) -> float:
        """Hang up on those whose keys were taken back, if it is time; when to look again."""
        if now >= self._door.look_at and self._door.look(now + TURN_SECONDS):
            self._connections.judge_again()
        return self._door.look_at

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
        if now < min(self._quiet_at, self._next_slice):
            return
        is_quiet = now >= self._quiet_at
        self._tasks.run(SLICE_SECONDS if is_quiet else BUSY_SLICE_SECONDS)
        ended = time.monotonic()
        self._status.slow.own("task", ended - now)
        if not is_quiet:
            self._next_slice = ended + BUSY_PAUSE * (ended - now)

    def finish(self) -> SaveFailed | None:
        """End what was begun, save what is unsaved, and send the last replies; why that failed."""
        self._listeners.shut()  # who comes now would not be answered here: it waits for the next
        self._ending_at = time.monotonic()
        while self._connections.lost:
            self._tell_lost()
        failure = self._engine.finish(self._progress)
        self._outbox.deliver(self._engine.take_replies())
        until = time.monotonic() + CLOSING_MS / 1000
        while self._outbox.behind and time.monotonic() < until:
            time.sleep(SLICE_SECONDS)
            self._outbox.flush(time.monotonic())
        return failure

    def _progress(self) -> None:
        """Tell those who wait for the end of it that the last save gets on."""
        self._notifier.progress(f"stopping: {self._engine.saving}")
        now = time.monotonic()
        self._engine.tell_alive(now)
        self._outbox.deliver(self._engine.take_replies())
        self._outbox.flush(now)
        if now - self._ending_at > ENDING_SECONDS:
            for peer in self._outbox.behind:
                self._connections.hang_up_on(peer, "did not read its last replies")
                self._outbox.forget(peer)
                self._engine.gone(peer)

    def close(self) -> None:
        """Let the last replies leave, and stop listening."""
        self._guard.close()
        self._connections.close()
        self._router.close()
        self._door.close()
        self._context.term()

    def _turn(self, ready: list[int], *, arrived: bool) -> bool:
        """Take what has arrived, apply it, answer it. False if there was nothing."""
        until = time.monotonic() + self._turn_seconds
        if self._connections.uncounted or self._monitor_fd in ready:
            self._connections.count(until)
            self._guard.watch()
        if self._signals_fd in ready:
            self._signals.drain()
        self._door.answer()
        if not (arrived or (ready and self._intake.readable)):
            return False
        self._intake.take(until)
        self._outbox.deliver(self._engine.finish_turn())
        return True

    def _see_to_connections(self, now: float) -> float:
        """Do what has become due for them; when to be called again at the latest."""
        connections, outbox = self._connections, self._outbox
        again = bool(connections.lost or connections.uncounted or self._door.unanswered)
        if now >= outbox.due:
            outbox.flush(now)
            again = again or self._engine.holds
        wake = min(outbox.due, self._intake.turn_out(now))
        if connections.made != self._made or self._admission.is_waiting:
            self._made = connections.made
            wake = min(wake, self._admission.look(now))
        if self._inbox and self._intake.take_up(time.monotonic() + self._turn_seconds):
            outbox.deliver(self._engine.finish_turn())
            again = True
        return now if again else wake

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
            some = [lost.popleft() for _ in range(min(LOST_A_TURN, len(lost)))]
            for peer in some:
                self._outbox.forget(peer)
                self._inbox.gone(peer)
            self._engine.gone(*some)

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
        self._admission.upkeep()
