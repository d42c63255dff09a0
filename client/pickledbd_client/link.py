"""A PickleDB's way to its daemon: channels for as many threads as ask at once.

`request` may be called from any thread, from a signal handler in the midst of another request,
and in a forked child. It takes no lock: idle channels are kept in a deque, whose operations are
atomic, and the pid tells a fork.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from pickledbd_client.calls import Call, T
from pickledbd_client.channel import (
    Channel,
    ConnectionLostError,
    Deadline,
    NobodyThereError,
)
from pickledbd_client.owner import reach_owner
from pickledbd_protocol import COMMANDS, NotAllowed, PickleDBError, RequestTimeout, Unavailable

_RETRY_SECONDS = 0.05
_LONGEST = 1_000_000.0  # seconds: the system's calls cannot wait for much more, so it waits on

_inherited: list[Channel] = []  # a parent's channels, never to be used or closed by its child


class Link:
    """Requests to the daemon at an endpoint, or to the one that owns a path."""

    def __init__(self, target: str | Path, timeout: float | None, *, autostart: bool) -> None:
        self.target = target
        self.daemon: dict[str, Any] = {}
        self._timeout = timeout
        self._autostart = autostart
        self._idle: deque[Channel] = deque()
        self._pid = os.getpid()
        self._closed = False
        self._of_thread = threading.local()

    def connect(self) -> None:
        """Have a first connection. A daemon that is loading a large file is waited for."""
        try:
            self._idle.append(self._connect(self._deadline(), patient=True))
        except RequestTimeout:
            raise self._silent() from None

    def request(self, call: Call[T]) -> T:
        """Ask `call` and return its value. Raises what the daemon replied, or why there is none."""
        self._of_thread.requests = getattr(self._of_thread, "requests", 0) + 1
        deadline = self._deadline()
        while True:
            channel = self._take(deadline)
            try:
                reply = channel.exchange(call, deadline)
            except ConnectionLostError as lost:
                channel.close()
                # Another daemon's save would not tell what became of this one's
                if lost.sent and (COMMANDS[call.op].writes or call.op == "save"):
                    raise Unavailable(
                        f"the daemon at {channel.endpoint} went away during a {call.op}; "
                        "it may or may not have been applied",
                        outcome_known=False,
                    ) from None
            except RequestTimeout:
                channel.close()
                raise self._timed_out(call, channel.endpoint) from None
            except BaseException:
                channel.close()
                raise
            else:
                self._idle.append(channel)
                if self._closed:
                    self.close()
                if reply.error is not None:
                    raise reply.error
                return call.read(reply)

    def mark(self) -> tuple[int, int]:
        """What stays the same until this thread asks the next request."""
        return threading.get_ident(), getattr(self._of_thread, "requests", 0)

    def close(self) -> None:
        """Drop the idle connections; those in use are dropped when their requests end."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _deadline(self) -> Deadline:
        if self._timeout is None or self._timeout > _LONGEST:
            return None
        return time.monotonic() + self._timeout

    def _take(self, deadline: Deadline) -> Channel:
        if self._pid != os.getpid():
            _inherited.extend(self._idle)
            self._idle = deque()
            self._pid = os.getpid()
        if self._closed:
            raise Unavailable(f"this PickleDB of {self.target} is closed")
        try:
            return self._idle.pop()
        except IndexError:
            pass
        try:
            return self._connect(deadline, patient=False)
        except RequestTimeout:
            raise self._silent() from None

    def _connect(self, deadline: Deadline, *, patient: bool) -> Channel:
        """A new channel to where the target is now."""
        if isinstance(self.target, Path):
            channel = reach_owner(
                self.target,
                deadline=deadline,
                autostart=self._autostart,
                patient=patient,
            )
        else:
            channel = self._connect_endpoint(self.target, deadline)
        self.daemon = channel.daemon
        return channel

    def _connect_endpoint(self, endpoint: str, deadline: Deadline) -> Channel:
        """A channel to `endpoint`. A daemon that was there before and is gone is waited for."""
        while True:
            try:
                return Channel(endpoint, deadline)
            except NobodyThereError as error:
                if error.forbidden:
                    raise NotAllowed(f"not allowed to connect to {endpoint}: {error.why}") from None
                late = deadline is not None and time.monotonic() > deadline
                if not self.daemon or late:
                    raise Unavailable(
                        f"no daemon at {endpoint}: {error.why}; "
                        f"start one with: pickledbd LOCATION --bind {endpoint}"
                    ) from None
            time.sleep(_RETRY_SECONDS)

    def _silent(self) -> PickleDBError:
        return Unavailable(
            f"the daemon of {self.target} accepts connections but did not answer within "
            f"{self._timeout} s; nothing was asked of it"
        )

    def _timed_out(self, call: Call[Any], endpoint: str) -> PickleDBError:
        message = f"the daemon at {endpoint} did not answer a {call.op} within {self._timeout} s"
        if COMMANDS[call.op].writes:
            return RequestTimeout(
                f"{message}; it may or may not have been applied, or may be yet",
                outcome_known=False,
            )
        return RequestTimeout(message)
