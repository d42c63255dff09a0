"""Whom libzmq lets in: the handler of its questions (ZAP, ZeroMQ's RFC 27), in the loop's thread.

libzmq asks it about each new connection, and takes no answer for a no. A question tells of the
domain, which here is the endpoint, and whether it demands keys or is for readers alone. The answer
gives the connection a user id: the key and the domain. It comes with each of its messages, so none
is ever taken for that of another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import zmq
from zmq.utils import z85

from pickledbd.keys import Authorized

ENDPOINT = "inproc://zeromq.zap.01"
VERSION = b"1.0"
YES, NO = b"200", b"400"
NO_KEY = "-"

KEY_BYTES = 32
_FRAMES = 6  # of a question, before the credentials
_KINDS = {
    (False, False): "open",
    (False, True): "open-read",
    (True, False): "keys",
    (True, True): "keys-read",
}


def domain(endpoint: str, *, keyed: bool, read_only: bool) -> str:
    """The ZAP domain of an endpoint: of no more than 255 bytes."""
    return f"{_KINDS[keyed, read_only]} {endpoint}"


def identity(user: str) -> tuple[str | None, bool, str]:
    """Of a user id the key, whether the endpoint is only for reading, and which it is."""
    public, kind, endpoint = user.split(" ", 2)
    return None if public == NO_KEY else public, kind.endswith("-read"), endpoint


def answer(question: Sequence[bytes], keys: Authorized | None) -> tuple[list[bytes], str, str]:
    """The reply's frames; and where it is a no, the address that it is about, and why.

    Whatever the question: it is a yes only for a known key, or where none is demanded.
    """
    number = question[1] if len(question) > 1 else b""
    user, where, why = b"", "", ""
    if len(question) < _FRAMES or question[0] != VERSION:
        why = "libzmq asks something that is no question of ZAP 1.0"
    else:
        _, _, asked, address, _, mechanism, *credentials = question
        where = address.decode("ascii", "replace")
        kind = asked.partition(b" ")[0]
        if kind in (b"open", b"open-read") and mechanism == b"NULL":
            user = NO_KEY.encode()
        elif kind not in (b"keys", b"keys-read") or mechanism != b"CURVE":
            why = "it shows no key"
        elif len(credentials) != 1 or len(credentials[0]) != KEY_BYTES:
            why = "what it shows is no key"
        else:
            user = z85.encode(credentials[0])
            if keys is None or keys.find(user.decode()) is None:
                why = f"its key is not an authorized one: {user.decode()}"
        user += b" " + asked
    if why:
        return [VERSION, number, NO, b"not authorized", b"", b""], where, why
    return [VERSION, number, YES, b"", user, b""], "", ""


class Zap:
    """Answers what libzmq asks in `context`. To be there before anything is bound."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        keys: Authorized | None,
        refused: Callable[[str, str], None],
    ) -> None:
        """`refused` is called with the address and the reason of each no."""
        self.unanswered = False
        """Whether there may be more to answer."""
        self._keys = keys
        self._refused = refused
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(ENDPOINT)

    def fileno(self) -> int:
        """Readable when there may be something to `answer`; to be asked again after each."""
        return self._socket.fileno()

    def answer(self, until: float) -> None:
        """Answer what was asked: all of it, or what `until` allows."""
        self.unanswered = False
        while not self.unanswered and self._socket.get(zmq.EVENTS) & zmq.POLLIN:  # type: ignore[operator,arg-type] # EVENTS is an int
            reply, where, why = answer(self._socket.recv_multipart(zmq.NOBLOCK), self._keys)
            self._socket.send_multipart(reply)
            if why:
                self._refused(where, why)
            self.unanswered = time.monotonic() >= until

    def close(self) -> None:
        self._socket.close()
