"""Requests and replies to bytes and back, without I/O. SPEC.md, Messages, is its prose.

The invariant that is fuzzed: whatever the bytes, `decode_requests` returns Requests and
Refuseds, and `decode_replies` returns Replies or raises ProtocolError; never another error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from pickledbd_protocol.commands import COMMANDS, Command, check_args
from pickledbd_protocol.errors import BY_CODE, PickleDBError, ProtocolError
from pickledbd_protocol.values import check_integers, may_hold_binary, restore

ID_MAX = 2**53 - 1
"""Request ids are integers that every language's JSON reads exactly."""

GATHERED_MAX = 128
"""Requests in one message, at most."""

CLIENT_MAX = 64
"""The longest client id, in characters."""


@dataclass(slots=True)  # not frozen: that costs more than all the rest of a small request
class Request:
    """What a client asks, its arguments checked against the table."""

    id: int
    client: str
    budget_ms: int | None
    command: Command
    args: dict[str, Any]
    sent_at: int | None = None
    """When it was first sent, by the daemon's clock, in milliseconds; None if this is that time."""
    more: bool = False
    """Further messages with the same id follow, whose items are to be added to these."""
    size: int = 0
    """Bytes of the message."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that is no request, and what its sender is told; id None if it gave none."""

    id: int | None
    error: PickleDBError
    is_part: bool = False
    """Further messages with the same id follow; all are answered with the last."""


@dataclass(slots=True)
class Reply:
    """What the daemon answered: `result`, unless `error` is set.

    `more`: further replies to the same request follow, whose parts are to be put together.
    """

    id: int | None
    result: dict[str, Any]
    error: PickleDBError | None
    more: bool
    binary: bool

    def value(self, decoded: Any) -> Any:
        """A stored value out of `result` as the Python value it was."""
        return restore(decoded) if self.binary else decoded


def encode_request(
    op: str,
    request_id: int,
    client: str,
    budget_ms: int,
    args: bytes,
    *,
    sent_at: int | None = None,
    more: bool = False,
) -> bytes:
    """The body frame of a request. `args` is the JSON text of the arguments' object."""
    return b'{"id":%d,"client":"%s","budget_ms":%d,"op":"%s",%s%s"args":%s}' % (
        request_id,
        client.encode(),
        budget_ms,
        op.encode(),
        b"" if sent_at is None else b'"sent_at":%d,' % sent_at,
        b'"more":true,' if more else b"",
        args,
    )


def gather(bodies: Sequence[bytes]) -> bytes:
    """One body frame of several requests, or of several replies."""
    return b"[%b]" % b",".join(bodies) if len(bodies) > 1 else bodies[0]


def decode_requests(frames: Sequence[bytes]) -> list[Request | Refused]:
    """What one message (its frames behind the routing id) asks for."""
    try:
        if len(frames) != 1:
            raise ProtocolError(f"a request is one frame, not {len(frames)} (use DEALER, not REQ)")
        body = frames[0]
        found = _load(body)
        if type(found) is not list:
            return [_decode_request(found, body)]
        if not 0 < len(found) <= GATHERED_MAX:
            raise ProtocolError(f"a message holds 1 to {GATHERED_MAX} requests")
    except ProtocolError as error:
        return [Refused(None, error)]
    wrong: PickleDBError | None = None
    try:
        check_integers(body)
    except PickleDBError as error:
        wrong = error
    requests = [_decode_request(one, body, gathered=True) for one in found]
    if wrong is not None:  # nobody can tell whose it is
        return [
            Refused(request.id, wrong)
            if isinstance(request, Request) and request.command.writes
            else request
            for request in requests
        ]
    return requests


def _load(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"the request is not JSON: {error}") from None


