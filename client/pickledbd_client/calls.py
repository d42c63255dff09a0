"""What each method asks and how it reads the answer, without I/O.

A Call is a command, the JSON text of its arguments, and a function from the reply to the
method's value. Whoever has a socket, blocking or not, carries it there and back.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as replace_
from itertools import islice
from typing import Any, Generic, TypeVar

import orjson

from pickledbd_protocol import (
    GLOB_MAX,
    TTL_MS_MAX,
    InvalidValue,
    Reply,
    encode_items,
    encode_key,
    encode_value,
    shown,
)

T = TypeVar("T")

MISSING: Any = object()
"""A default that raises KeyError instead."""


Version = str | int
"""Of a value, to compare: a digest of its text; 0 where there is none."""

OWN = -1.0
"""The patience of a call that is the user's `timeout`."""

WHOLE_BYTES = 2**17
"""A batch over this size is sent in parts, so that the daemon never has to halt for long."""

PART_BYTES = 2**15
"""About the size of a part."""

_PIECE_ITEMS = 256  # encoded at once, at most; several such pieces make a part


@dataclass(slots=True)
class Call(Generic[T]):
    """One request, before it has an id, and the reading of its reply."""

    op: str
    args: bytes
    read: Callable[[Reply], T]
    before: list[bytes] = field(default_factory=list)
    """The arguments of messages to be sent before the last, where there are several."""
    key: str | None = None
    """The key whose value is known when the reply is there, so that it may be kept."""
    text: bytes | None = None
    """That value, as JSON text, if it is not the reply that tells it."""
    patience: float | None = OWN
    """Seconds for which the reply may be waited for, where others have to do something first; None
    for ever."""


def _true(_reply: Reply) -> bool:
    return True


def _result(reply: Reply) -> dict[str, Any]:
    return reply.result


def _value(reply: Reply) -> Any:
    return reply.value(reply.result["value"])


def _items(reply: Reply) -> dict[str, Any]:
    items: dict[str, Any] = reply.result["items"]
    return {key: reply.value(value) for key, value in items.items()} if reply.binary else items


def _value_or(key: str, default: Any) -> Callable[[Reply], Any]:
    def read(reply: Reply) -> Any:
        if "value" in reply.result:
            return reply.value(reply.result["value"])
        if default is MISSING:
            raise KeyError(key)
        return default

    return read


def _key_args(key: str, more: bytes = b"") -> bytes:
    return b'{"key":%b%b}' % (encode_key(key), more)


def _keys_call(op: str, keys: list[str], read: Callable[[Reply], T], more: bytes = b"") -> Call[T]:
    try:
        text = orjson.dumps(keys)
    except TypeError:  # one by one, to name the key
        text = b"[%b]" % b",".join(map(encode_key, keys))
    return Call(op, b'{"keys":%b%b}' % (text, more), read)


def _pair_args(key: str, text: bytes, more: bytes = b"") -> bytes:
    return b'{"key":%b,"value":%b%b}' % (encode_key(key), text, more)


def _more(ttl: float | None = None, token: int | None = None, about: str = "") -> bytes:
    """Members of arguments that are seldom there."""
    text = b"" if ttl is None else b',"ttl_ms":%d' % ttl_ms(ttl, about)
    return text if token is None else b'%b,"token":%d' % (text, checked_token(token))


def _token_args(token: int | None) -> bytes:
    return b"{%b}" % _more(token=token)[1:]


def ttl_ms(seconds: float, about: str) -> int:
    """A time to live on the wire. InvalidValue if it is none; `about` says of what."""
    if type(seconds) in (int, float) and 0 < seconds <= TTL_MS_MAX / 1000:
        return math.ceil(seconds * 1000)
    raise InvalidValue(
        f"{about}: the time to live is a number of seconds, over 0 and at most 100 years, "
        f"not {seconds!r}"
    )


def wait_ms(seconds: float, about: str) -> int:
    """How long to wait, on the wire. InvalidValue if that is no time; `about` says for what."""
    if type(seconds) in (int, float) and 0 <= seconds <= TTL_MS_MAX / 1000:
        return math.ceil(seconds * 1000)
    raise InvalidValue(
        f"{about}: the timeout is a number of seconds, 0 or more and at most 100 years, or None, "
        f"not {seconds!r}"
    )


