"""From a path to the daemon that owns it, which is started if there is none.

The lock file beside the data tells who owns it (SPEC.md, The lock file). It may be an old one, so
what it tells is tried, and who answers has to be the owner of just this path.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pickledbd_client.channel import Channel, Deadline, NobodyThereError, Session
from pickledbd_client.curve import Curve
from pickledbd_client.starting import Starter, is_free, lock_path
from pickledbd_protocol import NotAllowed, Unavailable, owner_told

STARTING_SECONDS = 60.0
"""How long a starting daemon may take without any sign of progress."""

_RETRY_SECONDS = 0.02
_STARTING = ("starting", "loading")


def reach_owner(
    path: Path,
    session: Session,
    *,
    deadline: Deadline,
    autostart: bool,
    first: bool,
    once: bool = False,
    curve: Curve | None = None,
) -> Channel:
    """A channel to the daemon that owns `path`.

    `first`: a daemon that is starting is waited for beyond the deadline, as long as it gets on
    with loading its file; but where there is none, and none is to be started, there is nobody to
    wait for. Later one that is gone is expected to come back until the deadline. One that is
    killed while it starts is started again. `once`: nobody is waited for. Unavailable or NotAllowed
    if nobody can be reached, RequestTimeout if the owner does not answer.
    """
    starter = Starter(path) if autostart else None
    seen: dict[str, Any] = {}
    while True:
        told = _told(path)
        if first and deadline is not None and told != seen and told.get("state") in _STARTING:
            deadline = max(deadline, time.monotonic() + STARTING_SECONDS)
        seen = told
        found = _try_all(path, session, told=told, deadline=deadline, curve=curve)
        if isinstance(found, Channel):
            return found
        problem = found or _problem(told)
        if starter:
            if starter.go_on() and first and deadline is not None:
                deadline = max(deadline, time.monotonic() + STARTING_SECONDS)
        elif first and (told.get("state") not in _STARTING or is_free(path)):
            raise Unavailable(f"cannot reach {path}: {problem}, and autostart is off")
        if once or (deadline is not None and time.monotonic() > deadline):
            raise Unavailable(f"cannot reach {path}: {problem}")
        time.sleep(_RETRY_SECONDS)


def starting(path: Path) -> dict[str, Any]:
    """What a daemon that is not ready yet tells beside `path`, its data or socket; else {}."""
    told = _told(path)
    return told if told.get("state") in _STARTING and not is_free(path) else {}


def _try_all(
    path: Path,
    session: Session,
    *,
    told: dict[str, Any],
    deadline: Deadline,
    curve: Curve | None,
) -> Channel | str:
    """A channel to the first endpoint where the owner is, else what was found instead, if any."""
    problem = ""
    forbidden: NotAllowed | None = None
    for endpoint in told.get("endpoints", ()):
        try:
            found = _try(endpoint, path, session, told=told, deadline=deadline, curve=curve)
        except NotAllowed as error:  # another one may be meant for this user
            forbidden = forbidden or error
            continue
        if isinstance(found, Channel):
            return found
        problem = found
    if forbidden is not None:
        raise forbidden
    return problem


def _try(
    endpoint: str,
    path: Path,
    session: Session,
    *,
    told: dict[str, Any],
    deadline: Deadline,
    curve: Curve | None,
) -> Channel | str:
    """A channel to `endpoint` if the owner of `path` is there, else what was found instead."""
    try:
        channel = Channel(endpoint, session, deadline, curve)
    except NobodyThereError as error:
        if error.forbidden:
            raise NotAllowed(
                f"not allowed to connect to {endpoint}, where pid {told.get('pid')} serves "
                f"{path}: {error.why}; ask its user for an endpoint that you may use"
            ) from None
        return f"pid {told.get('pid')} does not answer at {endpoint}: {error.why}"
    if channel.daemon["location"] == os.fspath(path):
        return channel
    # The lock file was copied together with the data, or the endpoint is another daemon's by now
    channel.close()
    return f"{endpoint} serves {channel.daemon['location']}"


def _problem(told: dict[str, Any]) -> str:
    if told.get("state") in _STARTING:
        if told.get("pid") is None:
            return "a daemon is being started for it"
        done = f", {told['bytes']:,} bytes so far" if "bytes" in told else ""
        return f"pid {told.get('pid')} is still loading it{done}"
    return "nobody serves it"


def _told(path: Path) -> dict[str, Any]:
    try:
        return owner_told(lock_path(path).read_bytes())
    except OSError:
        return {}
