"""The annex of a data file as text: when its keys expire, and what else plain JSON cannot hold.

SPEC.md, The journal, is its prose. No I/O. It belongs to the data file of one digest, which is in
its name; it is made of records, of which the first ones tell deadlines, and one ends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from pickledbd_protocol.records import encode

FORMAT = 1

DIGITS = 16
"""Of the digest, in the name."""

NUMBER = 0
"""As whose journal's its records are encoded: there is none of that number."""


def name_of(data_name: str, digest: str) -> str:
    """The name of the annex of the data file of this name and digest."""
    return f"{data_name}.annex-{digest[:DIGITS]}"


def deadlines(expires: Mapping[str, int], place: int) -> bytes:
    """A record of keys and the times of the daemon's clock at which they expire."""
    return encode([orjson.dumps({"expires": expires})], NUMBER, place)


def ending(digest: str, locks: Mapping[str, Any], clock: Mapping[str, Any], place: int) -> bytes:
    """The last record. `locks`: `fence` and `locks`; `clock`: as in the head of a journal."""
    last = {"annex": FORMAT, "base": digest, **locks, "clock": clock}
    return encode([orjson.dumps(last)], NUMBER, place)