def checked_token(token: Any) -> int:
    """A fencing token. InvalidValue if it cannot be one."""
    if type(token) is not int or not 0 <= token < 2**53:
        raise InvalidValue(f"a token is the .token of a lock that is held, not {token!r}")
    return token


def pieces_of(items: Mapping[Any, Any]) -> list[bytes]:
    """The members of a JSON object of all `items`, some at a time."""
    if not isinstance(items, Mapping):
        raise InvalidValue(f"keys and values are set from a mapping, not a {type(items).__name__}")
    pairs = iter({str(key): value for key, value in items.items()}.items())
    pieces: list[bytes] = []
    count = 16  # whatever a value's size, the first piece is not to be out of all proportion
    while piece := dict(islice(pairs, count)):
        text = encode_items(piece)[1:-1]
        pieces.append(text)
        count = max(1, min(_PIECE_ITEMS, PART_BYTES * len(piece) // len(text)))
    return pieces


def piece_of(key: str, value: Any) -> bytes:
    """The same of one item."""
    return b"%b:%b" % (encode_key(key), encode_value(key, value))


def _items_call(op: str, parts: Iterable[bytes], more: bytes = b"") -> Call[bool]:
    *before, last = (b'{"items":{%b}%b}' % (part, more) for part in parts)
    return Call(op, last, _true, before)


def _parts(pieces: list[bytes]) -> Iterator[bytes]:
    """Pieces put together: all in one part, or else in parts of about PART_BYTES."""
    limit = WHOLE_BYTES if sum(map(len, pieces)) <= WHOLE_BYTES else PART_BYTES
    part: list[bytes] = []
    size = 0
    for piece in pieces:
        if part and size + len(piece) > limit:
            yield b",".join(part)
            part, size = [], 0
        part.append(piece)
        size += len(piece)
    yield b",".join(part)


def get(key: str, default: Any = None) -> Call[Any]:
    return Call("get", _key_args(key), _value_or(key, default), key=key)


def exists(key: str) -> Call[bool]:
    return Call("exists", _key_args(key), lambda reply: reply.result["exists"])


def set_(key: str, value: Any, *, ttl: float | None = None, token: int | None = None) -> Call[bool]:
    text = encode_value(key, value)
    if ttl is None and token is None:
        return Call("set", _pair_args(key, text), _true, key=key, text=text)
    more = _more(ttl, token, f"cannot store key {shown(key)}")
    return Call("set", _pair_args(key, text, more), _true)


def setdefault(key: str, value: Any, *, token: int | None = None) -> Call[Any]:
    text = encode_value(key, value)
    return Call("setdefault", _pair_args(key, text, _more(token=token)), _value)


def remove(key: str, *, token: int | None = None) -> Call[bool]:
    more = _more(token=token)
    return Call("remove", _key_args(key, more), lambda reply: reply.result["removed"])


def pop(key: str, default: Any, *, token: int | None = None) -> Call[Any]:
    return Call("pop", _key_args(key, _more(token=token)), _value_or(key, default))


def incr(key: str, by: float, default: float, *, token: int | None = None) -> Call[Any]:
    by_text, default_text = (_number(key, number) for number in (by, default))
    more = b',"by":%b,"default":%b%b' % (by_text, default_text, _more(token=token))
    return Call("incr", _key_args(key, more), lambda reply: reply.result["value"])


def _number(key: str, number: Any) -> bytes:
    kind = f"a {type(number).__name__}"
    if type(number) in (int, float):
        kind = "NaN or an infinity" if type(number) is float else "an integer over 64 bits"
        with contextlib.suppress(InvalidValue):
            return encode_value(key, number)
    raise InvalidValue(
        f"cannot increment key {shown(key)} by {kind}: it takes an int of 64 bits or a finite float"
    )


def get_versioned(key: str) -> Call[tuple[Any, Version]]:
    def read(reply: Reply) -> tuple[Any, Version]:
        version: Version = reply.result["version"]
        return (_value(reply), version) if version else (None, version)

    return Call("get_versioned", _key_args(key), read)


def cas(
    key: str,
    version: Version,
    value: Any,
    *,
    ttl: float | None = None,
    keep_ttl: bool = False,
    token: int | None = None,
) -> Call[bool]:
    more = b',"version":%b%b%b' % (
        _version(version),
        b',"keep_ttl":true' if keep_ttl else b"",
        _more(ttl, token, f"cannot store key {shown(key)}"),
    )
    args = _pair_args(key, encode_value(key, value), more)
    return Call("cas", args, lambda reply: reply.result["swapped"])


def if_version(key: str, version: Version) -> Call[bool]:
    return Call("if_version", _key_args(key, b',"version":%b' % _version(version)), _true)


def _version(version: Any) -> bytes:
    if type(version) is str or (type(version) is int and not version):
        with contextlib.suppress(TypeError):  # it holds a lone surrogate
            return orjson.dumps(version)
    raise InvalidValue(f"a version is what get_versioned told, not {version!r}")


def ttl(key: str) -> Call[float | None]:
    def read(reply: Reply) -> float | None:
        left = reply.result.get("ttl_ms")
        return None if left is None else left / 1000

    return Call("ttl", _key_args(key), read)


def expire(key: str, seconds: float, *, token: int | None = None) -> Call[bool]:
    about = f"key {shown(key)} cannot expire"
    more = b',"ttl_ms":%d%b' % (ttl_ms(seconds, about), _more(token=token))
    return Call("expire", _key_args(key, more), lambda reply: reply.result["expires"])


def persist(key: str, *, token: int | None = None) -> Call[bool]:
    more = _more(token=token)
    return Call("persist", _key_args(key, more), lambda reply: reply.result["persisted"])


def popitem(*, token: int | None = None) -> Call[tuple[str, Any]]:
    def read(reply: Reply) -> tuple[str, Any]:
        if "key" not in reply.result:
            raise KeyError("popitem(): the database is empty")
        return reply.result["key"], _value(reply)

    return Call("popitem", _token_args(token), read)


def get_many(keys: Iterable[Any]) -> Call[dict[str, Any]]:
    asked = list(map(str, keys))

    def read(reply: Reply) -> dict[str, Any]:
        values, missing = reply.result["values"], set(reply.result["missing"])
        there = (
            [key for index, key in enumerate(asked) if index not in missing] if missing else asked
        )
        if reply.binary:
            values = map(reply.value, values)
        return dict(zip(there, values, strict=True))

    return _keys_call("get_many", asked, read)


def set_many(
    items: Mapping[Any, Any], *, ttl: float | None = None, token: int | None = None
) -> Call[bool]:
    return set_pieces(pieces_of(items), ttl=ttl, token=token)


def remove_many(keys: Iterable[Any], *, token: int | None = None) -> Call[int]:
    names = list(map(str, keys))
    return _keys_call(
        "remove_many", names, lambda reply: reply.result["removed"], _more(token=token)
    )


def set_pieces(
    pieces: list[bytes],
    *,
    ttl: float | None = None,
    token: int | None = None,
    whole: bool = False,
) -> Call[bool]:
    """`whole`: not in parts, as it is to be a step of a batch."""
    more = _more(ttl, token, "cannot store these keys")
    return _items_call("set_many", [b",".join(pieces)] if whole else _parts(pieces), more)


def batch(steps: list[Call[Any]], *, token: int | None = None) -> Call[list[Any]]:
    """Several writes as one, which returns what each of them would."""
    if len(steps) == 1 and token is None:
        (only,) = steps
        return Call(only.op, only.args, lambda reply: [only.read(reply)], only.before)

    def read(reply: Reply) -> list[Any]:
        results = reply.result["results"]
        return [
            step.read(replace_(reply, result=result))
            for step, result in zip(steps, results, strict=True)
        ]

    texts = (b'{"op":"%b","args":%b}' % (step.op.encode(), step.args) for step in steps)
    return Call("batch", b'{"steps":[%b]%b}' % (b",".join(texts), _more(token=token)), read)


def len_() -> Call[int]:
    return Call("len", b"{}", lambda reply: reply.result["len"])


@dataclass(frozen=True)
class Some:
    """Which keys: those that begin with `prefix` and match `glob`, as far as these are given."""

    prefix: Any = ""
    glob: Any = None

    def __post_init__(self) -> None:
        """Have them as text, as keys are. InvalidValue if the glob is too long."""
        object.__setattr__(self, "prefix", "" if self.prefix is None else str(self.prefix))
        if self.glob is not None:
            object.__setattr__(self, "glob", str(self.glob))
            if len(self.glob) > GLOB_MAX:
                raise InvalidValue(
                    f"a glob has at most {GLOB_MAX:,} characters, not {len(self.glob):,}"
                )

    def args(self, **more: Any) -> bytes:
        """As arguments of a command."""
        told: dict[str, Any] = {"prefix": self.prefix} if self.prefix else {}
        if self.glob is not None:
            told["glob"] = self.glob
        try:
            return orjson.dumps(told | more)
        except TypeError:
            for text in told.values():
                encode_key(text)
            raise


ALL = Some()


def all_(some: Some = ALL) -> Call[list[str]]:
    return Call("all", some.args(), lambda reply: reply.result["keys"])


def dump(some: Some = ALL) -> Call[dict[str, Any]]:
    return Call("dump", some.args(), _items)


def snapshot(some: Some) -> Call[tuple[dict[str, Any], int]]:
    """A dump, and the sequence of the newest change in it."""

    def read(reply: Reply) -> tuple[dict[str, Any], int]:
        return _items(reply), reply.result["seq"]

    return Call("dump", some.args(seq=True), read)


def replace(items: Mapping[Any, Any]) -> Call[bool]:
    return _items_call("replace", _parts(pieces_of(items)))


def purge(*, token: int | None = None) -> Call[bool]:
    return Call("purge", _token_args(token), _true)


def lock(
    name: str, holder: str, ask: int, *, ttl: float, wait: float | None, patience: float | None
) -> Call[int | None]:
    """The token, or None if the lock was not free in time."""
    args = b'{"name":%b,"holder":"%b","ask":%d%b%b}' % (
        encode_key(name),
        holder.encode(),
        ask,
        _more(ttl, about=f"lock {shown(name)}"),
        b"" if wait is None else b',"wait_ms":%d' % wait_ms(wait, f"lock {shown(name)}"),
    )
    return Call("lock", args, lambda reply: reply.result.get("token"), patience=patience)


def unlock(name: str, holder: str, ask: int) -> Call[bool]:
    """Whether it was held."""
    args = b'{"name":%b,"holder":"%b","ask":%d}' % (encode_key(name), holder.encode(), ask)
    return Call("unlock", args, lambda reply: reply.result["released"])


def keep(holder: str, asks: Iterable[int]) -> Call[list[int]]:
    """Those asks that hold nothing any more."""
    args = orjson.dumps({"holder": holder, "asks": list(asks)})
    return Call("keep", args, lambda reply: reply.result["lost"])


def watch(prefix: str, since: int | None, watcher: str) -> Call[dict[str, Any]]:
    args = b'{"prefix":%b,"watcher":"%b"%b}' % (
        encode_key(prefix),
        watcher.encode(),
        b"" if since is None else b',"since":%d' % since,
    )

    def read(reply: Reply) -> dict[str, Any]:
        for change in reply.result.get("changes", ()) if reply.binary else ():
            change[2:] = map(reply.value, change[2:])
        return reply.result

    # Without `since` the answer comes at once
    return Call("watch", args, read, patience=OWN if since is None else None)


def unwatch(watcher: str) -> Call[bool]:
    return Call("unwatch", b'{"watcher":"%b"}' % watcher.encode(), _true)


def save() -> Call[bool]:
    return Call("save", b"{}", _true)


def ping() -> Call[bool]:
    return Call("ping", b"{}", _true)


def info(*, reset: bool) -> Call[dict[str, Any]]:
    return Call("info", b'{"reset":true}' if reset else b"{}", _result)


def hello(versions: list[int], met: Callable[[dict[str, Any]], None]) -> Call[None]:
    """`met` is called with what the daemon tells of itself."""
    return Call(
        "hello", b'{"versions":%s}' % orjson.dumps(versions), lambda reply: met(reply.result)
    )
