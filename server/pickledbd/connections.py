"""The daemon's connections: who is at the other end of each, and how to hang up on one.

libzmq tells of connections by their descriptors (zmq_socket_monitor(3)), and of messages by the
routing ids of their peers. Here the two are brought together, and what the system knows of each
peer is noted while it is connected. May live here: what concerns single connections; what they
ask is the loop's and the engine's.
"""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import zmq

from pickledbd.door import Door
from pickledbd.rights import EVERYTHING, Rights

# As zmq_socket_monitor(3) tells it: pyzmq's own way would import all of asyncio, at each start
_EVENT = struct.Struct("=Hi")

AT_ONCE = 32
"""Events that are taken in together: what comes later says whom the earlier ones are about."""

NOBODY = "somebody who has gone"

_UCRED = struct.Struct("3i")  # pid, uid and gid, as SO_PEERCRED tells them (unix(7))


@dataclass(slots=True, eq=False)
class Connection:
    """One connection, by its descriptor in this process."""

    descriptor: int
    endpoint: str
    """Where it was accepted."""
    who: str
    """At the other end, for logs: uid and pid, or the address."""
    since: float = field(default_factory=time.monotonic)
    peer: bytes | None = None
    """The routing id, once it has sent a message."""
    user: str = ""
    """The user id that came with that."""
    rights: Rights = EVERYTHING


class Connections:
    """Those of one ROUTER socket."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        router: zmq.Socket[bytes],
        *,
        door: Door,
        first: Callable[[], None],
    ) -> None:
        """`first` is called when one is made while there is no other."""
        self.lost: deque[bytes] = deque()
        """Peers that have asked something and are gone; the loop takes them."""
        self.uncounted = False
        """Whether there may be more to be told of."""
        self.accepted_at = -math.inf
        """When the last one was made."""
        self._open: dict[int, Connection] = {}
        self._of_peer: dict[bytes, Connection] = {}
        self._told: deque[tuple[int, int, bytes]] = deque()
        self._failed: dict[bytes, int] = {}  # why the handshake failed that was told of last
        self._router = router
        self._door = door
        self._first = first
        # Their values are descriptors, but for the reason of a failed handshake, after which
        # DISCONNECTED comes, too
        events = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        router.monitor("inproc://connections", events)
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
        while not self.uncounted and (self._told or self._hear()):
            event, value, endpoint = self._told.popleft()
            if event == zmq.EVENT_ACCEPTED:
                if not self._open:
                    self._first()
                self.accepted_at = time.monotonic()
                # Else the descriptor may be another's by now
                has_gone = any(later[:2] == (zmq.EVENT_DISCONNECTED, value) for later in self._told)
                who = NOBODY if has_gone else _who(value)
                self._open[value] = Connection(value, endpoint.decode(), who)
            elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                self._failed[endpoint] = value
            else:
                failure = self._failed.pop(endpoint, None)
                connection = self._open.pop(value, None)
                if connection is not None:
                    self._forget(connection, failure)
            self.uncounted = time.monotonic() >= until

    def _hear(self) -> bool:
        """Take in what is told; whether it was anything."""
        while len(self._told) < AT_ONCE and _readable(self._monitor):
            told, endpoint = self._monitor.recv_multipart(zmq.NOBLOCK)
            event, value = _EVENT.unpack(told)
            self._told.append((event, value, endpoint))
        return bool(self._told)

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
        self._of_peer[peer] = connection
        connection.user = self._door.user(frame)
        connection.rights = self._door.rights(connection.user)
        name = self._door.name(connection.user)
        if name:
            connection.who += f", key {name}"
        if not connection.rights.reads:
            self._turn_out(connection, connection.rights)
        return connection

    def _forget(self, connection: Connection, failure: int | None = None) -> None:
        if connection.peer is None:
            self._door.left(connection.who, connection.endpoint, failure)
        else:
            del self._of_peer[connection.peer]
            self.lost.append(connection.peer)

    def judge_again(self) -> None:
        """Hang up on those whose rights are others than when they came: they may come again."""
        for connection in self:
            rights = self._door.rights(connection.user)
            if connection.rights != rights:
                self._turn_out(connection, rights)

    def _turn_out(self, connection: Connection, rights: Rights) -> None:
        why = "its key has other rights now" if rights.reads else rights.why
        self._door.refusals.note(connection.who, connection.endpoint, why)
        self.hang_up(connection)

    def who(self, peer: bytes) -> str:
        """Who that is, for logs."""
        connection = self._of_peer.get(peer)
        return "a client that has gone" if connection is None else connection.who

    def hang_up(self, connection: Connection) -> None:
        """End a connection, which libzmq then notices by itself."""
        self.count()  # the descriptor may be another's by now
        if self._open.get(connection.descriptor) is connection:
            with contextlib.suppress(OSError), _socket(connection.descriptor) as there:
                there.shutdown(socket.SHUT_RDWR)


def _who(descriptor: int) -> str:
    """Whom the system knows at the other end."""
    try:
        with _socket(descriptor) as there:
            if there.family != socket.AF_UNIX:
                host, port, *_ = there.getpeername()
                there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)  # see Claim.hold
                return f"{host}:{port}"
            if hasattr(socket, "SO_PEERCRED"):
                told = there.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
                pid, uid, _ = _UCRED.unpack(told)
                return f"uid {uid}, pid {pid}"
    except OSError:
        pass  # it has gone already
    return NOBODY


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
