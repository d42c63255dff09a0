"""The daemon's connections: who is at the other end of each, and how to hang up on one.

libzmq tells of connections by their descriptors (zmq_socket_monitor(3)), and of messages by the
routing ids of their peers. Here the two are brought together, and what the system knows of each
peer is noted while it is connected. May live here: what concerns single connections; what they
ask is the loop's and the engine's.
"""

from __future__ import annotations

import logging
import math
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import zmq

from pickledbd.descriptors import NOBODY, shut, who_is
from pickledbd.door import Door
from pickledbd.rights import EVERYTHING, Rights
from pickledbd.status import Status

log = logging.getLogger(__name__)

LOG_SECONDS = 1.0
"""One line about those who were hung up on is logged in so long, be they ever so many."""

BANNED_SECONDS = 10.0
"""How long a process is kept out that filled the memory, or sent what only costs time."""

# As zmq_socket_monitor(3) tells it: pyzmq's own way would import all of asyncio, at each start
_EVENT = struct.Struct("=Hi")

AT_ONCE = 32
"""Events that are taken in together: what comes later says whom the earlier ones are about."""


@dataclass(slots=True, eq=False)
class Connection:
    """One connection, by its descriptor in this process."""

    descriptor: int
    endpoint: str
    """Where it was accepted."""
    who: str
    """At the other end, for logs: uid and pid, or the address."""
    fields: dict[str, Any] = field(default_factory=dict)
    """The same for programs that read the logs."""
    since: float = field(default_factory=time.monotonic)
    peer: bytes | None = None
    """The routing id, once it has sent a message."""
    user: str = ""
    """The user id that came with that."""
    rights: Rights = EVERYTHING
    is_out: bool = False
    """Whether it was hung up on: what may still come of it is not wanted."""
    admitted: bool = False
    """Whether it is served: it was not one too many when it first asked something."""
    refused_at: float | None = None
    """When it was first told that it is not."""
    heard: int = 0
    """The guard's look before which its last message was taken in."""

    @property
    def origin(self) -> str:
        """Whose it is: the same of all connections of a process, or of another machine."""
        return self.who.rpartition(":")[0] or self.who

    @property
    def is_of_process(self) -> bool:
        """Whether that is a process, not a machine, nor some process of another container."""
        return bool(self.fields.get("peer_pid"))


