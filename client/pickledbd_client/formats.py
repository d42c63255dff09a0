"""Contents as files: one JSON object, or a JSON object a line. Text, and no sockets.

May live here: how items become the text of a file, and how a file is read entry by entry.

- `json` is the data file's own layout: one object of keys to values, an entry a line, which
  pickleDB opens too. Any other JSON object is read as well, though only as a whole.
- `jsonl` (JSON lines) is an object a line: `key`, `value`, and `ttl`, the seconds left, if the key
  expires. It is read and written as it comes, and is what a pipe is for.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from pickledbd_client.calls import ttl_ms
from pickledbd_client.raw import Entry, Part
from pickledbd_protocol import InvalidValue, canonical, check_integers, shown
from pickledbd_protocol.data_file import (
    EMPTY,
    HEAD,
    SEPARATOR,
    TAIL,
    NotThisLayoutError,
    blocks,
)
from pickledbd_protocol.values import TEXT_MAX

FORMATS = ("json", "jsonl")

LINE_MAX = TEXT_MAX
"""Bytes of a line: no value may be larger. What is no text at all may have no line's end."""

_LINES = (".jsonl", ".ndjson")
_BLOCK = 2**16
_GZIP = b"\x1f\x8b"
_MEMBERS = {"key", "value", "ttl"}

_Texts = tuple[Iterable[bytes], Iterable[bytes]]


def format_of(name: str | None) -> str:
    """The format of a file of this name; of a pipe, which has none, lines."""
    return "jsonl" if name is None or Path(name).suffix.lower() in _LINES else "json"


def as_json(parts: Iterable[Part]) -> Iterator[bytes]:
    """The text of a file in the format `json`."""
    separator = HEAD
    for part in parts:
        if part.items:
            yield separator + SEPARATOR.join(
                [b"%b:%b" % (orjson.dumps(key), orjson.dumps(v)) for key, v in part.items.items()]
            )
            separator = SEPARATOR
    yield EMPTY if separator is HEAD else TAIL


def as_lines(parts: Iterable[Part]) -> Iterator[bytes]:
    """The text of a file in the format `jsonl`."""
    for part in parts:
        yield b"".join(
            b'{"key":%b,"value":%b%b}\n'
            % (orjson.dumps(key), orjson.dumps(value), _ttl(part.ttls.get(key)))
            for key, value in part.items.items()
        )


def _ttl(left_ms: int | None) -> bytes:
    return b"" if left_ms is None else b',"ttl":%b' % orjson.dumps(left_ms / 1000)


WRITERS: dict[str, Callable[[Iterable[Part]], Iterator[bytes]]] = {
    "json": as_json,
    "jsonl": as_lines,
}


def read_lines(file: BinaryIO, name: str) -> Iterator[Entry]:
    """The entries of a file in the format `jsonl`. InvalidValue names the line at fault."""
    for number, line in enumerate(iter(lambda: file.readline(LINE_MAX + 1), b""), 1):
        if line.isspace():
            continue
        try:
            if len(line) > LINE_MAX:
                raise InvalidValue(f"it is over {LINE_MAX:,} bytes")
            yield _entry_of_line(line)
        except orjson.JSONDecodeError as error:
            reason = _why(line, f"{error.msg} at column {error.colno}")
            raise InvalidValue(f"line {number:,} of {name}: it {reason}") from None
        except InvalidValue as error:
            raise InvalidValue(f"line {number:,} of {name}: {error}") from None


def _entry_of_line(line: bytes) -> Entry:
    told = orjson.loads(line)
    if type(told) is not dict or type(told.get("key")) is not str or "value" not in told:
        raise InvalidValue(
            'it is not an object of "key", a string, and "value"; '
            "what is one JSON object of all keys is --format json"
        )
    key = told["key"]
    ttl = told.get("ttl")
    if len(told) > 2 and told.keys() - _MEMBERS:  # noqa: PLR2004 - the two
        raise InvalidValue(f'"{min(told.keys() - _MEMBERS)}" is none of "key", "value" and "ttl"')
    check_integers(line)
    left = None
    if ttl is not None:
        ttl_ms(ttl, f"key {shown(key)} cannot expire")
        left = max(1, round(ttl * 1000))  # just what was written, be it no exact fraction
    return Entry(orjson.dumps(key), canonical(key, told["value"]), left)


def read_json(file: BinaryIO, name: str) -> Iterator[Entry]:
    """The entries of a file in the format `json`. InvalidValue names the line or the key at fault.

    Of a file in another layout than the data file's, the first ones may come twice.
    """
    if not file.seekable():
        file = io.BytesIO(file.read())
    start = file.tell()
    try:
        for block in blocks(iter(lambda: file.read(_BLOCK), b"")):
            yield from _entries_of(_block(block), block, name)
    except NotThisLayoutError:
        file.seek(start)
        text = file.read()
        if text:
            yield from _entries_of(_whole(text, name), text, name)


def _block(text: bytes) -> dict[str, Any]:
    try:
        found: dict[str, Any] = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise NotThisLayoutError from None
    if not found:  # between two separators, or after the last, there has to be an entry
        raise NotThisLayoutError
    return found


def _whole(text: bytes, name: str) -> dict[str, Any]:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        hint = ""
        if error.msg.startswith("unexpected content after"):
            hint = "; JSON lines, an object a line, are --format jsonl"
        place = f"line {error.lineno:,}, column {error.colno:,}"
        raise InvalidValue(f"{name} {_why(text, f'{error.msg} in {place}')}{hint}") from None
    if type(found) is not dict:
        raise InvalidValue(f"{name} holds a JSON {type(found).__name__}, not an object of all keys")
    return found


def _why(text: bytes, found: str) -> str:
    """Why it cannot be read. What orjson `found` is of no help where it is no text at all."""
    if text.startswith(_GZIP):
        return "is compressed; gzip -dc FILE | pickledbctl import reads it"
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return f"is not UTF-8: {error.reason} at byte {error.start + 1:,}"
    return f"is not JSON: {found}"


def _entries_of(found: dict[str, Any], text: bytes, name: str) -> Iterator[Entry]:
    try:
        check_integers(text)
        for key, value in found.items():
            yield Entry(orjson.dumps(key), canonical(key, value))
    except InvalidValue as error:
        raise InvalidValue(f"{name}: {error}") from None


READERS: dict[str, Callable[[BinaryIO, str], Iterator[Entry]]] = {
    "json": read_json,
    "jsonl": read_lines,
}
