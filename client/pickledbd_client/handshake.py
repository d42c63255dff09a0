"""Why a tcp connection does not come about, which ZeroMQ keeps quiet but for its monitors.

Both sides have to want the same (CURVE keys, or none), the daemon's key has to be the one that the
client knows, and the client's one that the daemon does. ZeroMQ tells each side only what this side
noticed first. So where that does not say it, the daemon is asked by hand which of the two it wants.
"""

from __future__ import annotations

import enum
import socket
import struct
from itertools import count

import zmq

_EVENT = struct.Struct("=Hi")
_EVENTS = (
    zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_numbers = count()

# ZMTP 3.1 (ZeroMQ's RFC 37): who tells no more than its version is told the mechanism
_VERSION = b"\xff" + bytes(8) + b"\x7f\x03\x01"
_MECHANISM_AT, _MECHANISM_BYTES = len(_VERSION), 20


class Failure(enum.Enum):
    """What became of a connection that did not come about."""

    CONNECT = enum.auto()
    HANDSHAKE = enum.auto()
    KEY = enum.auto()


class Handshake:
    """Watches a socket until it is connected."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], dealer: zmq.Socket[bytes]) -> None:
        address = f"inproc://handshake-{next(_numbers)}"
        self._dealer = dealer
        dealer.monitor(address, _EVENTS)
        self._monitor = context.socket(zmq.PAIR)
        self._monitor.linger = 0
        self._monitor.connect(address)

    def fileno(self) -> int:
        """Readable when it may have failed."""
        return self._monitor.fileno()

    def failure(self) -> Failure | None:
        """What was told, if anything was. Does not wait."""
        if not self._monitor.get(zmq.EVENTS) & zmq.POLLIN:  # type: ignore[operator,arg-type] # EVENTS is an int
            return None
        event, _ = _EVENT.unpack(self._monitor.recv_multipart(zmq.NOBLOCK)[0])
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return Failure.KEY
        return Failure.CONNECT if event == zmq.EVENT_CLOSED else Failure.HANDSHAKE

    def close(self) -> None:
        self._dealer.disable_monitor()
        self._monitor.close()


def mechanism(address: tuple[str, int], timeout: float | None) -> str:
    """What who listens there wants: CURVE or NULL; empty if it is no ZeroMQ. OSError."""
    greeting = b""
    with socket.create_connection(address, timeout) as asking:
        asking.sendall(_VERSION)
        while len(greeting) < _MECHANISM_AT + _MECHANISM_BYTES:
            more = asking.recv(_MECHANISM_AT + _MECHANISM_BYTES - len(greeting))
            if not more:
                return ""
            greeting += more
    return greeting[_MECHANISM_AT:].rstrip(b"\0").decode("ascii", "replace")
