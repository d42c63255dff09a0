"""The keeper: what has locks live on while this process does.

May live here: a thread, and its connection. It tells the daemon, well within their time, which
locks are still held; the daemon frees what it does not hear of, and all of them at once when the
connection is lost, which is when the process dies. So nothing of this is done by the threads
that hold locks, which may be at anything. The thread is begun with the first lock, and sleeps
while none is held. What was asked for and is of no use any more, since its asker was interrupted
or has ended, is given back here, too.

It never starts a daemon: whoever has something to ask does, and then the keeper finds it. A
connection that has gone silent may lead to a daemon that is only slow, which would free everything
if it was closed. So another one is made, and the silent one is closed when the daemon has been
told by the new one, twice, what is held: by the second time it has read what the silent one told.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import time
import uuid
from itertools import count
from typing import Any

from pickledbd_client import calls
from pickledbd_client.calls import Call
from pickledbd_client.channel import ConnectionLostError, Session
from pickledbd_client.leases import Lease, clock
from pickledbd_client.route import Route, generation
from pickledbd_protocol import (
    PickleDBError,
    Reply,
    RequestTimeout,
    SaveFailed,
    TooLarge,
    Unavailable,
    WritesRefused,
)

KEPT_AT_ONCE = 10_000
"""Locks that are renewed by one request."""

SILENT_SECONDS = (0.5, 5.0)
"""How long an answer may take, at least and at most, before another connection is tried: as long
as the shortest lock is from one renewal to the next."""

SILENT_MAX = 8
"""Connections that do not answer, beside which no further one is made."""

PAUSE_SECONDS = (0.05, 1.0)
"""After a failure, before the next attempt: first, and when it has doubled for a while."""

LETTING_GO_SECONDS = 0.02
"""What is given up is released for so long before it is looked again what is to be renewed."""

SLEEP_MAX = 3600.0
"""The system's calls cannot wait for as long as a ttl may be."""

CLOSING_SECONDS = 0.5

_log = logging.getLogger(__name__)


