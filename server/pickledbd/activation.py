"""Socket activation: listening sockets that the service manager made (sd_listen_fds(3)).

They are there before the daemon, and stay when it ends, so clients that come meanwhile are not
refused: they wait. It is their unit that says where they are, to whom they belong and who may
connect; here they are only used.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import NamedTuple

from pickledbd.endpoints import CannotServe, check

FIRST = 3
"""The first descriptor that is passed (SD_LISTEN_FDS_START of <systemd/sd-daemon.h>)."""


class Passed(NamedTuple):
    """A listening socket that was passed to this process."""

    endpoint: str
    """Where it listens, as clients reach it."""
    name: str
    """FileDescriptorName= of its unit."""
    socket: socket.socket
    what: str
    """All that, for the messages."""


def passed() -> Iterator[Passed]:
    """The sockets that were passed to this process, if any. CannotServe at one that is unfit.

    What the environment tells of them is removed there: it is for this process alone.
    """
    pid, count, names = (
        os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    )
    if pid != str(os.getpid()) or not count.isdecimal():
        return
    told = dict(enumerate(names.split(":"), FIRST))
    for descriptor in range(FIRST, FIRST + int(count)):
        yield _taken(descriptor, told.get(descriptor) or "unknown")


def _taken(descriptor: int, name: str) -> Passed:
    what = f"descriptor {descriptor} ({name}), which was passed by the service manager,"
    try:
        os.set_inheritable(descriptor, False)
        found = socket.socket(fileno=descriptor)
        listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise CannotServe(f"{what} is no socket: {error.strerror}; use ListenStream=") from None
    if found.type != socket.SOCK_STREAM or not listens:
        raise CannotServe(f"{what} is no stream that listens; use ListenStream= and Accept=no")
    found.setblocking(False)  # libzmq accepts when there was something, which may go
    try:
        endpoint = _endpoint(found)
        check(endpoint, beyond_loopback=True)  # which is for who has the options to say
    except CannotServe as error:
        raise CannotServe(f"{what} does not fit: {error}") from None
    return Passed(endpoint, name, found, what)


def _endpoint(listening: socket.socket) -> str:
    """Where it listens, as clients reach it."""
    address = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        # It is bytes where it is one of Linux's abstract ones
        if not isinstance(address, str) or not address.startswith("/"):
            raise CannotServe(f"{address!r} is not a file's absolute path, which has permissions")
        return f"ipc://{address}"
    if listening.family in (socket.AF_INET, socket.AF_INET6):
        host, port, *_ = address
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
    raise CannotServe(f"{listening.family.name} is neither AF_UNIX nor TCP")
