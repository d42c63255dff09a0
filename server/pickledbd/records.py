r"""The journal's records as bytes. SPEC.md, The journal, is its prose. No I/O.

A record is one line: the length of its text and a CRC-32, each as eight hexadecimal digits and a
space, then the text, one JSON object in UTF-8 without raw newlines, then a newline. So no byte of
a journal is ever NUL, and what the disk never wrote (blocks of NULs) can be told from damage. The
checksum covers which journal it is and the place in it: a record is none anywhere else.

The functions that are named after a record return its text; `encode` makes lines of texts.

The invariant that is fuzzed: whatever the line, `decode` returns the object that was encoded for
just that place, or None.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import orjson

from pickledbd import clock

FORMAT = 2
"""The version of the journal's format, told in the head of each."""

READABLE = (1, FORMAT)
"""The formats that are read: the first knew only keys and values."""

_LENGTH = b"%08x"
_RECORD = b"%b %08x %b\n"
HEADER_BYTES = 18
LENGTH_MAX = 2**32 - 1
assert all(  # noqa: S101 - the format's own
    len(_RECORD % (_LENGTH % number, number, b"")) == HEADER_BYTES + 1 for number in (0, LENGTH_MAX)
)

_HEADER_PATTERN = re.compile(rb"([0-9a-f]{8}) ([0-9a-f]{8}) ")


NOT_KEPT = b"null"
"""Stands for an answer that was given up: its write was applied, what it returned is gone."""


@dataclass(slots=True)
class Answer:
    """What a write was answered, so that a repeat of it gets the same."""

    client: str
    id: int
    at: int
    """When it was applied, by the daemon's clock of then, in milliseconds since 1970."""
    budget_ms: int
    """For how long after that its client may ask again."""
    result: bytes


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


def head(
    number: int,
    *,
    base: str | None,
    previous: tuple[int, int] | None,
    answers: Iterable[Answer],
    forgotten: int,
) -> bytes:
    """The first record of a journal: what it follows, and what plain JSON cannot carry.

    `base`: the digest of the data file that holds the content at this journal's start; None if
    that is in the one before. `previous`: the number and the length of that.
    `forgotten`: when the newest write was made whose answer is not among `answers` any more.
    """
    about: dict[str, Any] = {
        "journal": FORMAT,
        "number": number,
        "base": base,
        "previous": previous,
        "clock": clock.told(),
        "forgotten": forgotten,
        "answers": [orjson.Fragment(b"{%b}" % _answer(answer)) for answer in answers],
    }
    return orjson.dumps(about)


def based_on(digest: str, end: int) -> bytes:
    """The record that the data file of this digest holds what stands before `end` here."""
    return b'{"base":"%b","end":%d}' % (digest.encode(), end)


def synced(offset: int) -> bytes:
    """The record that what stands before `offset`, and all journals before, is on disk."""
    return b'{"synced":%d}' % offset


_NOTHING: Mapping[str, Any] = MappingProxyType({})


def effects(
    sets: Mapping[str, bytes],
    removed: Iterable[str] = (),
    *,
    clear: bool = False,
    answer: Answer | None = None,
    batch: int | None = None,
    commit: int | None = None,
    expires: Mapping[str, int | None] = _NOTHING,
    others: Mapping[str, Any] = _NOTHING,
) -> bytes:
    """What one write did: all of it, or with `batch` a part that a later `commit` makes good.

    Applied in this order: what was cleared, the batch committed, what was removed, what was set,
    when keys expire (None: never). `others`: what is not about keys.
    """
    rest = removed or clear or commit or batch or expires or others
    if answer is not None and len(sets) == 1 and not rest:
        # Most writes are such, and every one waits for this
        ((key, value),) = sets.items()
        return b'{%b,"set":{%b:%b}}' % (_answer(answer), orjson.dumps(key), value)
    members = [] if answer is None else [_answer(answer)]
    if clear:
        members.append(b'"clear":true')
    if commit is not None:
        members.append(b'"commit":%d' % commit)
    if batch is not None:
        members.append(b'"batch":%d' % batch)
    if removed:
        members.append(b'"remove":%b' % orjson.dumps(list(removed)))
    if sets:
        members.append(b'"set":{%b}' % entries(sets.keys(), sets.values()))
    if expires:
        members.append(b'"expires":%b' % orjson.dumps(expires))
    for name, told in others.items():
        members.append(b'"%b":%b' % (name.encode(), orjson.dumps(told)))
    return b"{%b}" % b",".join(members)


def entries(keys: Iterable[str], values: Iterable[bytes], separator: bytes = b",") -> bytes:
    """The members of a JSON object, without its braces."""
    return separator.join(map(b":".join, zip(map(orjson.dumps, keys), values, strict=True)))


def _answer(answer: Answer) -> bytes:
    return b'"client":%b,"id":%d,"at":%d,"budget_ms":%d,"result":%b' % (
        orjson.dumps(answer.client),
        answer.id,
        answer.at,
        answer.budget_ms,
        answer.result,
    )


def answer_of(record: Mapping[str, Any]) -> Answer | None:
    """The answer that a record tells of, if it does."""
    if "client" not in record:
        return None
    try:
        result = bytes(memoryview(orjson.dumps(record["result"])))
    except TypeError:  # nested as deeply as only a file of pickleDB's may be, and once more
        result = NOT_KEPT
    return Answer(record["client"], record["id"], record["at"], record["budget_ms"], result)