class Keeper:
    """Keeps the locks of one handle in one process. Its methods are for any thread.

    They take no lock, so that a signal's handler may call them while they are under way.
    """

    def __init__(self, route: Route) -> None:
        self.holder = uuid.uuid4().hex
        self._route = route
        self._generation = generation()
        self._asks = count(1)
        self._leases: dict[int, Lease] = {}  # of which the daemon may know
        self._closed = False
        self._unbegun = [None]  # taken by the thread that is to run
        self._thread: threading.Thread | None = None
        self._writer: socket.socket | None = None
        # The thread's own
        self._reader: socket.socket | None = None
        self._session = Session()
        self._silent: list[Session] = []  # by which the daemon was told, and did not answer
        self._needless: list[Session] = []  # of these, those before the last answer
        self._patience = SILENT_SECONDS[0]
        self._next = float("inf")  # when it wakes by itself

    def new(self, name: str, ttl: float) -> Lease:
        """A new ask, which nobody knows of."""
        return Lease(name, ttl, next(self._asks))

    def expect(self, lease: Lease) -> None:
        """It is about to be sent."""
        lease.begin()
        self._leases[lease.ask] = lease
        if self._thread is None:
            # Of several that are begun at once, by other threads or a signal's handler, one runs
            threading.Thread(target=self._run, name="pickledbd-keeper", daemon=True).start()
        elif self._session.channel is None:
            self._wake()

    def keep(self, lease: Lease) -> None:
        """It was granted: keep it."""
        lease.grant()
        if lease.due < self._next:
            self._wake()

    def forget(self, lease: Lease) -> None:
        """The daemon has told that it holds nothing by it, nor waits."""
        self._leases.pop(lease.ask, None)

    def give_up(self, lease: Lease) -> None:
        """Have it released, be it granted or not, if the daemon may know of it."""
        if lease.ask in self._leases and not (self._closed or lease.is_given_up):
            lease.give_up()
            self._wake()

    def release(self, lease: Lease) -> Call[bool]:
        """The call that releases it; to be followed by `forget` or `give_up`."""
        return calls.unlock(lease.name, self.holder, lease.ask)

    def close(self, *, wait: bool = True) -> None:
        """End the thread, which lets go of everything. A daemon that is stuck is not waited for.

        What was asked for is given up: its askers are answered so. `wait`: until that is done.
        """
        for lease in list(self._leases.values()):
            if not lease.is_granted:
                lease.give_up()
        self._closed = True
        self._wake()
        thread = self._thread
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join(CLOSING_SECONDS)

    def _wake(self) -> None:
        # Without a writer the thread has not yet looked what there is; in a fork it is the parent's
        if self._writer is not None and self._generation == generation():
            with contextlib.suppress(OSError):  # full of calls to wake, or closed
                self._writer.send(b"\0")

    # The thread

    def _run(self) -> None:
        try:
            self._unbegun.pop()
        except IndexError:
            return
        self._thread = threading.current_thread()
        first, longest = PAUSE_SECONDS
        pause = first
        while not self._closed:
            self._next = float("inf")  # what is granted from here on may not be seen, and wakes
            try:
                seconds = self._work()
                pause = first
            except Exception as error:  # noqa: BLE001 - whatever it is, others are to be kept
                if not isinstance(error, (PickleDBError, ConnectionLostError)):
                    where = self._route.target
                    _log.warning(
                        "locks of %s: their keeper failed, and goes on", where, exc_info=True
                    )
                self._forget_late()
                # A daemon that comes back has the time of all that is held begin anew
                shortest = min((each.period for each in self._look()), default=longest)
                seconds = max(first, min(pause, shortest))
                pause = min(2 * pause, longest)
            self._sleep(seconds)
        self._end()

    def _work(self) -> float | None:
        """Do what is to be done; after how many seconds there is more to do, None for never."""
        if self._writer is None:
            self._reader, writer = socket.socketpair()
            self._reader.setblocking(False)
            writer.setblocking(False)
            self._writer = writer
        held = self._look()
        if self._session.channel is None:
            if not self._leases:  # what is asked for from here on wakes
                return None
            self._connect(held)
        now = clock()
        if min((each.due for each in held), default=now + 1) <= now:
            # and with them what soon would be
            self._renew([each for each in held if each.due <= now + each.period / 2])
        pause = self._let_go()
        due = min((each.due for each in held if not each.has_ended), default=None)
        pauses = [max(0.0, due - clock())] if due is not None else []
        return min(pauses + ([] if pause is None else [pause]), default=None)

    def _look(self) -> list[Lease]:
        """What is to be kept. By the shortest of it is how long an answer may take."""
        now = clock()
        at_least, shortest = SILENT_SECONDS
        held = []
        for each in list(self._leases.values()):
            if each.holder() is None and not each.is_given_up:
                each.give_up()
            if each.period < shortest and not each.is_over(now):  # else it is too late to hurry
                shortest = each.period
            if each.is_granted and not each.is_given_up:
                held.append(each)
        self._patience = max(at_least, shortest)
        return held

    def _connect(self, held: list[Lease]) -> None:
        """Have a connection by which the daemon has been told what is held."""
        if len(self._silent) + len(self._needless) >= SILENT_MAX:
            raise Unavailable(f"the daemon of {self._route.target} answers by no connection")
        deadline = time.monotonic() + self._patience
        self._session.channel = self._route.connect(self._session, deadline, once=True)
        self._renew(held)

    def _renew(self, leases: list[Lease]) -> None:
        """Tell the daemon that these are held, also if there are none: by whom is told as well."""
        for start in range(0, len(leases) or 1, KEPT_AT_ONCE):
            some = leases[start : start + KEPT_AT_ONCE]
            renewal = calls.keep(self.holder, [each.ask for each in some])
            asked_at = clock()
            reply = self._ask(renewal)
            if reply.error is not None:
                raise reply.error
            lost = set(renewal.read(reply))
            for each in some:
                if each.ask in lost:
                    each.has_ended = True
                    self.forget(each)
                elif not each.is_given_up:
                    each.renew(asked_at)
        for session in self._needless:
            session.close()
        self._needless, self._silent = self._silent, []

    def _let_go(self) -> float | None:
        """Release what was given up, for a moment; after how many seconds to go on, if at all."""
        until = clock() + LETTING_GO_SECONDS
        for lease in [each for each in list(self._leases.values()) if each.is_given_up]:
            if clock() > until:
                return 0.0
            with contextlib.suppress(TooLarge):  # which the ask was, too, so it was not sent
                error = self._ask(self.release(lease)).error
                if isinstance(error, (WritesRefused, SaveFailed)):
                    return PAUSE_SECONDS[-1]
            self.forget(lease)  # what the daemon does not take for other reasons, it never will
        return None

    def _forget_late(self) -> None:
        """Where there is no connection, forget what was given up when it has ended by itself.

        With the connection of who asked, or else when nobody renewed it.
        """
        if self._session.channel is None:
            for lease in list(self._leases.values()):
                if lease.is_given_up and lease.is_over(clock()):
                    self.forget(lease)

    def _ask(self, call: Call[Any]) -> Reply:
        session = self._session
        channel = session.channel
        assert channel is not None  # noqa: S101 - connected before
        try:
            return channel.exchange(call, session.next_id(), time.monotonic() + self._patience)
        except TooLarge:  # nothing was sent
            raise
        except RequestTimeout:
            self._silent.append(session)
            self._session = Session()
            raise
        except BaseException:
            session.close()
            raise

    def _sleep(self, seconds: float | None) -> None:
        """Until it is time, or somebody wakes, or something is heard of the connection."""
        self._next = float("inf") if seconds is None else clock() + seconds
        if self._reader is None:
            time.sleep(PAUSE_SECONDS[-1])
            return
        poller = select.poll()
        poller.register(self._reader, select.POLLIN)
        before = self._session.channel
        for session in (self._session, *self._silent):
            if session.channel is not None:
                poller.register(session.channel.fileno(), select.POLLIN)
        self._listen()
        wait = SLEEP_MAX if seconds is None else min(seconds, SLEEP_MAX)
        # Who closed it before there was a writer could not wake
        if self._session.channel is before and not self._closed:
            poller.poll(wait * 1000)
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass
        self._listen()

    def _listen(self) -> None:
        """Notice that a connection was lost, or that a silent one is heard of again.

        What came so late is of no use itself.
        """
        for session in (self._session, *self._silent):
            try:
                while session.channel is not None and session.channel.received():
                    if session in self._silent and self._session.channel is None:
                        self._silent.remove(session)
                        self._session = session
            except (PickleDBError, ConnectionLostError):
                session.close()
        self._silent = [each for each in self._silent if each.channel is not None]

    def _end(self) -> None:
        """Have those who wait answered. What is held ends with the connection."""
        until = clock() + SILENT_SECONDS[-1]
        pause: float | None = 0.0
        with contextlib.suppress(PickleDBError, ConnectionLostError):
            while pause == 0.0 and clock() < until:
                if self._session.channel is None:
                    if not any(each.is_given_up for each in list(self._leases.values())):
                        break
                    self._connect(self._look())
                pause = self._let_go()
        for session in (self._session, *self._silent, *self._needless):
            session.close()
        for lease in list(self._leases.values()):
            lease.has_ended = True
        for each in (self._reader, self._writer):
            if each is not None:
                each.close()
