"""One connection to a daemon: a DEALER socket that asks one thing at a time.

With `handshake`, which it uses, the only room of the client that touches ZeroMQ's sockets. A
channel belongs to one thread at a time and to the process that made it. It is for one connection:
after a timeout, an interruption or a lost connection it is thrown away, so no late reply can meet
the wrong request.

With IMMEDIATE and without reconnection the socket is writable exactly while it is connected;
that is how a lost daemon is noticed at once, without heartbeats.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import signal
import socket
import time
import uuid
from itertools import count
from typing import Any

import zmq

from pickledbd_client.calls import Call, hello
from pickledbd_client.curve import Curve
from pickledbd_client.handshake import Failure, Handshake, mechanism
from pickledbd_protocol import (
    COMMANDS,
    PROTOCOL_VERSION,
    ProtocolError,
    Reply,
    RequestTimeout,
    TooLarge,
    Unavailable,
    decode_replies,
    encode_request,
    join_parts,
)

MAX_SOCKETS = 16_384
"""Threads of one process that may talk at the same time."""

KEEPALIVE = (60, 15)
"""Seconds until a silent tcp connection is probed, and between the probes."""

_FIRST_PATIENCE = 0.2  # seconds for a connection and its handshake, before another is tried
_CROWDED_SECONDS = 0.01  # until it is tried again where as many wait as the system lets

_ASKING_SECONDS = 5.0  # for what somebody who hung up wants, at most

Deadline = float | None
"""A time.monotonic() at which to give up; None for never."""

SPIN_SECONDS = 0.0002
"""How long a thread looks for its reply before it sleeps, at most."""

SOON_SECONDS = 0.002
"""How long it then waits inside libzmq, which takes fewer steps than to wait outside."""

_MISSED_MAX = 10  # after a busy time, one request of 1,024 looks whether it is over
_yield = getattr(os, "sched_yield", lambda: None)
_waiting: list[None] = []  # one for each thread that waits for a reply: both ends are atomic
os.register_at_fork(after_in_child=_waiting.clear)

REPEAT_MS = 9 * 60 * 1000
"""How long after it was first sent a write may be sent again: a minute less than its answer is
remembered (SPEC.md, Repeats)."""

_ENVELOPE = 160  # bytes that a request is larger than its arguments, at most

_contexts: dict[int, zmq.Context[zmq.Socket[bytes]]] = {}


class NobodyThereError(Exception):
    """No daemon could be connected to, for the reason `why`.

    `forbidden`: to this user. `refused`: somebody is there, who hung up. `left`: one was, which
    ended; the next one may have its socket.
    """

    def __init__(
        self, why: str, *, forbidden: bool = False, refused: bool = False, left: bool = False
    ) -> None:
        super().__init__(why)
        self.why = why
        self.forbidden = forbidden
        self.refused = refused
        self.left = left


class ConnectionLostError(Exception):
    """The daemon went away. `sent`: the request may have reached it."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__(sent)
        self.sent = sent