class Connections:
    """Those of one ROUTER socket."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        router: zmq.Socket[bytes],
        *,
        status: Status,
        door: Door,
        first: Callable[[], None],
        most: float = math.inf,
    ) -> None:
        """`status` tells how many there are. `first` is called when there is one again.

        `most` are served.
        """
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
        self.most = most
        self._banned: dict[str, float] = {}  # until when, by time.monotonic()
        self._tell_at = -math.inf
        self._untold = 0
        self._open: dict[int, Connection] = {}
        self._of_peer: dict[bytes, Connection] = {}
        self._told: deque[tuple[int, int, bytes]] = deque()
        self._failed: dict[bytes, int] = {}  # why the handshake failed that was told of last, or 0
        self._router = router
        self._status = status
        self._door = door
        self._first = first
        # Their values are descriptors, but for the reason of a failed handshake, after which
        # DISCONNECTED comes, too
        router.monitor(
            "inproc://connections",
            zmq.EVENT_ACCEPTED
            | zmq.EVENT_ACCEPT_FAILED
            | zmq.EVENT_DISCONNECTED
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
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
        while not self.uncounted and (self._told or self._hear()):
            event, value, endpoint = self._told.popleft()
            if event == zmq.EVENT_ACCEPTED:
                if not self._open:
                    self._first()
                self.made += 1
                self.accepted_at = time.monotonic()
                self._status.connections_accepted += 1
                # Else the descriptor may be another's by now
                has_gone = any(later[:2] == (zmq.EVENT_DISCONNECTED, value) for later in self._told)
                who, fields = (NOBODY, {}) if has_gone else who_is(value)
                connection = Connection(value, endpoint.decode(), who, fields)
                self._open[value] = connection
                _tell(connection, "connected", "connected to")
                if self._banned:
                    self._keep_out(connection)
            elif event == zmq.EVENT_ACCEPT_FAILED:
                self.made += 1
            elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                self._failed[endpoint] = value
            elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                self._failed[endpoint] = 0
            else:
                failure = self._failed.pop(endpoint, None)
                if lost := self._open.pop(value, None):
                    self._forget(lost, failure)
                    _tell(lost, "disconnected", "disconnected from")
            self.uncounted = time.monotonic() >= until
        self._status.clients = len(self._open)

    def _hear(self) -> bool:
        """Take in what is told; whether it was anything."""
        while len(self._told) < AT_ONCE and readable(self._monitor):
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
        connection.admitted = self.admitted < self.most
        self.admitted += connection.admitted
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
            if not connection.is_out:
                self._door.left(connection.who, connection.endpoint, failure)
        else:
            del self._of_peer[connection.peer]
            self.admitted -= connection.admitted
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

    def fields(self, peer: bytes) -> dict[str, Any]:
        """The same as fields of a log's line, with `peer` for the sentence."""
        connection = self._of_peer.get(peer)
        return {"peer": self.who(peer), **(connection.fields if connection else {})}

    def get(self, peer: bytes) -> Connection | None:
        """That of a peer that has sent a message."""
        return self._of_peer.get(peer)

    def hang_up(self, connection: Connection, why: str = "", *, ban: bool = False) -> None:
        """End a connection, which libzmq then notices by itself. `why` is logged, now and then.

        `ban`: and have its process come again only after a while, if that is known: a whole machine
        is not kept out for one.
        """
        self.count()  # the descriptor may be another's by now
        if self._open.get(connection.descriptor) is not connection:
            return
        self._shut(connection)
        if ban and connection.is_of_process:
            self._banned[connection.origin] = time.monotonic() + BANNED_SECONDS
            why += f"; it is kept out for {BANNED_SECONDS:g} s"
        if why:
            self._tell(connection, why)

    def hang_up_on(self, peer: bytes, why: str, *, ban: bool = False) -> None:
        """The same by the peer, if it is there."""
        connection = self._of_peer.get(peer)
        if connection is not None:
            self.hang_up(connection, why, ban=ban)

    def _keep_out(self, connection: Connection) -> None:
        now = time.monotonic()
        self._banned = {who: until for who, until in self._banned.items() if until > now}
        if connection.origin in self._banned:
            self._shut(connection)

    def _shut(self, connection: Connection) -> None:
        connection.is_out = True
        self._status.hung_up += 1
        shut(connection.descriptor)

    def _tell(self, connection: Connection, why: str) -> None:
        # Whoever reads the log must not be able to hold the loop up, nor fill a disk
        now = time.monotonic()
        if now < self._tell_at:
            self._untold += 1
            return
        others = f" ({self._untold} others since the last such line)" if self._untold else ""
        told = {"event": "hung_up", "peer": connection.who, "why": why, "untold": self._untold}
        log.warning(
            "hung up on %s, who %s%s", connection.who, why, others, extra=told | connection.fields
        )
        self._tell_at, self._untold = now + LOG_SECONDS, 0

    def most_of(self, sample: int = 1000) -> str:
        """Who has most of the newest connections, for logs."""
        newest = list(self._open.values())[-sample:]
        origins = Counter(each.origin for each in newest)
        (who, count), *_ = origins.most_common(1) or [("nobody", 0)]
        return f"{who}: {count} of the last {len(newest)}"


def _tell(connection: Connection, event: str, what: str) -> None:
    told = {"event": event, "endpoint": connection.endpoint, "peer": connection.who}
    log.debug("%s %s %s", connection.who, what, connection.endpoint, extra=told | connection.fields)


def readable(source: zmq.Socket[bytes]) -> bool:
    """Whether a socket has something to be received."""
    return source.get(zmq.EVENTS) & zmq.POLLIN != 0  # type: ignore[operator,arg-type] # EVENTS is an int


def _is_later(peer: bytes, than: bytes) -> bool:
    """Whether a peer came later: its routing id is a NUL and a number of 32 bits that grows."""
    ahead = int.from_bytes(peer[1:], "big") - int.from_bytes(than[1:], "big")
    return 0 < ahead % 2**32 < 2**31
