"""The value rules: what may be stored, and how `bytes`, which JSON lacks, are written.

May live here: Python value to JSON text and back. No I/O and no request framing. The rules for
the JSON text are the daemon's to enforce (`canonical`, `check_integers`); the rules for Python
objects (NaN, sets, bytes) can only be a client's (`encode_value`, `restore`).

Bytes are MongoDB's Extended JSON v2, `{"$binary": {"base64": "...", "subType": "00"}}`. A dict
of the user's own that could be taken for it gets one more `$` in front of its only key, and
loses it on the way back (SPEC.md, Values).
"""

from __future__ import annotations

import binascii
import dataclasses
import enum
import json
import re
import uuid
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any, NoReturn

import orjson

from pickledbd_protocol.errors import InvalidKey, InvalidValue, TooLarge

MAX_DEPTH = 200
"""How many arrays and objects may stand inside each other in a value."""

TEXT_MAX = 2**29
"""The longest str or bytes that is encoded. orjson 3.13 crashes the process at one that takes
2 GiB as UTF-8, and a character takes up to four bytes."""

INT_MIN, INT_MAX = -(2**63), 2**64 - 1
"""What orjson writes as an integer."""

_BINARY = b'$binary"'  # as orjson writes the key's end; it never escapes any of these
_ESCAPED = re.compile(r"\$+binary")

# Every digit becomes 0 and everything else a space, so that one search finds a long number.
_DIGITS = bytes(48 if byte in b"0123456789" else 32 for byte in range(256))
_LONG_NUMBER = b"0" * 19


def _orjson_depth() -> int:
    """The nesting that orjson.dumps still writes (254 when this was written)."""
    depth, value = 0, 0
    nested: Any = value
    while True:
        nested = [nested]
        try:
            orjson.dumps(nested)
        except TypeError:
            return depth
        depth += 1


_HEADROOM = _orjson_depth() - MAX_DEPTH


def shown(key: str) -> str:
    """A key as error messages show it: quoted, and short."""
    return repr(key) if len(key) <= 80 else f"{key[:77]!r}... ({len(key)} characters)"  # noqa: PLR2004 - a line's width


# A client's side: Python objects to JSON text.


def encode_key(key: str) -> bytes:
    """`key` as a JSON string. InvalidKey if it holds a lone surrogate."""
    try:
        return orjson.dumps(key)
    except TypeError:
        raise InvalidKey(f"key {shown(key)} cannot be stored: it holds a lone surrogate") from None


def encode_value(key: str, value: Any) -> bytes:
    """`value` as JSON text, bytes as `$binary`. InvalidValue names `key` and the reason."""
    if type(value) in (str, bytes) and len(value) > TEXT_MAX:
        raise TooLarge(
            f"cannot store key {shown(key)}: {len(value):,} characters are over {TEXT_MAX:,}"
        )
    if type(value) is bytes:
        return orjson.dumps(_binary(value))
    try:
        text = orjson.dumps(value, default=_binary)
        if b"null" in text:
            _refuse_nan(value)
        return orjson.dumps(_escape(value)) if _BINARY in text else text
    except (TypeError, ValueError) as error:
        raise InvalidValue(f"cannot store key {shown(key)}: {_reason(error)}") from None


def encode_items(items: Mapping[str, Any]) -> bytes:
    """`items` as the text of one JSON object; errors name the key at fault."""
    try:
        strings = [value for value in items.values() if type(value) is str]
        if max(map(len, strings), default=0) <= TEXT_MAX:
            text = orjson.dumps(items, default=_binary)
            if b"null" in text:
                _refuse_nan(items)
            if _BINARY not in text:
                return text
    except (TypeError, ValueError):
        pass  # the loop below finds the key and says what is wrong with it
    return orjson.dumps(
        {
            orjson.loads(encode_key(key)): orjson.Fragment(encode_value(key, value))
            for key, value in items.items()
        }
    )


def restore(value: Any) -> Any:
    """A decoded JSON value with its `$binary` objects as bytes again. Changes it in place."""
    if type(value) is list:
        for index, item in enumerate(value):
            value[index] = restore(item)
    elif type(value) is dict:
        if len(value) == 1:
            ((name, inner),) = value.items()
            if name == "$binary":
                data = _from_binary(inner)
                if data is not None:
                    return data
            elif _ESCAPED.fullmatch(name):
                return {name[1:]: restore(inner)}
        for name, inner in value.items():
            value[name] = restore(inner)
    return value


def may_hold_binary(text: bytes) -> bool:
    """False if no value in this JSON text needs `restore`, which is slow."""
    return _BINARY in text


def _binary(value: Any) -> dict[str, Any]:
    if not isinstance(value, bytes):
        _not_json(value)
    if len(value) > TEXT_MAX:
        raise TypeError(f"{len(value):,} bytes in it are over {TEXT_MAX:,}")
    return {"$binary": {"base64": b64encode(value).decode(), "subType": "00"}}


def _not_json(value: Any) -> NoReturn:
    kind = type(value)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    hint = {"set": "; store a list", "frozenset": "; store a list"}.get(name, "")
    if name in {"bytearray", "memoryview"}:
        hint = "; store bytes(...)"
    raise TypeError(f"a {name} is not JSON{hint}")