def remaining(deadline: Deadline) -> float | None:
    """Seconds left, at least 0; None for no limit."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _none_left(error: zmq.ZMQError) -> NobodyThereError:
    """Where there is no further socket, or no descriptor for it."""
    return NobodyThereError(f"{error.strerror} in this process")


def _knock(endpoint: str, deadline: Deadline) -> None:
    """Connect and hang up: NobodyThereError tells why it fails, which ZeroMQ keeps quiet."""
    scheme, _, address = endpoint.partition("://")
    timeout = remaining(deadline)
    try:
        if scheme == "ipc":
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(timeout)
                _connect_waiting(probe, address, deadline)
        else:
            with socket.create_connection(_address(endpoint), timeout) as probe:
                if probe.getsockname() == probe.getpeername():
                    # A port that systems give to clients can be given to the very one that asks
                    # for it; that connection would keep the daemon from binding it again.
                    raise ConnectionRefusedError(
                        errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)
                    )
    except TimeoutError:
        raise RequestTimeout from None
    except OSError as error:
        raise NobodyThereError(
            error.strerror or str(error), forbidden=isinstance(error, PermissionError)
        ) from None


def _connect_waiting(probe: socket.socket, address: str, deadline: Deadline) -> None:
    """Connect; where nobody accepts and the queue is full, wait for a place in it.

    With a timeout a socket does not wait for that by itself, as connect(2) tells of AF_UNIX.
    """
    while True:
        try:
            return probe.connect(address)
        except BlockingIOError:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError from None
            time.sleep(_CROWDED_SECONDS)


def _address(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return host.strip("[]"), int(port)


class Session:
    """A client as daemons know it: a name, and ids that grow.

    It outlives its connections, and daemons: a write that is sent again, with the id that it had,
    is recognised by it.
    """

    def __init__(self) -> None:
        self.client = uuid.uuid4().hex
        self.channel: Channel | None = None
        self._ids = count(1)

    def next_id(self) -> int:
        """The id of one further request."""
        return next(self._ids)

    def close(self) -> None:
        """Drop the connection, if there is one; the next request needs a new one."""
        channel, self.channel = self.channel, None
        if channel is not None:
            channel.close()


class FirstSent:
    """When a request was first sent: what its repeats tell the daemons."""

    def __init__(self, channel: Channel, moment: float) -> None:
        """It was sent on `channel`, at this time.monotonic()."""
        self._moment = moment
        self._at = channel.at(moment)

    def told_to(self, channel: Channel) -> int:
        """When that was at the latest, by any clock of those that may have applied it; in ms.

        What was reckoned first may run ahead, by clocks that drift or are halted in a long time,
        and by the next daemon's clock, which may be behind.
        """
        self._at = max(0, min(self._at, channel.at(self._moment)))
        return self._at


class Channel:
    """A connected channel to `endpoint`, protocol agreed. `daemon` is what it told of itself."""

    def __init__(
        self, endpoint: str, session: Session, deadline: Deadline, curve: Curve | None = None
    ) -> None:
        """NobodyThereError, RequestTimeout or ProtocolError if there is no such channel.

        `curve`: the keys for tcp. Unavailable or NotAllowed if they cannot be read.
        """
        self.endpoint = endpoint
        self._curve = curve if endpoint.startswith("tcp:") else None
        self.counters: dict[str, Any] | None = None
        """What the daemon tells of its counter table, where that can be reached (not by tcp)."""
        self._client = session.client
        self._missed = self._skip = 0  # spins that were in vain, and requests that leave it out
        self._limit: int | None = None
        self._hung_up = False  # whether somebody who asks for keys did so, during the handshake
        self._connect(deadline)
        try:
            self.greet(session, deadline)
        except ConnectionLostError:
            self.close()
            raise NobodyThereError("it closed the connection", left=True) from None
        except BaseException:
            self.close()
            raise

    def greet(self, session: Session, deadline: Deadline) -> None:
        """Have the daemon tell of itself, as it is now. Raises as `exchange` does."""
        call = self.greeting()
        reply = self.exchange(call, session.next_id(), deadline)
        if reply.error is not None:
            raise reply.error
        call.read(reply)

    def greeting(self) -> Call[None]:
        """The request whose answer tells of the daemon; to be asked on this channel."""
        return hello([PROTOCOL_VERSION], self._met)

    def at(self, moment: float) -> int:
        """What the daemon's clock showed at this time.monotonic(), or a little less; in ms."""
        now: int = self.daemon["now"]
        return now + math.floor((moment - self._met_at) * 1000)

    def _met(self, daemon: dict[str, Any]) -> None:
        self.daemon = daemon
        self._met_at = time.monotonic()
        self._limit = self.daemon["limits"]["request_bytes"]
        self.counters = self.daemon.get("counters") if self.endpoint.startswith("ipc:") else None

    def _connect(self, deadline: Deadline) -> None:
        """Have a connected socket.

        Without reconnection a connect that fails is never tried again, and nothing is told of
        it. So it is begun anew, each time with more patience, until it succeeds or nobody is
        there any more.
        """
        patience = _FIRST_PATIENCE
        while True:
            if self._curve is None:  # to a daemon with keys, who shows none is a stranger
                _knock(self.endpoint, deadline)
            try:
                self._socket = _context().socket(zmq.DEALER)
            except zmq.ZMQError as error:
                raise _none_left(error) from None
            try:
                self._socket.linger = 0
                self._socket.immediate = True
                self._socket.reconnect_ivl = -1
                self._socket.handshake_ivl = 0  # a daemon that is loading may take its time
                self._socket.rcvtimeo = int(SOON_SECONDS * 1000)
                self._socket.sndhwm = self._socket.rcvhwm = 0
                self._socket.ipv6 = "[" in self.endpoint  # else localhost would be ::1 alone
                # Who waits long is to notice that the other machine, or the way there, is gone
                self._socket.tcp_keepalive = 1
                self._socket.tcp_keepalive_idle, self._socket.tcp_keepalive_intvl = KEEPALIVE
                self._poller = select.poll()
                self._poller.register(self._socket, select.POLLIN)
                attempt = time.monotonic() + patience
                if deadline is not None:
                    attempt = min(attempt, deadline)
                if self.endpoint.startswith("tcp:"):
                    self._shake_hands(attempt, deadline)
                else:
                    self._socket.connect(self.endpoint)
                while not self._events() & zmq.POLLOUT:
                    self._wait(attempt)
            except BaseException as error:
                self.close()
                if not isinstance(error, RequestTimeout) or attempt == deadline:
                    raise
            else:
                return
            patience *= 2

    def _shake_hands(self, attempt: float, deadline: Deadline) -> None:
        """Connect by tcp. NobodyThereError tells why that fails, RequestTimeout that it may not."""
        if self._curve is not None:
            public, secret, daemon = self._curve.keys()
            self._socket.curve_publickey, self._socket.curve_secretkey = public, secret
            self._socket.curve_serverkey = daemon
        try:
            handshake = Handshake(_context(), self._socket)
        except zmq.ZMQError as error:
            raise _none_left(error) from None
        self._poller.register(handshake, select.POLLIN)
        try:
            self._socket.connect(self.endpoint)
            while not self._events() & zmq.POLLOUT:
                failure = handshake.failure()
                if failure is None:
                    self._wait(attempt)
                elif failure is Failure.CONNECT:
                    _knock(self.endpoint, deadline)
                else:
                    self._explain(failure, deadline)
        finally:
            self._poller.unregister(handshake)
            handshake.close()

    def _explain(self, failure: Failure, deadline: Deadline) -> None:
        """NobodyThereError, if it can be told why the daemon, or this side, hung up."""
        curve, wanted = self._curve, ""
        if failure is Failure.KEY and curve is not None:
            raise NobodyThereError(
                f"it does not let in the key of {curve.own}: its public key has to be in the "
                "directory that the daemon has for --authorized-keys",
                forbidden=True,
            )
        with contextlib.suppress(OSError):
            left = remaining(deadline)
            patience = _ASKING_SECONDS if left is None else min(left, _ASKING_SECONDS)
            wanted = mechanism(_address(self.endpoint), patience)
        if wanted == "CURVE" and curve is None:
            raise NobodyThereError(
                "it asks for a key: name the files of yours and of its public one, "
                'curve=("NAME.key_secret", "DAEMON.key") or $PICKLEDBD_CURVE',
                forbidden=True,
            )
        if wanted == "NULL" and curve is not None:
            raise NobodyThereError(
                "it asks for no key, and would encrypt nothing: do without curve, or have it "
                "started with --curve-key",
                forbidden=True,
            )
        # Once, it may as well have been a daemon that was just ending
        again, self._hung_up = self._hung_up, wanted == "CURVE"
        if again and wanted == "CURVE" and curve is not None:
            raise NobodyThereError(
                f"it hung up during the handshake: is that in {curve.daemon} its public key?",
                refused=True,
            )

    def close(self) -> None:
        """Drop the connection, and what was not sent yet."""
        self._socket.close(linger=0)

    def __del__(self) -> None:
        # pickleDB needs no close(), so a database that was simply dropped is none to warn about.
        # In a forked child pyzmq leaves the parent's sockets alone.
        if hasattr(self, "_socket"):
            self.close()

    def exchange(
        self,
        call: Call[Any],
        request_id: int,
        deadline: Deadline,
        *,
        first_sent: FirstSent | None = None,
    ) -> Reply:
        """Ask `call` and return the daemon's reply, which may hold an error.

        `first_sent`: when this very request was sent before, if it was.
        After any exception (RequestTimeout, ConnectionLostError, TooLarge, Unavailable,
        ProtocolError, KeyboardInterrupt) the channel has to be closed.
        """
        for body in self.encode(call, self._client, request_id, deadline, first_sent=first_sent):
            self.send(body)
        if COMMANDS[call.op].parks:  # who waits for others is not to have its own wait less well
            return self._receive(request_id, deadline)
        _waiting.append(None)
        try:
            self._spin()
            return self._receive(request_id, deadline)
        except ProtocolError as error:  # it took the request, and nobody can read what it says
            error.outcome_known = not COMMANDS[call.op].writes
            raise
        finally:
            _waiting.pop()

    def encode(
        self,
        call: Call[Any],
        client: str,
        request_id: int,
        deadline: Deadline,
        *,
        first_sent: FirstSent | None = None,
    ) -> list[bytes]:
        """The messages of a request, to be sent here.

        TooLarge if the daemon would not take it; Unavailable if it is too late to repeat it.
        """
        size = len(call.args) + _ENVELOPE
        for part in call.before:
            size += len(part) + _ENVELOPE
        if self._limit is not None and size > self._limit:
            raise TooLarge(
                f"a {call.op} of {size:,} bytes is over the {self._limit:,} that the "
                "daemon accepts in one request; send less at once, or start it with a larger "
                "--max-request"
            )
        sent_at = None
        if first_sent is not None:
            sent_at = first_sent.told_to(self)
            if COMMANDS[call.op].writes and self.at(time.monotonic()) - sent_at > REPEAT_MS:
                raise Unavailable(
                    f"a {call.op} that was first sent over nine minutes ago may or may not have "
                    f"been applied: it is too late to ask the daemon at {self.endpoint} again",
                    outcome_known=False,
                )
        left = remaining(deadline)
        budget_ms = 2**31 if left is None else int(left * 1000)
        bodies = [
            encode_request(call.op, request_id, client, budget_ms, part, sent_at=sent_at, more=True)
            for part in call.before
        ]
        bodies.append(
            encode_request(call.op, request_id, client, budget_ms, call.args, sent_at=sent_at)
        )
        return bodies

    def send(self, body: bytes) -> None:
        """Send one message, without waiting for anything. ConnectionLostError."""
        try:
            self._socket.send(body, zmq.NOBLOCK)
        except zmq.Again:
            raise ConnectionLostError(sent=False) from None

    def received(self) -> list[Reply]:
        """What the next message from the daemon says; nothing if none has come. Does not wait.

        ConnectionLostError, ProtocolError.
        """
        events = self._events()
        if events & zmq.POLLIN:
            # One frame; a further one would be taken for the next reply, and be refused
            return decode_replies(self._socket.recv(zmq.NOBLOCK))
        if not events & zmq.POLLOUT:
            raise ConnectionLostError(sent=True)
        return []

    def fileno(self) -> int:
        """A descriptor that becomes readable when there may be something to receive.

        It tells that once: afterwards, and after each `send`, `received` is to be called until
        it returns nothing.
        """
        return self._socket.fileno()

    def _receive(self, request_id: int, deadline: Deadline) -> Reply:
        parts: list[Reply] = []
        left = remaining(deadline)
        replies = self._soon(left)
        while True:
            for reply in replies:
                if reply.id != request_id:
                    raise self.unexpected(reply)
                parts.append(reply)
                if not reply.more:
                    return join_parts(parts)
                # A part, be it an empty one, tells that the daemon is at it
                deadline = None if left is None else time.monotonic() + left
            replies = self.received()
            if not replies:
                self._wait(deadline)

    def _soon(self, left: float | None) -> list[Reply]:
        """What comes soon, as nearly every reply does; nothing if none does.

        Not for longer: in here nobody sees that the daemon has gone. Nor where a timer is set, as
        by a profiler: each of its signals would start the time anew.
        """
        if (left is not None and left < SOON_SECONDS) or signal.getitimer(signal.ITIMER_REAL)[0]:
            return []
        try:
            return decode_replies(self._socket.recv())
        except zmq.Again:
            return []

    def unexpected(self, reply: Reply) -> ProtocolError:
        """The error where a reply belongs to no request."""
        return ProtocolError(
            f"the daemon at {self.endpoint} answered request {reply.id}, which is none that "
            f"waits: {reply.error or 'no error given'}"
        )

    def _events(self) -> int:
        return self._socket.get(zmq.EVENTS)  # type: ignore[return-value] # EVENTS is an int

    def _spin(self) -> None:
        """Look for the reply for a moment before sleeping: to be woken costs more than to ask.

        Only while nobody else wants the processor: the thread yields it at each look, does not
        look while other threads of its process wait for replies too, and after a look that was
        in vain leaves the next ones out, each time twice as many.
        """
        if self._skip > 0:
            self._skip -= 1
            return
        give_up = time.monotonic() + SPIN_SECONDS
        while len(_waiting) == 1 and time.monotonic() < give_up:
            if self._events() & zmq.POLLIN:
                self._missed = 0
                return
            _yield()
        self._missed = min(self._missed + 1, _MISSED_MAX)
        self._skip = 2**self._missed

    def _wait(self, deadline: Deadline) -> None:
        """Wait for something to happen on the socket. RequestTimeout at the deadline.

        Python's poll keeps the deadline across signals, and lets Ctrl+C through, where
        libzmq's own would start its timeout anew.
        """
        left = remaining(deadline)
        if not self._poller.poll(None if left is None else left * 1000) and left is not None:
            raise RequestTimeout


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """This process's context; one that a fork left behind is of no use and is not touched."""
    pid = os.getpid()
    context = _contexts.get(pid)
    if context is None:
        context = zmq.Context()
        context.max_sockets = MAX_SOCKETS
        context = _contexts.setdefault(pid, context)
    return context
