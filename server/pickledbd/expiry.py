"""Deadlines: how a value carries one.

May live here: the form of a value that expires. A deadline is a time of the daemon's clock in
milliseconds; from then on the key is gone, whether or not its memory has been given back yet.

A stored value is JSON text, or that behind a *stamp*: a NUL, with which no JSON begins, and the
deadline in seven bytes. So a deadline is where its value is, and comes and goes with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from operator import itemgetter
from types import MappingProxyType
from typing import Any

from pickledbd.clock import now_ms

STAMP_BYTES = 8

NEVER: Mapping[str, int] = MappingProxyType({})
"""The deadlines of keys none of which expires."""


def stamped(text: bytes, deadline: int | None) -> bytes:
    """The stored value of `text` until `deadline`; for ever, if that is None."""
    if deadline is None:
        return text
    return b"\0" + deadline.to_bytes(STAMP_BYTES - 1, "big") + text


def deadline_of(value: bytes) -> int | None:
    """When a stored value is due; None if it does not expire."""
    return None if value[0] else int.from_bytes(value[1:STAMP_BYTES], "big")


def text_of(value: bytes) -> bytes:
    """The JSON text of a stored value, also of one that is due."""
    return value if value[0] else value[STAMP_BYTES:]


def text_at(value: bytes, now: int) -> bytes | None:
    """The JSON text of a stored value; None if its key is gone at `now`."""
    if value[0]:
        return value
    return value[STAMP_BYTES:] if int.from_bytes(value[1:STAMP_BYTES], "big") > now else None


def deadline_in(args: Mapping[str, Any]) -> int | None:
    """When what a command with these arguments sets expires; None if it does not."""
    # A part of this millisecond is over, and no key is to be gone before its time
    return now_ms() + 1 + args["ttl_ms"] if "ttl_ms" in args else None


def deadlines_in(args: Mapping[str, Any], now: int) -> Mapping[str, int]:
    """The same of those items that expire, where there are several, of what came at `now`."""
    deadlines: dict[str, int] = {}
    if "ttl_ms" in args:
        deadlines = dict.fromkeys(args["items"], now + 1 + args["ttl_ms"])
    for key, ttl_ms in args.get("ttls", NEVER).items():
        deadlines[key] = now + 1 + ttl_ms
    return deadlines


def left_ms(deadline: int, now: int) -> int:
    """What is left at `now` of what `deadline_in` was told."""
    return deadline - 1 - now


def is_due(value: bytes) -> bool:
    """Whether the key of this stored value is gone."""
    deadline = deadline_of(value)
    return deadline is not None and deadline <= now_ms()


Piece = tuple[Iterable[str], Iterable[bytes], Mapping[str, int]]
"""Some keys, the texts of their values, and the deadlines of those that have one."""


Stored = Iterable[tuple[Collection[str], Collection[bytes]]]
"""Keys and stored values, some at a time."""


def living(content: Stored, now: int) -> Iterator[Piece]:
    """Of keys and stored values, piece by piece, those that are not gone at `now`."""
    for keys, values in content:
        if 0 not in map(_first, values):
            yield keys, values, {}
            continue
        known: list[str] = []
        texts: list[bytes] = []
        deadlines: dict[str, int] = {}
        for key, value in zip(keys, values, strict=True):
            deadline = deadline_of(value)
            if deadline is not None:
                if deadline <= now:
                    continue
                deadlines[key] = deadline
            known.append(key)
            texts.append(text_of(value))
        yield known, texts, deadlines


def without(content: Stored) -> Iterator[Piece]:
    """The same where nothing expires."""
    return ((keys, values, NEVER) for keys, values in content)


_first = itemgetter(0)