def _decode_request(envelope: Any, body: bytes, *, gathered: bool = False) -> Request | Refused:
    request_id: int | None = None
    is_part = False
    try:
        if type(envelope) is not dict:
            raise ProtocolError("a request is a JSON object")
        request_id = _request_id(envelope)
        client = envelope.get("client")
        budget_ms = envelope.get("budget_ms")
        op = envelope.get("op")
        if type(client) is not str or not 0 < len(client) <= CLIENT_MAX:
            raise ProtocolError(f"client must be a string of 1 to {CLIENT_MAX} characters")
        sent_at = envelope.get("sent_at")
        more = envelope.get("more", False)
        for name, value in (("budget_ms", budget_ms), ("sent_at", sent_at)):
            if value is not None and (type(value) is not int or value < 0):
                raise ProtocolError(f"{name} must be an integer of milliseconds, or absent")
        command = COMMANDS.get(op) if type(op) is str else None
        if command is None:
            raise ProtocolError(f"this daemon knows no command {str(op)[:80]!r}")
        if type(more) is not bool or (more and (gathered or not command.parts)):
            raise ProtocolError(
                f"{command.name}: more is for large set_many and replace, in messages of their own"
            )
        is_part = more
        args = envelope.get("args", {})
        check_args(command, args)
        if command.writes and not gathered:
            check_integers(body)
    except PickleDBError as error:
        return Refused(request_id, error, is_part)
    return Request(request_id, client, budget_ms, command, args, sent_at, more, len(body))


def _request_id(envelope: dict[str, Any]) -> int:
    request_id = envelope.get("id")
    if type(request_id) is not int or not 0 <= request_id <= ID_MAX:
        raise ProtocolError("id must be an integer from 0 to 2**53 - 1")
    return request_id


def encode_reply(request_id: int, result: bytes, *, more: bool = False) -> bytes:
    """The body frame of an answer. `result` is the JSON text of the result's object."""
    tail = b',"more":true}' if more else b"}"
    return b'{"id":%d,"result":%s%s' % (request_id, result, tail)


def encode_error(request_id: int | None, error: PickleDBError) -> bytes:
    """The body frame that tells a client of `error`."""
    told: dict[str, Any] = {"code": error.code, "message": str(error)}
    if not error.outcome_known:
        told["outcome_known"] = False
    try:
        return orjson.dumps({"id": request_id, "error": told})
    except TypeError:  # a message quotes what the operating system said, which can be anything
        told["message"] = ascii(told["message"])
        return orjson.dumps({"id": request_id, "error": told})


def decode_replies(body: bytes) -> list[Reply]:
    """What one message from the daemon says. ProtocolError if it is no reply, nor several."""
    try:
        found = orjson.loads(body)
        binary = may_hold_binary(body)
        envelopes = found if type(found) is list else [found]
        return [_reply(envelope, binary=binary) for envelope in envelopes]
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise ProtocolError(f"not a pickledbd reply: {body[:80]!r}") from None


def _reply(envelope: dict[str, Any], *, binary: bool) -> Reply:
    request_id, result = envelope["id"], envelope.get("result", {})
    error = None
    if "error" in envelope:
        told = envelope["error"]
        error = BY_CODE.get(told["code"], PickleDBError)(told["message"])
        if told.get("outcome_known") is False:
            error.outcome_known = False
    if type(result) is not dict or not (request_id is None or type(request_id) is int):
        raise TypeError
    return Reply(request_id, result, error, envelope.get("more") is True, binary)


def join_parts(parts: Sequence[Reply]) -> Reply:
    """One Reply from the messages of an answer in parts: arrays and objects are put together."""
    whole = parts[0]
    for part in parts[1:]:
        for name, found in part.result.items():
            known = whole.result.setdefault(name, found)
            if known is found:
                continue
            if type(known) is list and type(found) is list:
                known.extend(found)
            elif type(known) is dict and type(found) is dict:
                known.update(found)
            else:
                raise ProtocolError(f"the parts of a reply do not fit together at {name!r}")
        whole.binary = whole.binary or part.binary
        whole.error = whole.error or part.error
    return whole
