"""The daemon's connections: who is at the other end of each, and how to hang up on one.

libzmq tells of connections by their descriptors (zmq_socket_monitor(3)), and of messages by the
routing ids of their peers. Here the two are brought together, and what the system knows of each
peer is noted while it is connected. May live here: what concerns single connections; what they
ask is the loop's and the engine's.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import zmq

log = logging.getLogger(__name__)

LOG_SECONDS = 1.0
"""One line about those who were hung up on is logged in so long, be they ever so many."""

BANNED_SECONDS = 10.0
"""How long a process is kept out that filled the memory, or sent what only costs time."""

# As zmq_socket_monitor(3) tells it: pyzmq's own way would import all of asyncio, at each start
_EVENT = struct.Struct("=Hi")

_UCRED = struct.Struct("3i")  # pid, uid and gid, as SO_PEERCRED tells them (unix(7))


@dataclass(slots=True, eq=False)
class Connection:
    """One connection, by its descriptor in this process."""

    descriptor: int
    endpoint: str
    """Where it was accepted."""
    who: str = ""
    """At the other end, for logs: uid and pid, or the address; found out when it is needed."""
    since: float = field(default_factory=time.monotonic)
    peer: bytes | None = None
    """The routing id, once it has sent a message."""
    is_out: bool = False
    """Whether it was hung up on: what may still come of it is not wanted."""
    admitted: bool = False
    """Whether it is served: it was not one too many when it first asked something."""
    refused_at: float | None = None
    """When it was first told that it is not."""
    heard: int = 0
    """The guard's look before which its last message was taken in."""


