"""Records of JSON, each of which knows its place: the lines of journals and annexes. No I/O.

SPEC.md, The journal, is their prose. A record is one line: the length of its text and a CRC-32,
each as eight hexadecimal digits and a space, then the text, one JSON object in UTF-8 without raw
newlines, then a newline. So no byte of it is ever NUL, and what the disk never wrote (blocks of
NULs) can be told from damage. The checksum covers which journal it is and the place in it: a
record is none anywhere else.

The invariant that is fuzzed: whatever the line, `decode` returns the object that was encoded for
just that place, or None.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import Any

import orjson

_LENGTH = b"%08x"
_RECORD = b"%b %08x %b\n"
HEADER_BYTES = 18
LENGTH_MAX = 2**32 - 1
assert all(  # noqa: S101 - the format's own
    len(_RECORD % (_LENGTH % number, number, b"")) == HEADER_BYTES + 1 for number in (0, LENGTH_MAX)
)

_HEADER_PATTERN = re.compile(rb"([0-9a-f]{8}) ([0-9a-f]{8}) ")


def encode(texts: Iterable[bytes], number: int, place: int) -> bytes:
    """Records with these texts, as they stand in the journal `number` from the byte `place` on."""
    lines = []
    for text in texts:
        length = _LENGTH % len(text)
        line = _RECORD % (length, _checksum(length, text, number, place), text)
        lines.append(line)
        place += len(line)
    return b"".join(lines)


def decode(line: bytes, number: int, place: int) -> dict[str, Any] | None:
    """The object in one line (with its newline), or None if it is not just what was encoded."""
    split = _split(line)
    if split is None:
        return None
    length, checksum, text = split
    return _object(text) if int(checksum, 16) == _checksum(length, text, number, place) else None


def form(line: bytes) -> dict[str, Any] | None:
    """The object in a line that has the form of a record, whatever its checksum.

    Where the two differ, something has changed since it was written: what the disk did not write
    is NUL, or missing, and so has not the form.
    """
    split = _split(line)
    return None if split is None else _object(split[2])


def _split(line: bytes) -> tuple[bytes, bytes, bytes] | None:
    """The digits of the length and of the checksum, and a text of that length."""
    header = _HEADER_PATTERN.match(line)
    text = line[HEADER_BYTES:-1]
    if header is None or not line.endswith(b"\n") or int(header[1], 16) != len(text):
        return None
    return header[1], header[2], text


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _checksum(length: bytes, text: bytes, number: int, place: int) -> int:
    return zlib.crc32(text, zlib.crc32(b"%x %x %b " % (number, place, length)))
