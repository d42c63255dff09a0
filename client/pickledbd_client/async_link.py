"""An AsyncPickleDB's way to its daemon: a line for each event loop, with many requests in flight.

Everything here runs in the thread of an event loop, but for the making of a connection. A line has
one. Replies find their requests by their ids, so the late reply to a request that was cancelled or
has timed out meets nobody.

What the daemon remembers of a client is the answer to its last write. So each write in flight
has a client's name of its own, borrowed from the line for as long as it is, and all of them can be
sent again when a connection breaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from copy import copy
from typing import Any
from weakref import WeakMethod

from pickledbd_client.calls import OWN, Call, T
from pickledbd_client.channel import Channel, ConnectionLostError, Deadline, FirstSent, Session
from pickledbd_client.route import Route, generation, leave
from pickledbd_protocol import (
    COMMANDS,
    NotAllowed,
    PickleDBError,
    ProtocolError,
    Reply,
    RequestTimeout,
    TooLarge,
    Unavailable,
    gather,
    join_parts,
)

TOGETHER = 32
"""Requests in one message, at most: so that the daemon has begun when the last ones are written."""

GATHER_BYTES = 2**15
"""A message of several requests is sent before it is larger."""

IN_FLIGHT = 1000
"""Requests of a connection that are sent and not answered; further ones wait for their turn."""


class AsyncLink:
    """Requests by `route`, from the coroutines of any number of event loops."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self._lines: dict[asyncio.AbstractEventLoop, _Line] = {}
        self._generation = generation()
        self._closed = False

    async def request(self, call: Call[T]) -> T:
        """Ask `call` and return its value. Raises what the daemon replied, or why there is none.

        If the daemon goes away it is asked again when it, or another in its place, is there.
        """
        if self._closed:
            raise self._route.closed()
        line = self._line()
        asked = line.ask(call)
        reply = await asked.answer  # if it is cancelled, what was sent still counts as in flight
        if reply.error is not None:
            raise reply.error
        return call.read(reply)

    def tell(self, call: Call[Any]) -> None:
        """Ask `call`, whatever comes of it; nothing if there is no connection."""
        line = self._lines.get(asyncio.get_running_loop())
        if line is not None and self._generation == generation():
            line.ask(call)

    def close(self) -> None:
        """Have no connection and no cache any more. What is still in flight raises Unavailable."""
        self._closed = True
        self._route.cache.close()
        if self._generation != generation():
            return
        while self._lines:
            loop, line = self._lines.popitem()
            if loop.is_closed():
                line.abandon()
            elif loop is asyncio.get_running_loop():
                line.close()
            else:
                with contextlib.suppress(RuntimeError):  # it was closed just now
                    loop.call_soon_threadsafe(line.close)

    def _line(self) -> _Line:
        if self._generation != generation():
            leave(self._lines.values())
            self._lines = {}
            self._generation = generation()
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is None:
            for other in [other for other in list(self._lines) if other.is_closed()]:
                ended = self._lines.pop(other, None)
                if ended is not None:  # else another thread was quicker
                    ended.abandon()
            line = self._lines[loop] = _Line(self._route, loop)
        return line


class _Asked:
    """A request on its way."""

    __slots__ = (
        "answer",
        "call",
        "client",
        "connect_by",
        "deadline",
        "first",
        "id",
        "parts",
        "sent",
    )

    def __init__(self, call: Call[Any], number: int, answer: asyncio.Future[Reply]) -> None:
        self.call = call
        self.id = number
        self.answer = answer
        self.client = ""  # the name under which it was sent
        self.deadline: Deadline = None
        self.connect_by: Deadline = None  # if it is to wait for what others do
        self.sent: float | None = None  # when it was first sent
        self.first: FirstSent | None = None  # the same for daemons, once it is to be repeated
        self.parts: list[Reply] = []

    @property
    def parks(self) -> bool:
        """Whether it may wait for what others do."""
        return COMMANDS[self.call.op].parks

    def fail(self, error: PickleDBError) -> None:
        """Have it end with `error`, if somebody still waits for it."""
        if not self.answer.done():
            if self.sent is not None and COMMANDS[self.call.op].writes:
                error.outcome_known = False
            with contextlib.suppress(asyncio.InvalidStateError):  # a Ctrl+C may cancel it just now
                self.answer.set_exception(error)
                self.answer.exception()  # who waits for it is told; if nobody does, nobody need be


