"""The way from what a user named to the daemon, and what is told where that fails.

May live here: what PickleDB and AsyncPickleDB have in common beneath their requests. A route has
no connection; `connect` makes one, and blocks while it does.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pickledbd_client.cache import Cache
from pickledbd_client.calls import OWN, Call
from pickledbd_client.channel import Channel, Deadline, NobodyThereError, Session
from pickledbd_client.curve import Curve, CurveFiles, curve_of
from pickledbd_client.owner import STARTING_SECONDS, reach_owner, starting
from pickledbd_protocol import COMMANDS, NotAllowed, PickleDBError, RequestTimeout, Unavailable

DEFAULT_ENDPOINT = "ipc:///run/pickledbd/default.sock"
"""Where the system service listens (systemd/README.md)."""

PORT_MAX = 65535

_forks: list[None] = []  # as many as this process and those before it have been forked
os.register_at_fork(after_in_child=lambda: _forks.append(None))

_inherited: list[object] = []

Location = str | bytes | os.PathLike[str] | None

_RETRY_SECONDS = 0.05
_LONGEST = 1_000_000.0  # seconds: the system's calls cannot wait for much more, so it waits on


def generation() -> int:
    """Another number in a forked child than in its parent. To ask for the pid is a syscall."""
    return len(_forks)


def leave(connections: Iterable[object]) -> None:
    """Never use or close these, which are the parent's; nor may the collector."""
    _inherited.extend(connections)


class Route:
    """From a location and the options of its user to channels; see PickleDB for what they mean."""

    def __init__(
        self,
        location: Location,
        *,
        timeout: float | None,
        cache_bytes: int,
        autostart: bool,
        curve: CurveFiles | None,
    ) -> None:
        self._curve = curve_of(curve)
        if timeout is not None and not 0 < timeout < float("inf"):
            raise ValueError(f"timeout must be a number of seconds over 0, or None: {timeout!r}")
        if type(cache_bytes) is not int or cache_bytes < 0:
            raise ValueError(f"cache_bytes must be a number of bytes, 0 or more: {cache_bytes!r}")
        if location is None:
            location = os.environ.get("PICKLEDBD_URL") or DEFAULT_ENDPOINT
        self._named = os.fsdecode(location)
        if not self._named:
            raise Unavailable("the location is empty: it is a path or an endpoint")
        self.target = _target(self._named)
        self.options: dict[str, Any] = {
            "timeout": timeout,
            "cache_bytes": cache_bytes,
            "autostart": autostart,
            "curve": curve and self._curve and self._curve.files,
        }
        self.cache = Cache(cache_bytes)
        self.daemon: dict[str, Any] = {}
        """What the daemon told at the last connection."""
        self._timeout = timeout
        self._autostart = autostart

    @property
    def location(self) -> str:
        """The database file as pickleDB tells it; of an endpoint, itself until it was reached."""
        if isinstance(self.target, Path):
            return os.path.expanduser(self._named)  # noqa: PTH111 - as pickleDB: not normalised
        return str(self.daemon.get("location", self.target))

    @property
    def read_only(self) -> bool:
        """Whether the daemon lets this client only read: there is nothing of its own to save."""
        return self.daemon.get("read_only") is True

    def deadline(self, call: Call[Any] | None = None) -> Deadline:
        """When a request that begins now has to be answered."""
        timeout = self._timeout if call is None or call.patience == OWN else call.patience
        if timeout is None or timeout > _LONGEST:
            return None
        return time.monotonic() + timeout

    def patience(self, seconds: float | None) -> float | None:
        """How long to wait for the answer to what others may hold up for `seconds`."""
        return None if seconds is None or self._timeout is None else seconds + self._timeout

    def connect(self, session: Session, deadline: Deadline, *, once: bool = False) -> Channel:
        """A new channel to where the target is now.

        The first time, a daemon that is loading a large file is waited for. `once`: none is
        waited for, nor started.
        """
        first = not self.daemon and not once
        try:
            if isinstance(self.target, Path):
                channel = reach_owner(
                    self.target,
                    session,
                    deadline=deadline,
                    autostart=self._autostart and not once,
                    first=first,
                    once=once,
                    curve=self._curve,
                )
            else:
                channel = _connect_endpoint(
                    self.target, session, deadline, first=first, once=once, curve=self._curve
                )
        except RequestTimeout as timeout:
            silent = f"accepts connections but did not answer within {self._timeout} s"
            if isinstance(self.target, str) and self.target.startswith("tcp:"):
                silent = f"is halted or busy, or out of reach: no answer within {self._timeout} s"
            raise Unavailable(
                f"the daemon of {self.target} {silent}; nothing was asked of it"
            ) from timeout
        self.daemon = channel.daemon
        return channel

    def repeatable(self, call: Call[Any]) -> bool:
        """Whether the daemon that is there next may be asked the same."""
        if call.op == "save":
            # Where writes live on only by saves, the next daemon's save would not tell what
            # became of what this one held.
            return bool(self.daemon.get("durability", "save") != "save")
        return not COMMANDS[call.op].writes or "repeats" in self.daemon["features"]

    def unknown(self, call: Call[Any], why: str) -> Unavailable:
        """The error where a request got no answer and is not sent again."""
        if not COMMANDS[call.op].writes and call.op != "save":
            return Unavailable(f"the daemon of {self.target} did not answer a {call.op}: {why}")
        return Unavailable(
            f"the daemon of {self.target} did not answer a {call.op}, which may or may not have "
            f"been applied: {why}",
            outcome_known=False,
        )

    def not_repeated(self, call: Call[Any], why: PickleDBError) -> PickleDBError:
        """The error where a request was sent, and `why` there is no connection to repeat it on."""
        if isinstance(why.__cause__, RequestTimeout):
            return self._no_answer(call, self._timeout)
        if isinstance(why, NotAllowed) and not COMMANDS[call.op].writes:
            return why  # which tells more, and there is nothing that may have been done
        return self.unknown(call, str(why))

    def timed_out(self, call: Call[Any]) -> PickleDBError:
        """The error where the deadline has passed."""
        return self._no_answer(call, self._timeout if call.patience == OWN else call.patience)

    def _no_answer(self, call: Call[Any], seconds: float | None) -> PickleDBError:
        message = f"the daemon of {self.target} did not answer a {call.op} within {seconds} s"
        if COMMANDS[call.op].writes or call.op == "save":
            return RequestTimeout(
                f"{message}; it may or may not have been applied, or may be yet",
                outcome_known=False,
            )
        return RequestTimeout(message)

    def closed(self) -> Unavailable:
        """The error where the user has closed it."""
        return Unavailable(f"this PickleDB of {self.target} is closed")