def _from_binary(inner: Any) -> bytes | None:
    if type(inner) is not dict or inner.keys() != {"base64", "subType"}:
        return None
    if inner["subType"] != "00" or type(inner["base64"]) is not str:
        return None
    try:
        return b64decode(inner["base64"], validate=True)
    except (binascii.Error, ValueError):
        return None


def _escape(value: Any) -> Any:
    """`value` as plain JSON objects, bytes as `$binary` and look-alikes escaped.

    orjson's rendering is taken first, so that dataclasses and the like need no second set of
    rules; a mark that nobody can have guessed tells our own bytes from a user's dict.
    """
    mark = uuid.uuid4().hex

    def marked(value: Any) -> dict[str, Any]:
        if not isinstance(value, bytes):
            _not_json(value)
        return {mark: b64encode(value).decode()}

    def walk(value: Any) -> Any:
        if type(value) is list:
            return [walk(item) for item in value]
        if type(value) is not dict:
            return value
        if len(value) == 1:
            ((name, inner),) = value.items()
            if name == mark:
                return {"$binary": {"base64": inner, "subType": "00"}}
            if _ESCAPED.fullmatch(name):
                return {"$" + name: walk(inner)}
        return {name: walk(inner) for name, inner in value.items()}

    return walk(orjson.loads(orjson.dumps(value, default=marked)))


def _refuse_nan(value: Any) -> None:
    """Raise ValueError where orjson wrote `null` for a NaN or an infinity.

    The standard encoder is used for its walk, which is in C, and not for its output.
    """
    json.dumps(value, allow_nan=False, default=_children)


def _children(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, part.name, None) for part in dataclasses.fields(value)]
    if isinstance(value, enum.Enum):
        return value.value
    return None  # a leaf that holds no float: bytes, a date, a UUID


def _reason(error: Exception) -> str:
    text = str(error)
    if text.startswith("Out of range float"):
        return "NaN and infinities are not JSON"
    if text.startswith("Recursion limit"):
        return f"it is nested over {MAX_DEPTH} levels deep, or contains itself"
    if text.startswith("Integer exceeds"):
        return "it holds an integer over 64 bits"
    if text.startswith("Dict key must be str"):
        return "it holds a dict with a key that is not a str"
    if "surrogates" in text:
        return "it holds a str with a lone surrogate"
    # orjson wraps what _binary raised
    return str(error.__cause__ or text)


# The daemon's side: JSON text that it can always write again.


def canonical(key: str, value: Any) -> bytes:
    """The bytes to keep for a decoded JSON value. InvalidValue if it is nested too deeply."""
    try:
        text = orjson.dumps(value)
        if len(text) > MAX_DEPTH:
            _refuse_depth(value, text)
    except TypeError as error:
        raise InvalidValue(f"cannot store key {shown(key)}: {_reason(error)}") from None
    # orjson's own bytes object keeps the whole buffer it was written into (about 4 KB)
    return bytes(memoryview(text))


def canonical_items(items: Mapping[str, Any]) -> dict[str, bytes]:
    """The same for many keys at once, which takes a third of the time."""
    try:
        texts = _dump_each(list(items.values()))
        if max(map(len, texts), default=0) > MAX_DEPTH:
            for value, text in zip(items.values(), texts, strict=True):
                if len(text) > MAX_DEPTH:
                    _refuse_depth(value, text)
    except (TypeError, ValueError):  # one by one, to name the key, or to do without a separator
        return {key: canonical(key, value) for key, value in items.items()}
    return dict(zip(items, texts, strict=True))


def _dump_each(values: list[Any]) -> list[bytes]:
    """The texts of all `values`, by one call. ValueError if one of them holds the separator."""
    between = 8_317_264_559_017_423_916  # any long integer that values will hardly hold
    together = [between] * (2 * len(values) - 1)
    together[::2] = values
    texts = orjson.dumps(together)[1:-1].split(b",%d," % between) if values else []
    if len(texts) != len(values):
        raise ValueError("a value holds what was to stand between them")
    return texts


def _refuse_depth(value: Any, text: bytes) -> None:
    """Raise TypeError if `value`, whose text this is, is nested too deeply."""
    # Only where there are brackets enough for it is the depth worth measuring: orjson does that
    # when it is left no more than MAX_DEPTH of its own limit.
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH:
        for _ in range(_HEADROOM):
            value = [value]
        orjson.dumps(value)


def check_integers(text: bytes) -> None:
    """Raise InvalidValue if valid JSON `text` has an integer that orjson would read as a float."""
    if _LONG_NUMBER not in text.translate(_DIGITS):
        return
    try:
        json.loads(text, parse_int=_check_integer)
    except RecursionError:
        raise InvalidValue(f"it is nested over {MAX_DEPTH} levels deep") from None


def _check_integer(digits: str) -> int:
    # Python refuses to parse thousands of digits, and so need not be asked to
    number = int(digits) if len(digits) <= 20 else INT_MAX + 1  # noqa: PLR2004 - INT_MIN's and INT_MAX's length
    if not INT_MIN <= number <= INT_MAX:
        shortened = digits if len(digits) <= 40 else digits[:37] + "..."  # noqa: PLR2004 - a line's width
        raise InvalidValue(f"the integer {shortened} is over 64 bits")
    return number
