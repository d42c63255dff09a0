"""What each method asks and how it reads the answer, without I/O.

A Call is a command, the JSON text of its arguments, and a function from the reply to the
method's value. Whoever has a socket, blocking or not, carries it there and back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as replace_
from itertools import islice
from typing import Any, Generic, TypeVar

import orjson

from pickledbd_protocol import InvalidValue, Reply, encode_items, encode_key, encode_value

T = TypeVar("T")

MISSING: Any = object()
"""A default that raises KeyError instead."""


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


def _key_args(key: str) -> bytes:
    return b'{"key":%s}' % encode_key(key)


def _keys_call(op: str, keys: list[str], read: Callable[[Reply], T]) -> Call[T]:
    try:
        text = orjson.dumps(keys)
    except TypeError:  # one by one, to name the key
        text = b"[%b]" % b",".join(map(encode_key, keys))
    return Call(op, b'{"keys":%b}' % text, read)


def _pair_args(key: str, text: bytes) -> bytes:
    return b'{"key":%b,"value":%b}' % (encode_key(key), text)


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


def _items_call(op: str, parts: Iterable[bytes]) -> Call[bool]:
    *before, last = (b'{"items":{%b}}' % part for part in parts)
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


def set_(key: str, value: Any) -> Call[bool]:
    text = encode_value(key, value)
    return Call("set", _pair_args(key, text), _true, key=key, text=text)


def setdefault(key: str, value: Any) -> Call[Any]:
    return Call("setdefault", _pair_args(key, encode_value(key, value)), _value)


def remove(key: str) -> Call[bool]:
    return Call("remove", _key_args(key), lambda reply: reply.result["removed"])


def pop(key: str, default: Any) -> Call[Any]:
    return Call("pop", _key_args(key), _value_or(key, default))


def popitem() -> Call[tuple[str, Any]]:
    def read(reply: Reply) -> tuple[str, Any]:
        if "key" not in reply.result:
            raise KeyError("popitem(): the database is empty")
        return reply.result["key"], _value(reply)

    return Call("popitem", b"{}", read)


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


def set_many(items: Mapping[Any, Any]) -> Call[bool]:
    return set_pieces(pieces_of(items))


def remove_many(keys: Iterable[Any]) -> Call[int]:
    return _keys_call("remove_many", list(map(str, keys)), lambda reply: reply.result["removed"])


def set_pieces(pieces: list[bytes], *, whole: bool = False) -> Call[bool]:
    """`whole`: not in parts, as it is to be a step of a batch."""
    return _items_call("set_many", [b",".join(pieces)] if whole else _parts(pieces))


def batch(steps: list[Call[Any]]) -> Call[list[Any]]:
    """Several writes as one, which returns what each of them would."""
    if len(steps) == 1:
        (only,) = steps
        return Call(only.op, only.args, lambda reply: [only.read(reply)], only.before)

    def read(reply: Reply) -> list[Any]:
        results = reply.result["results"]
        return [
            step.read(replace_(reply, result=result))
            for step, result in zip(steps, results, strict=True)
        ]

    texts = (b'{"op":"%b","args":%b}' % (step.op.encode(), step.args) for step in steps)
    return Call("batch", b'{"steps":[%b]}' % b",".join(texts), read)


def len_() -> Call[int]:
    return Call("len", b"{}", lambda reply: reply.result["len"])


def all_() -> Call[list[str]]:
    return Call("all", b"{}", lambda reply: reply.result["keys"])


def dump() -> Call[dict[str, Any]]:
    return Call("dump", b"{}", _items)


def replace(items: Mapping[Any, Any]) -> Call[bool]:
    return _items_call("replace", _parts(pieces_of(items)))


def purge() -> Call[bool]:
    return Call("purge", b"{}", _true)


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