def _connect_endpoint(
    endpoint: str,
    session: Session,
    deadline: Deadline,
    *,
    first: bool,
    once: bool,
    curve: Curve | None,
) -> Channel:
    """A channel to `endpoint`. A daemon that was there before and is gone is waited for.

    So is, the `first` time, one that ends just now, and one that tells that it is loading, as long
    as it gets on with that. `once`: nobody is waited for.
    """
    path = Path(endpoint.removeprefix("ipc://"))
    may_be_told = first and endpoint.startswith("ipc://")
    seen: dict[str, Any] = {}
    while True:
        told = starting(path) if may_be_told else {}
        if told not in ({}, seen) and deadline is not None:
            seen, deadline = told, max(deadline, time.monotonic() + STARTING_SECONDS)
        try:
            return Channel(endpoint, session, deadline, curve)
        except RequestTimeout:
            if not may_be_told or starting(path) in ({}, seen):
                raise
        except NobodyThereError as error:
            if error.forbidden:
                raise NotAllowed(f"not allowed to connect to {endpoint}: {error.why}") from None
            gone = once or (first and not (error.left or told))
            if gone or (deadline is not None and time.monotonic() > deadline):
                if error.refused:
                    raise Unavailable(f"cannot connect to {endpoint}: {error.why}") from None
                raise Unavailable(
                    f"no daemon at {endpoint}: {error.why}; "
                    f"start one with: pickledbd LOCATION --bind {endpoint}"
                ) from None
        time.sleep(_RETRY_SECONDS)


def _target(location: str) -> str | Path:
    """An endpoint as it is; a path with everything resolved, as its owner knows it."""
    scheme = re.match(r"([a-z]+)://", location)
    if scheme is None:
        return Path(os.path.realpath(os.path.expanduser(location)))  # noqa: PTH111 - as pickleDB does
    port = re.fullmatch(r"tcp://(?:\[[^\]]+\]|[^:/]+):(\d{1,5})", location)
    if not location.startswith("ipc:///") and not (port and int(port[1]) <= PORT_MAX):
        raise Unavailable(f"{location}: the location is a path, ipc:///PATH or tcp://ADDRESS:PORT")
    return location
