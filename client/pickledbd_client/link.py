"""A PickleDB's way to its daemon: channels for as many threads as ask at once.

`request` may be called from any thread, from a signal handler in the midst of another request,
and in a forked child. It takes no lock: idle channels are kept in a deque, whose operations are
atomic, and the pid tells a fork.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from pickledbd_client.cache import Cache
from pickledbd_client.calls import Call, T
from pickledbd_client.channel import (
    Channel,
    ConnectionLostError,
    Deadline,
    NobodyThereError,
    Session,
)
from pickledbd_client.owner import reach_owner
from pickledbd_protocol import (
    COMMANDS,
    NotAllowed,
    PickleDBError,
    Reply,
    RequestTimeout,
    Unavailable,
)

_RETRY_SECONDS = 0.05
_LONGEST = 1_000_000.0  # seconds: the system's calls cannot wait for much more, so it waits on

_inherited: list[Session] = []  # a parent's sessions, never to be used or closed by its child


class Link:
    """Requests to the daemon at an endpoint, or to the one that owns a path."""

    def __init__(
        self, target: str | Path, timeout: float | None, *, cache_bytes: int, autostart: bool
    ) -> None:
        self.target = target
        self.cache = Cache(cache_bytes)
        self.daemon: dict[str, Any] = {}
        self._timeout = timeout
        self._autostart = autostart
        self._idle: deque[Session] = deque()
        self._pid = os.getpid()
        self._closed = False
        self._of_thread = threading.local()

    def connect(self) -> None:
        """Have a first connection. A daemon that is loading a large file is waited for."""
        session = Session()
        session.channel = self._connect(session, self._deadline())
        self._idle.append(session)

    def request(self, call: Call[T]) -> T:
        """Ask `call` and return its value. Raises what the daemon replied, or why there is none.

        If the daemon goes away it is asked again when it, or another in its place, is there.
        """
        self._of_thread.requests = getattr(self._of_thread, "requests", 0) + 1
        deadline = self._deadline()
        session = self._take()
        request_id = session.next_id()
        sent: float | None = None
        while True:
            started = time.monotonic()
            try:
                channel = self._channel(session, deadline, asked=call if sent else None)
                reply = channel.exchange(call, request_id, deadline, first_sent=sent)
                self._keep(call, reply, channel, session)
            except ConnectionLostError as lost:
                session.close()
                sent = sent or (started if lost.sent else None)
                if sent and not self._repeatable(call):
                    raise self._unknown(call, "it went away meanwhile") from None
            except RequestTimeout:
                session.close()
                raise self._timed_out(call) from None
            except BaseException as error:
                session.close()
                if sent and isinstance(error, PickleDBError) and COMMANDS[call.op].writes:
                    error.outcome_known = False  # who came next refuses the repeat, not the first
                raise
            else:
                self._idle.append(session)
                if self._closed:
                    self.close()
                if reply.error is not None:
                    raise reply.error
                return call.read(reply)

    def _keep(self, call: Call[Any], reply: Reply, channel: Channel, session: Session) -> None:
        if call.reads is None or self.cache.keep(call.reads, reply, channel.counters):
            return
        try:
            channel.greet(session, self._deadline())
        except (PickleDBError, ConnectionLostError):  # the reply is there; this is for the next
            session.close()

    def _channel(self, session: Session, deadline: Deadline, asked: Call[Any] | None) -> Channel:
        """The session's channel, made anew if it was lost. `asked`: what was sent by that."""
        if session.channel is None:
            try:
                session.channel = self._connect(session, deadline)
            except (Unavailable, NotAllowed) as error:
                if asked is None:
                    raise
                raise self._unknown(asked, str(error)) from None
        return session.channel

    def _repeatable(self, call: Call[Any]) -> bool:
        """Whether the daemon that is there next may be asked the same."""
        if call.op == "save":
            # Where writes live on only by saves, the next daemon's save would not tell what
            # became of what this one held.
            return bool(self.daemon.get("durability", "save") != "save")
        return not COMMANDS[call.op].writes or "repeats" in self.daemon["features"]

    def mark(self) -> tuple[int, int]:
        """What stays the same until this thread asks the next request."""
        return threading.get_ident(), getattr(self._of_thread, "requests", 0)

    def close(self) -> None:
        """Drop the idle connections; those in use are dropped when their requests end."""
        self._closed = True
        self.cache.close()
        with contextlib.suppress(IndexError):  # also a thread whose request has ended may do this
            while True:
                self._idle.pop().close()

    def _deadline(self) -> Deadline:
        if self._timeout is None or self._timeout > _LONGEST:
            return None
        return time.monotonic() + self._timeout

    def _take(self) -> Session:
        if self._pid != os.getpid():
            _inherited.extend(self._idle)
            self._idle = deque()
            self._pid = os.getpid()
        if self._closed:
            raise Unavailable(f"this PickleDB of {self.target} is closed")
        try:
            return self._idle.pop()
        except IndexError:
            return Session()

    def _connect(self, session: Session, deadline: Deadline) -> Channel:
        """A new channel to where the target is now."""
        first = not self.daemon
        try:
            if isinstance(self.target, Path):
                channel = reach_owner(
                    self.target,
                    session,
                    deadline=deadline,
                    autostart=self._autostart,
                    first=first,
                )
            else:
                channel = self._connect_endpoint(self.target, session, deadline, first=first)
        except RequestTimeout:
            raise Unavailable(
                f"the daemon of {self.target} accepts connections but did not answer within "
                f"{self._timeout} s; nothing was asked of it"
            ) from None
        self.daemon = channel.daemon
        return channel

    def _connect_endpoint(
        self, endpoint: str, session: Session, deadline: Deadline, *, first: bool
    ) -> Channel:
        """A channel to `endpoint`. A daemon that was there before and is gone is waited for."""
        while True:
            try:
                return Channel(endpoint, session, deadline)
            except NobodyThereError as error:
                if error.forbidden:
                    raise NotAllowed(f"not allowed to connect to {endpoint}: {error.why}") from None
                if first or (deadline is not None and time.monotonic() > deadline):
                    raise Unavailable(
                        f"no daemon at {endpoint}: {error.why}; "
                        f"start one with: pickledbd LOCATION --bind {endpoint}"
                    ) from None
            time.sleep(_RETRY_SECONDS)

    def _unknown(self, call: Call[Any], why: str) -> Unavailable:
        if not COMMANDS[call.op].writes and call.op != "save":
            return Unavailable(f"the daemon of {self.target} did not answer a {call.op}: {why}")
        return Unavailable(
            f"the daemon of {self.target} did not answer a {call.op}, which may or may not have "
            f"been applied: {why}",
            outcome_known=False,
        )

    def _timed_out(self, call: Call[Any]) -> PickleDBError:
        message = f"the daemon of {self.target} did not answer a {call.op} within {self._timeout} s"
        if COMMANDS[call.op].writes or call.op == "save":
            return RequestTimeout(
                f"{message}; it may or may not have been applied, or may be yet",
                outcome_known=False,
            )
        return RequestTimeout(message)
