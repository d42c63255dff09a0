"""A PickleDB's way to its daemon: channels for as many threads as ask at once.

`request` may be called from any thread, from a signal handler in the midst of another request,
and in a forked child. It takes no lock: idle channels are kept in a deque, whose operations are
atomic.
"""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from pickledbd_client.calls import OWN, Call, T
from pickledbd_client.channel import (
    Channel,
    ConnectionLostError,
    Deadline,
    FirstSent,
    Session,
    remaining,
)
from pickledbd_client.route import Route, generation, leave
from pickledbd_protocol import (
    COMMANDS,
    NotAllowed,
    PickleDBError,
    Reply,
    RequestTimeout,
    Unavailable,
)


class Link:
    """Requests by `route`."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self._cache = route.cache
        self._idle: deque[Session] = deque()
        self._generation = generation()
        self._closed = False
        self._of_thread = threading.local()

    def connect(self) -> None:
        """Have a first connection. A daemon that is loading a large file is waited for."""
        session = Session()
        session.channel = self._route.connect(session, self._route.deadline())
        self._idle.append(session)

    def request(self, call: Call[T]) -> T:
        """Ask `call` and return its value. Raises what the daemon replied, or why there is none.

        If the daemon goes away it is asked again when it, or another in its place, is there.
        """
        self._of_thread.requests = getattr(self._of_thread, "requests", 0) + 1
        deadline = self._route.deadline(call)
        session = self._take()
        request_id = session.next_id()
        sent: FirstSent | None = None
        while True:
            try:
                connect_by = deadline if call.patience == OWN else self._route.deadline()
                channel = self._channel(session, connect_by, asked=call if sent else None)
                started = time.monotonic()
                reply = channel.exchange(call, request_id, deadline, first_sent=sent)
                self._keep(call, reply, channel, session)
            except ConnectionLostError as lost:
                session.close()
                sent = sent or (FirstSent(channel, started) if lost.sent else None)
                refusal = self._refusal(call, was_sent=sent is not None)
                if refusal is not None:
                    raise refusal from None
            except RequestTimeout:
                session.close()
                raise self._route.timed_out(call) from None
            except BaseException as error:
                session.close()
                if sent and isinstance(error, PickleDBError) and COMMANDS[call.op].writes:
                    error.outcome_known = False  # who came next refuses the repeat, not the first
                raise
            else:
                self._idle.append(session)
                if self._closed:
                    self.close()
                if reply.error is not None:
                    raise reply.error
                return call.read(reply)

    def parts(self, call: Call[Any]) -> Iterator[Reply]:
        """The reply to a read, part by part as they come, so that nobody has to hold all of it.

        A daemon that goes away is asked again if nothing of it has come yet; else Unavailable, and
        what came is void. Raises as `request` does.
        """
        deadline = self._route.deadline()
        session = self._take()
        begun = ended = False
        try:
            while not ended:
                try:
                    channel = self._channel(session, deadline, asked=call if begun else None)
                    for reply in _parts(channel, call, session, deadline):
                        if reply.error is not None:
                            raise reply.error
                        ended = not reply.more
                        begun = begun or bool(reply.result)
                        yield reply
                except ConnectionLostError:
                    session.close()
                    if begun or self._closed:
                        raise self._route.unknown(call, "it went away meanwhile") from None
                except RequestTimeout:
                    raise self._route.timed_out(call) from None
            self._idle.append(session)
        finally:
            if not ended:
                session.close()

    def _refusal(self, call: Call[Any], *, was_sent: bool) -> Unavailable | None:
        """Why `call` is not to be asked over another connection, if it is not."""
        if self._closed:
            closed = self._route.closed()
            return self._route.unknown(call, str(closed)) if was_sent else closed
        if was_sent and not self._route.repeatable(call):
            return self._route.unknown(call, "it went away meanwhile")
        return None

    def _keep(self, call: Call[Any], reply: Reply, channel: Channel, session: Session) -> None:
        if call.key is None or self._cache.keep(call.key, call.text, reply, channel.counters):
            return
        try:
            channel.greet(session, self._route.deadline())
        except (PickleDBError, ConnectionLostError):  # the reply is there, this is for the next
            session.close()

    def _channel(self, session: Session, deadline: Deadline, asked: Call[Any] | None) -> Channel:
        """The session's channel, made anew if it was lost. `asked`: what was sent by that."""
        if session.channel is None:
            try:
                session.channel = self._route.connect(session, deadline)
            except (Unavailable, NotAllowed) as error:
                if asked is None:
                    raise
                raise self._route.not_repeated(asked, error) from None
        return session.channel

    def mark(self) -> tuple[int, int]:
        """What stays the same until this thread asks the next request."""
        return threading.get_ident(), getattr(self._of_thread, "requests", 0)

    def close(self) -> None:
        """Drop the idle connections; those in use are dropped when their requests end."""
        self._closed = True
        self._cache.close()
        with contextlib.suppress(IndexError):  # also a thread whose request has ended may do this
            while True:
                self._idle.pop().close()

    def _take(self) -> Session:
        if self._generation != generation():
            leave(self._idle)
            self._idle = deque()
            self._generation = generation()
        if self._closed:
            raise self._route.closed()
        try:
            return self._idle.pop()
        except IndexError:
            return Session()


def _parts(
    channel: Channel, call: Call[Any], session: Session, deadline: Deadline
) -> Iterator[Reply]:
    """The replies to one request, to the last; each may take as long as the first."""
    request_id = session.next_id()
    left = remaining(deadline)
    for body in channel.encode(call, session.client, request_id, deadline):
        channel.send(body)
    poller = select.poll()
    poller.register(channel.fileno(), select.POLLIN)
    more = True
    while more:
        replies = channel.received()
        if not replies:
            seconds = remaining(deadline)
            if not poller.poll(None if seconds is None else seconds * 1000) and left is not None:
                raise RequestTimeout
            continue
        for reply in replies:
            if reply.id != request_id:
                raise channel.unexpected(reply)
            more = reply.more
            yield reply
        # Not how long it took to do something with that
        deadline = None if left is None else time.monotonic() + left
