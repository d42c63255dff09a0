"""The texts of the journal's records. SPEC.md, The journal, is their prose. No I/O.

The functions that are named after a record return its text; `encode` makes lines of texts
(pickledbd_protocol.records).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import orjson

from pickledbd import clock
from pickledbd_protocol.records import HEADER_BYTES, LENGTH_MAX, decode, encode, form

__all__ = [
    "FORMAT",
    "HEADER_BYTES",
    "LENGTH_MAX",
    "NOT_KEPT",
    "READABLE",
    "Answer",
    "answer_of",
    "based_on",
    "decode",
    "effects",
    "encode",
    "entries",
    "form",
    "head",
    "synced",
]

FORMAT = 2
"""The version of the journal's format, told in the head of each."""

READABLE = (1, FORMAT)
"""The formats that are read: the first knew only keys and values."""

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
