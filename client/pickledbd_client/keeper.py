"""The keeper: what has locks live on while this process does.

May live here: a thread, and its connection. It tells the daemon, well within their time, which
locks are still held; the daemon frees what it does not hear of, and all of them at once when the
connection is lost, which is when the process dies. So nothing of this is done by the threads
that hold locks, which may be at anything. The thread is begun with the first lock, and sleeps
while none is held. What was asked for and is of no use any more, since its asker was interrupted,
is given back here, too.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from pickledbd_client import calls
from pickledbd_client.calls import Call
from pickledbd_client.channel import ConnectionLostError, Session
from pickledbd_client.route import Route
from pickledbd_protocol import PickleDBError, Reply

RENEWALS = 3
"""How often a lock is renewed within its ttl."""

CLOSING_SECONDS = 0.5

CONNECTING_SECONDS = 5.0
"""How long a daemon that is there may take to greet, whatever the user's timeout: with none, a
keeper that is closed would not end."""

PAUSE_SECONDS = 0.1
PAUSE_SECONDS_MAX = 1.0
"""After a failure, before the next attempt: it doubles with each, since a daemon may be gone for
good. But locks are to be kept before their time is over, so never is it longer than where all is
well."""


@dataclass(eq=False)
class Held:
    """A lock that is held: what `with db.lock(name) as held` gives."""

    name: str
    ttl: float
    ask: int
    token: int = 0
    """A fencing token: higher than those of all who held the lock before."""
    lost: bool = False
    """True once it is known that the lock is not held any more."""
    times: int = field(default=1, repr=False)  # that it was taken and not released


class Keeper:
    """Keeps the locks of one handle in one process. Its methods are for any thread."""

    def __init__(self, route: Route) -> None:
        self.holder = uuid.uuid4().hex
        self._route = route
        self._asks = count(1)
        self._held: dict[int, Held] = {}
        self._expected: dict[int, Held] = {}
        self._given_up: deque[Held] = deque()
        self._session = Session()
        self._closed = False
        self._next = float("inf")  # when the thread wakes by itself
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="pickledbd-keeper", daemon=True)
        self._thread.start()

    def new(self, name: str, ttl: float) -> Held:
        """A new ask."""
        return Held(name, ttl, next(self._asks))

    def expect(self, held: Held) -> None:
        """It is about to be sent."""
        self._expected[held.ask] = held

    def keep(self, held: Held) -> None:
        """It was granted: keep it."""
        self._held[held.ask] = held
        self._expected.pop(held.ask, None)
        if time.monotonic() + held.ttl / RENEWALS < self._next:
            self._wake()

    def drop(self, held: Held) -> Call[bool]:
        """Keep it no longer; the call that releases it."""
        self._held.pop(held.ask, None)
        return calls.unlock(held.name, self.holder, held.ask)

    def give_up(self, held: Held) -> None:
        """Have it released, be it granted or not, when the daemon can be asked."""
        self._held.pop(held.ask, None)
        self._expected.pop(held.ask, None)
        self._given_up.append(held)
        self._wake()

    def close(self, *, wait: bool = True) -> None:
        """End the thread, which lets go of everything. A daemon that is stuck is not waited for.

        What was asked for is given up: its askers are answered so. `wait`: until that is done.
        """
        self._given_up += self._expected.values()
        self._closed = True
        self._wake()
        if wait and self._thread is not threading.current_thread():
            self._thread.join(CLOSING_SECONDS)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full of calls to wake, or closed
            self._writer.send(b"\0")

    # The thread

    def _run(self) -> None:
        pause = PAUSE_SECONDS
        while not self._closed:
            self._next = float("inf")  # what is granted from here on is not in this list, and wakes
            held = list(self._held.values())
            pauses = [each.ttl / RENEWALS for each in held]
            try:
                if held or self._given_up or self._session.channel is None:
                    self._tell(held)
                pause = PAUSE_SECONDS
                if self._given_up:
                    pauses.append(PAUSE_SECONDS)
                self._sleep(min(pauses, default=None))
            except (PickleDBError, ConnectionLostError):
                self._session.close()
                again = self._held or self._expected or self._given_up
                self._sleep(min([pause, *pauses]) if again else None)
                pause = min(2 * pause, PAUSE_SECONDS_MAX)
        if self._session.channel is not None or self._given_up:
            with contextlib.suppress(PickleDBError, ConnectionLostError):
                self._tell([])
        self._session.close()
        self._reader.close()
        self._writer.close()

    def _tell(self, held: list[Held]) -> None:
        """Have the daemon know what is held, and what is not wanted."""
        session = self._session
        if session.channel is None:
            by = time.monotonic() + CONNECTING_SECONDS
            # Once: the pauses between are the keeper's. But at its end there is no next attempt
            session.channel = self._route.connect(session, by, once=not self._closed)
        renewal = calls.keep(self.holder, [each.ask for each in held])
        reply = self._ask(renewal)
        if reply.error is not None:
            raise reply.error
        lost = set(renewal.read(reply))
        for each in held:
            if each.ask in lost:
                each.lost = True
                self._held.pop(each.ask, None)
        for each in list(self._given_up):
            if self._ask(calls.unlock(each.name, self.holder, each.ask)).error is None:
                self._given_up.remove(each)

    def _ask(self, call: Call[Any]) -> Reply:
        """However long it takes: to hang up would be to let go of everything."""
        channel, session = self._session.channel, self._session
        assert channel is not None  # noqa: S101 - connected before
        return channel.exchange(call, session.next_id(), None)

    def _sleep(self, seconds: float | None) -> None:
        """Until it is time, or somebody wakes, or the connection is lost: ConnectionLostError."""
        self._next = float("inf") if seconds is None else time.monotonic() + seconds
        poller = select.poll()
        poller.register(self._reader, select.POLLIN)
        channel = self._session.channel
        if channel is not None:
            poller.register(channel.fileno(), select.POLLIN)
            channel.received()
        poller.poll(None if seconds is None else seconds * 1000)
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass
        if channel is not None:
            channel.received()