class _Line:
    """The requests of one event loop, and its connection."""

    def __init__(self, route: Route, loop: asyncio.AbstractEventLoop) -> None:
        self._route = route
        self._loop = loop
        self._channel: Channel | None = None
        self._connecting = False
        self._first = False  # whether that is the first connection of all
        self._closed = False
        self._session = Session()  # for the greeting, and for reads
        self._names: list[str] = []  # of clients that have no write in flight
        self._waiting: deque[_Asked] = deque()  # to be sent
        self._sent: dict[int, _Asked] = {}  # and not answered, though nobody may wait any more
        self._parked = 0  # how many of these wait for what others do
        self._heard = 0.0  # when something last came
        self._flushing = False
        self._timer: asyncio.TimerHandle | None = None
        self._expires_at = math.inf  # when that goes off: at the nearest deadline, or before it

    def ask(self, call: Call[Any]) -> _Asked:
        """Have `call` sent, soon; its `answer` is to be awaited."""
        asked = _Asked(call, self._session.next_id(), self._loop.create_future())
        asked.deadline = self._route.deadline(call)
        asked.connect_by = self._route.deadline()
        self._expire_by(asked.deadline)
        self._waiting.append(asked)
        self._flush_soon()
        return asked

    def close(self) -> None:
        """Hang up; all that is in flight ends with Unavailable."""
        self._closed = True
        self._drop_channel()
        if self._timer is not None:
            self._timer.cancel()
        for asked in [*self._sent.values(), *self._waiting]:
            closed = self._route.closed()
            asked.fail(self._route.unknown(asked.call, str(closed)) if asked.sent else closed)
        self._sent.clear()
        self._parked = 0
        self._waiting.clear()

    def abandon(self) -> None:
        """Drop the connection of an event loop that is closed."""
        self._closed = True
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def __del__(self) -> None:
        # AsyncPickleDB needs no close() either. In whatever thread this is, its loop's ends it
        channel, loop = self._channel, self._loop
        if channel is None or sys.is_finalizing():
            return

        def end() -> None:
            loop.remove_reader(channel.fileno())
            channel.close()

        try:
            loop.call_soon_threadsafe(end)
        except RuntimeError:  # it is closed
            channel.close()

    # Sending

    def _flush_soon(self) -> None:
        """Send what waits, once all that is ready to ask has done so."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._channel is None:
            self._connect()
            return
        try:
            self._send_waiting(self._channel)
        except ConnectionLostError:
            self._reconnect()
        else:
            self._drain()  # what came while it was sending may not make the descriptor readable

    def _send_waiting(self, channel: Channel) -> None:
        """Send what waits, several requests in a message where the daemon takes that."""
        most = TOGETHER if "gather" in channel.daemon["features"] else 1
        together: list[bytes] = []
        size = 0
        now = time.monotonic()
        while self._waiting and self._has_room():
            asked = self._waiting.popleft()
            if asked.answer.done():
                self._give_back(asked)
                continue
            if asked.deadline is not None and asked.deadline <= now:
                self._give_back(asked)
                asked.fail(self._late(asked))
                continue
            if not asked.client:
                asked.client = self._name_for(asked.call)
            try:
                bodies = channel.encode(
                    asked.call, asked.client, asked.id, asked.deadline, first_sent=asked.first
                )
            except (TooLarge, Unavailable) as error:
                self._give_back(asked)
                asked.fail(error)
                continue
            self._sent[asked.id] = asked
            self._parked += asked.parks
            asked.sent = asked.sent or now
            alone = len(bodies) > 1  # parts are in messages of their own
            size += len(bodies[0])
            if together and (alone or size > GATHER_BYTES or len(together) == most):
                channel.send(gather(together))
                together, size = [], len(bodies[0])
            if alone:
                for body in bodies:
                    channel.send(body)
                size = 0
            else:
                together += bodies
        if together:
            channel.send(gather(together))

    # Receiving

    def _drain(self) -> None:
        """Take in what has come."""
        if self._channel is None:
            return
        try:
            while replies := self._channel.received():
                self._heard = time.monotonic()
                for reply in replies:
                    self._take(reply)
        except ConnectionLostError:
            self._reconnect()
        except ProtocolError as error:
            self._break(error)
        else:
            if self._waiting and self._has_room():
                self._flush_soon()

    def _take(self, reply: Reply) -> None:
        asked = None if reply.id is None else self._sent.get(reply.id)
        if asked is None:
            assert self._channel is not None  # noqa: S101 - it has just told this
            raise self._channel.unexpected(reply)
        if reply.more:
            self._wait_on()
            if not asked.answer.done():
                asked.parts.append(reply)
            return
        if asked.parts:
            reply = join_parts([*asked.parts, reply])
        self._end(asked)
        if asked.answer.done():
            return  # nobody waits for it any more
        self._keep(asked.call, reply)
        with contextlib.suppress(asyncio.InvalidStateError):  # a Ctrl+C may cancel it just now
            asked.answer.set_result(reply)

    def _wait_on(self) -> None:
        """The daemon is at something long, for which what was asked later may have to wait, too."""
        deadline = self._route.deadline()
        if deadline is None:
            return
        for asked in self._sent.values():
            if asked.call.patience == OWN:
                asked.deadline = deadline
        self._expire_by(deadline)

    def _keep(self, call: Call[Any], reply: Reply) -> None:
        channel = self._channel
        if channel is None or call.key is None:
            return
        if self._route.cache.keep(call.key, call.text, reply, channel.counters):
            return
        channel.counters = None  # it has ended; until the daemon tells of another there is none
        greeting = channel.greeting()

        def met(answer: asyncio.Future[Reply]) -> None:
            if not answer.exception() and answer.result().error is None:
                greeting.read(answer.result())

        self.ask(greeting).answer.add_done_callback(met)

    def _has_room(self) -> bool:
        return len(self._sent) - self._parked < IN_FLIGHT

    def _end(self, asked: _Asked) -> None:
        del self._sent[asked.id]
        self._parked -= asked.parks
        self._give_back(asked)

    def _name_for(self, call: Call[Any]) -> str:
        if not COMMANDS[call.op].writes:
            return self._session.client
        return self._names.pop() if self._names else uuid.uuid4().hex

    def _give_back(self, asked: _Asked) -> None:
        if asked.client and asked.client != self._session.client:
            self._names.append(asked.client)

    # When there is no answer

    def _expire(self) -> None:
        """End what has had no answer by its deadline."""
        self._expires_at = math.inf
        now = time.monotonic()
        if self._first:
            for asked in self._waiting:  # the first time, a daemon that is loading is waited for
                asked.deadline = self._route.deadline(asked.call)
        timed = [
            (asked.deadline, asked)
            for asked in (*self._sent.values(), *self._waiting)
            if asked.deadline is not None
        ]
        late = [asked for deadline, asked in timed if deadline <= now]
        # Nothing has come since that was sent: the connection may lead nowhere
        silent = any(a.id in self._sent and self._heard < (a.sent or now) for a in late)
        for asked in late:
            asked.fail(self._late(asked))
        self._expire_by(min((deadline for deadline, _ in timed if deadline > now), default=None))
        if silent:
            self._reconnect()
        elif self._waiting:
            self._flush_soon()

    def _expire_by(self, deadline: Deadline) -> None:
        """Have the timer go off by then: a lock's may end long after those of later requests."""
        if deadline is None or deadline >= self._expires_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._expires_at = deadline
        self._timer = self._loop.call_later(deadline - time.monotonic(), _Weakly(self._expire))

    def _late(self, asked: _Asked) -> PickleDBError:
        if asked.sent is not None:
            return self._route.timed_out(asked.call)
        why = f"{IN_FLIGHT} requests before it were not answered" if self._sent else "no connection"
        return Unavailable(f"{why} in time at {self._route.target}; nothing was asked")

    def _break(self, error: ProtocolError) -> None:
        """Give the connection up, whose other side nobody understands."""
        self._drop_channel()
        for asked in list(self._sent.values()):
            self._end(asked)
            asked.fail(ProtocolError(*error.args))
        if self._waiting:
            self._flush_soon()

    def _drop_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            self._loop.remove_reader(channel.fileno())
            channel.close()

    # Connecting

    def _reconnect(self) -> None:
        """The connection was lost: what was sent is to be sent again, if that may be."""
        channel = self._channel
        self._drop_channel()
        lost, self._sent, self._parked = list(self._sent.values()), {}, 0
        for asked in reversed(lost):
            asked.parts.clear()
            asked.connect_by = self._route.deadline()
            if asked.first is None and asked.sent is not None and channel is not None:
                asked.first = FirstSent(channel, asked.sent)
            if asked.answer.done():
                self._give_back(asked)
            elif self._route.repeatable(asked.call):
                self._waiting.appendleft(asked)
            else:
                self._give_back(asked)
                asked.fail(self._route.unknown(asked.call, "it went away meanwhile"))
        self._connect()

    @staticmethod
    def _by(asked: _Asked) -> Deadline:
        """Until when it waits for a connection."""
        return asked.deadline if asked.call.patience == OWN else asked.connect_by

    def _connect(self) -> None:
        if self._connecting or self._closed or not self._waiting:
            return
        self._connecting = True
        self._first = not self._route.daemon
        session = self._session
        deadline = self._by(self._waiting[-1])

        def connect() -> None:
            """In a thread of its own, which no end of a program has to wait for."""
            result: Channel | PickleDBError
            try:
                result = self._route.connect(session, deadline)
            except PickleDBError as error:
                result = error
            except Exception as error:  # noqa: BLE001 - whatever it was, who waits is to be told
                result = PickleDBError(f"cannot connect to {self._route.target}: {error!r}")
            try:
                self._loop.call_soon_threadsafe(self._connected, result, deadline)
            except RuntimeError:  # the event loop was closed meanwhile
                if isinstance(result, Channel):
                    result.close()

        threading.Thread(target=connect, name="pickledbd-connect", daemon=True).start()

    def _connected(self, result: Channel | PickleDBError, deadline: Deadline) -> None:
        self._connecting = self._first = False
        if isinstance(result, Channel):
            if self._closed:
                result.close()
                return
            self._channel = result
            self._loop.add_reader(result.fileno(), _Weakly(self._drain))
            self._flush()
            return
        # Whoever waits for what others do goes on while the daemon is there and only silent
        silent = isinstance(result.__cause__, RequestTimeout) and bool(self._route.daemon)
        # Who began to wait later has time left, for another attempt
        for asked in list(self._waiting):
            if silent and asked.call.patience != OWN and not asked.answer.done():
                asked.connect_by = self._route.deadline()
                continue
            by = self._by(asked)
            if deadline is None or (by is not None and by <= deadline):
                self._waiting.remove(asked)
                self._give_back(asked)
                error: PickleDBError = copy(result)
                if asked.sent is not None and isinstance(result, (Unavailable, NotAllowed)):
                    error = self._route.not_repeated(asked.call, result)
                asked.fail(error)
        self._connect()


class _Weakly:
    """Calls a method of an object that it does not keep alive."""

    def __init__(self, method: Callable[[], None]) -> None:
        self._method = WeakMethod(method)

    def __call__(self) -> None:
        method = self._method()
        if method is not None:
            method()
