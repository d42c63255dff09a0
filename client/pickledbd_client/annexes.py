"""When the keys of a copy expire: its annex, as the daemon has one beside its data file.

May live here: that file, written and read (SPEC.md, The journal). Times are the system's, which a
daemon that is started on the copy begins with.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import orjson

from pickledbd_client.outfile import writing
from pickledbd_client.raw import Entry, Part
from pickledbd_protocol import InvalidValue, annex
from pickledbd_protocol.records import decode


def beside(path: Path) -> list[Path]:
    """All annexes of a data file, and of those that were there before it."""
    pattern = re.compile(re.escape(path.name) + r"\.annex-[0-9a-f]{16}")
    return [found for found in path.parent.iterdir() if pattern.fullmatch(found.name)]


class Deadlines:
    """The annex of a copy that is being made."""

    def __init__(self) -> None:
        self._now = 0  # the system's time, in milliseconds, at which the copy was begun
        self._texts: list[bytes] = []
        self._size = 0

    def add(self, part: Part) -> None:
        """Have those of a further part, which are reckoned from when the first came."""
        self._now = self._now or _now_ms()
        if part.ttls:
            # A part of this millisecond is over, and no key is to be gone before its time
            expires = {key: self._now + 1 + ttl_ms for key, ttl_ms in part.ttls.items()}
            text = annex.deadlines(expires, self._size)
            self._texts.append(text)
            self._size += len(text)

    def put_beside(self, path: Path, digest: str) -> Path | None:
        """Have it on disk, as that of the data file of this digest; its path.

        None if no key expires: then there is none. SaveFailed.
        """
        place = path.with_name(annex.name_of(path.name, digest))
        if not self._texts:
            place.unlink(missing_ok=True)  # of an equal file that was here once
            return None
        clock = {"boot": "", "ahead_ns": 0, "now": self._now}
        with writing(str(place)) as file:
            file.writelines(self._texts)
            file.write(annex.ending(digest, {"fence": 0, "locks": []}, clock, self._size))
        return place


def with_deadlines(entries: Iterable[Entry], path: Path) -> Iterator[Entry]:
    """The entries of the data file at `path`, those that expire with what is left of their time.

    Of those that have expired that is a millisecond. InvalidValue if the annex is damaged.
    """
    expires = _read(path) if beside(path) else {}
    if not expires:
        yield from entries
        return
    now = _now_ms()
    for entry in entries:
        at = expires.get(entry.key)
        yield entry if at is None else replace(entry, ttl_ms=max(1, at - 1 - now))


def _read(path: Path) -> dict[bytes, int]:
    """The times at which keys, as JSON text, expire."""
    with path.open("rb") as data:
        digest = hashlib.file_digest(data, "sha256").hexdigest()
    place = path.with_name(annex.name_of(path.name, digest))
    expires: dict[bytes, int] = {}
    if not place.exists():  # those are of other files
        return expires
    size = 0
    record = None
    with place.open("rb") as file:
        for line in file:
            record = decode(line, annex.NUMBER, size)
            if record is None:
                break
            for key, at in record.get("expires", {}).items():
                expires[orjson.dumps(key)] = at
            size += len(line)
    if record is None or "annex" not in record:
        raise InvalidValue(
            f"{place}, which tells when keys of {path} expire, is damaged at byte {size:,}; "
            "nothing was changed. Without it they do not expire"
        )
    return expires


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