class Connections:
    """Those of one ROUTER socket."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        router: zmq.Socket[bytes],
        *,
        first: Callable[[], None],
        most: float = math.inf,
    ) -> None:
        """`first` is called when one is made while there is no other. `most` are served."""
        self.lost: deque[bytes] = deque()
        """Peers that have asked something and are gone; the loop takes them."""
        self.uncounted = False
        """Whether there may be more to be told of."""
        self.accepted_at = -math.inf
        """When the last one was made."""
        self.made = 0
        """How many were accepted, or lost just before."""
        self.admitted = 0
        """How many are served."""
        self.hung_up = 0
        """On how many this side has hung up."""
        self.most = most
        self._banned: dict[str, float] = {}  # until when, by time.monotonic()
        self._tell_at = -math.inf
        self._untold = 0
        self._open: dict[int, Connection] = {}
        self._of_peer: dict[bytes, Connection] = {}
        self._router = router
        self._first = first
        # Their values are descriptors; DISCONNECTED also follows a handshake that failed.
        router.monitor(
            "inproc://connections",
            zmq.EVENT_ACCEPTED | zmq.EVENT_ACCEPT_FAILED | zmq.EVENT_DISCONNECTED,
        )
        # Unbounded, since libzmq's I/O thread waits when the monitor's queue is full
        self._monitor = context.socket(zmq.PAIR)
        self._monitor.rcvhwm = 0
        self._monitor.connect("inproc://connections")

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._open.values()))

    def fileno(self) -> int:
        """Readable when there may be something to `count`; to be asked again after each count."""
        return self._monitor.fileno()

    def close(self) -> None:
        self._router.disable_monitor()
        self._monitor.close(linger=0)

    def count(self, until: float = math.inf) -> None:
        """Know which connections were made and lost: all of them, or what `until` allows."""
        self.uncounted = False
        while not self.uncounted and _readable(self._monitor):
            told, endpoint = self._monitor.recv(zmq.NOBLOCK), self._monitor.recv(zmq.NOBLOCK)
            event, descriptor = _EVENT.unpack(told)
            if event == zmq.EVENT_ACCEPTED:
                if not self._open:
                    self._first()
                self.made += 1
                self.accepted_at = time.monotonic()
                self._open[descriptor] = Connection(descriptor, endpoint.decode())
                if self._banned:
                    self._keep_out(self._open[descriptor])
            elif event == zmq.EVENT_ACCEPT_FAILED:
                self.made += 1
            else:
                connection = self._open.pop(descriptor, None)
                if connection is not None:
                    self._forget(connection)
            self.uncounted = time.monotonic() >= until

    def of(self, peer: bytes, frame: zmq.Frame) -> Connection | None:
        """By which connection a peer's message came; None if that was lost since."""
        return self._of_peer.get(peer) or self._meet(peer, frame)

    def _meet(self, peer: bytes, frame: zmq.Frame) -> Connection | None:
        """Know it by the descriptor.

        Descriptors are given to later connections, so that of a message may be another's by now.
        Of two peers the later one is connected: libzmq numbers them as they come.
        """
        self.count()
        descriptor: int = frame.get(zmq.SRCFD)
        connection = self._open.get(descriptor)
        if connection is None or (connection.peer and _is_later(connection.peer, peer)):
            return None
        if connection.peer is not None:
            self._forget(connection)
        connection.peer = peer
        connection.who = connection.who or _who(descriptor)
        connection.admitted = self.admitted < self.most
        self.admitted += connection.admitted
        self._of_peer[peer] = connection
        return connection

    def _forget(self, connection: Connection) -> None:
        if connection.peer is not None:
            del self._of_peer[connection.peer]
            self.admitted -= connection.admitted
            self.lost.append(connection.peer)

    def who(self, peer: bytes) -> str:
        """Who that is, for logs."""
        connection = self._of_peer.get(peer)
        return "a client that has gone" if connection is None else connection.who

    def get(self, peer: bytes) -> Connection | None:
        """That of a peer that has sent a message."""
        return self._of_peer.get(peer)

    def hang_up(self, connection: Connection, why: str = "", *, ban: bool = False) -> None:
        """End a connection, which libzmq then notices by itself. `why` is logged, now and then.

        `ban`: and have its process come again only after a while.
        """
        self.count()  # the descriptor may be another's by now
        if self._open.get(connection.descriptor) is not connection:
            return
        connection.who = connection.who or _who(connection.descriptor)
        self._shut(connection)
        if ban:
            self._banned[connection.who] = time.monotonic() + BANNED_SECONDS
            why += f"; it is kept out for {BANNED_SECONDS:g} s"
        if why:
            self._tell(connection, why)

    def _keep_out(self, connection: Connection) -> None:
        now = time.monotonic()
        self._banned = {who: until for who, until in self._banned.items() if until > now}
        connection.who = _who(connection.descriptor)
        if connection.who in self._banned:
            self._shut(connection)

    def _shut(self, connection: Connection) -> None:
        connection.is_out = True
        self.hung_up += 1
        with contextlib.suppress(OSError), _socket(connection.descriptor) as there:
            there.shutdown(socket.SHUT_RDWR)
            while there.recv(2**16):  # libzmq would still read it
                pass

    def _tell(self, connection: Connection, why: str) -> None:
        # Whoever reads the log must not be able to hold the loop up, nor fill a disk
        now = time.monotonic()
        if now < self._tell_at:
            self._untold += 1
            return
        others = f" ({self._untold} others since the last such line)" if self._untold else ""
        log.warning("hung up on %s, who %s%s", connection.who, why, others)
        self._tell_at, self._untold = now + LOG_SECONDS, 0

    def most_of(self, sample: int = 1000) -> str:
        """Who has most of the newest connections, for logs."""
        newest = list(self._open.values())[-sample:]
        for connection in newest:
            connection.who = connection.who or _who(connection.descriptor)
        (who, count), *_ = Counter(each.who for each in newest).most_common(1) or [("nobody", 0)]
        return f"{who}: {count} of the last {len(newest)}"


def _who(descriptor: int) -> str:
    """Whom the system knows at the other end."""
    try:
        with _socket(descriptor) as there:
            if there.family != socket.AF_UNIX:
                host, port, *_ = there.getpeername()
                return f"{host}:{port}"
            if hasattr(socket, "SO_PEERCRED"):
                told = there.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
                pid, uid, _ = _UCRED.unpack(told)
                return f"uid {uid}, pid {pid}"
    except OSError:
        pass  # it has gone already
    return "somebody unknown"


@contextlib.contextmanager
def _socket(descriptor: int) -> Iterator[socket.socket]:
    """The same socket by another descriptor, since libzmq may close its own at any time."""
    there = socket.fromfd(descriptor, socket.AF_UNIX, socket.SOCK_STREAM)
    there = socket.socket(fileno=there.detach())  # with the family that it really has
    with there:
        yield there


def _readable(source: zmq.Socket[bytes]) -> bool:
    return source.get(zmq.EVENTS) & zmq.POLLIN != 0  # type: ignore[operator,arg-type] # EVENTS is an int


def _is_later(peer: bytes, than: bytes) -> bool:
    """Whether a peer came later: its routing id is a NUL and a number of 32 bits that grows."""
    ahead = int.from_bytes(peer[1:], "big") - int.from_bytes(than[1:], "big")
    return 0 < ahead % 2**32 < 2**31
