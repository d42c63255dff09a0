"""Connections by their descriptors, which are libzmq's: who is at the other end, and ending one.

May live here: what the system is asked of a socket that another thread uses, and may close.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import Any

NOBODY = "somebody who has gone"

_UCRED = struct.Struct("3i")  # pid, uid and gid, as SO_PEERCRED tells them (unix(7))


def who_is(descriptor: int) -> tuple[str, dict[str, Any]]:
    """Whom the system knows at the other end; and the same as fields."""
    try:
        with _socket(descriptor) as there:
            if there.family != socket.AF_UNIX:
                host, port, *_ = there.getpeername()
                there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)  # see Claim.hold
                address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
                return address, {"peer_address": address}
            if hasattr(socket, "SO_PEERCRED"):
                told = there.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
                pid, uid, _ = _UCRED.unpack(told)
                return f"uid {uid}, pid {pid}", {"peer_uid": uid, "peer_pid": pid}
    except OSError:
        pass  # it has gone already
    return NOBODY, {}


def shut(descriptor: int) -> None:
    """End the connection, and have nobody read what has come by it."""
    with contextlib.suppress(OSError), _socket(descriptor) as there:
        there.shutdown(socket.SHUT_RDWR)
        while there.recv(2**16):  # libzmq would still read it
            pass


@contextlib.contextmanager
def _socket(descriptor: int) -> Iterator[socket.socket]:
    """The same socket by another descriptor, since libzmq may close its own at any time."""
    there = socket.fromfd(descriptor, socket.AF_UNIX, socket.SOCK_STREAM)
    there = socket.socket(fileno=there.detach())  # with the family that it really has
    with there:
        yield there
