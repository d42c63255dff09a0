"""The annex: a file beside the data file that holds what plain JSON cannot.

May live here: that file, `NAME.annex-DIGEST`, after the first digits of the digest of the data file
that it belongs to. It holds when keys expire, and ends with the fencing counter, the locks that
were held and the clock (SPEC.md, The annex). It is on disk before the journal is told of that
data file, and removed after the next one is in its place; so each data file finds its own or, where
that would tell nothing, none.

Methods block; one runs at a time.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pickledbd.disk import close, create, step, sync, write_all
from pickledbd_protocol.annex import FORMAT, NUMBER, deadlines, ending, name_of
from pickledbd_protocol.records import decode


@dataclass
class Annex:
    """What an annex tells, if there is one."""

    expires: dict[str, int] = field(default_factory=dict)
    """Deadlines of keys, in milliseconds of the daemon's clock."""
    locks: dict[str, Any] = field(default_factory=lambda: {"fence": 0, "locks": []})
    """As Locks told."""
    clock: dict[str, Any] | None = None
    """As the clock told."""
    strange: list[Path] = field(default_factory=list)
    """Annexes of other data files, of which only `fence` and `clock` are taken."""


class DamagedError(Exception):
    """An annex cannot be read."""


def find(data: Path) -> list[Path]:
    """All annexes beside the data file."""
    pattern = re.compile(re.escape(data.name) + r"\.annex-[0-9a-f]{16}")
    return sorted(path for path in data.parent.iterdir() if pattern.fullmatch(path.name))


def read(data: Path, digest: str, progress: Callable[[str, int], None]) -> Annex:
    """What the annex of the data file of this digest tells. DamagedError, OSError.

    `progress` is called with the name of an annex and the bytes of it read so far.
    """
    found = Annex()
    own = _path(data, digest)
    for path in find(data):
        expires, last = _read(path, progress)
        fence, clock = last["fence"], last["clock"]
        if path == own and last["base"] == digest:
            found.expires = expires
            found.locks["locks"] = last["locks"]
        else:
            found.strange.append(path)
        found.locks["fence"] = max(found.locks["fence"], fence)
        if found.clock is None or found.clock["now"] < clock["now"]:
            found.clock = clock
    return found


def _read(
    path: Path, progress: Callable[[str, int], None]
) -> tuple[dict[str, int], dict[str, Any]]:
    expires: dict[str, int] = {}
    place = 0
    last: dict[str, Any] = {}
    with path.open("rb") as file:
        for line in file:
            record = decode(line, NUMBER, place)
            if record is None or last:
                raise DamagedError(f"{path} is damaged at byte {place:,}")
            if "annex" in record:
                last = record
            else:
                expires.update(record["expires"])
            place += len(line)
            progress(path.name, place)
    if not last:
        raise DamagedError(f"{path} is damaged: its end is missing")
    if last["annex"] != FORMAT:
        raise DamagedError(f"{path} is of format {last['annex']}, this release reads {FORMAT}")
    return expires, last


class Writing:
    """An annex on its way to the disk, if there turns out to be something to tell."""

    def __init__(self, data: Path, temporary: Path) -> None:
        self._data = data
        self._temporary = temporary
        self._file = -1
        self._size = 0
        self._path: Path | None = None  # once it is in its place
        self._is_new = False

    def add(self, expires: Mapping[str, int]) -> None:
        """Write some deadlines. DiskError."""
        self._write(deadlines(expires, self._size))

    def finish(self, digest: str, locks: Mapping[str, Any], clock: Mapping[str, Any]) -> bool:
        """Put it in its place, as that of the data file of this digest; whether there is one.

        Its name is to be synced. If there is one already, this takes its place: it may tell that
        nothing expires any more. DiskError.
        """
        path = _path(self._data, digest)
        with step("looking for an annex"):
            replaces = path.exists()
        if self._file < 0 and not locks["fence"] and not replaces:
            return False
        self._write(ending(digest, locks, clock, self._size))
        with step("fsync of the annex"):
            sync(self._file)
        with step("renaming the annex"):
            self._temporary.rename(path)
        self._close()
        self._path, self._is_new = path, not replaces
        return True

    def drop_others(self) -> None:
        """Remove the annexes of data files that are no more."""
        with contextlib.suppress(OSError):  # they do no harm
            for path in find(self._data):
                if path != self._path:
                    path.unlink()

    def give_up(self) -> None:
        """Remove what is there of it, for a data file that will not be."""
        if self._file >= 0:
            self._close()
            with contextlib.suppress(OSError):
                self._temporary.unlink()
        elif self._path is not None and self._is_new:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _write(self, line: bytes) -> None:
        if self._file < 0:
            with step("creating the annex"):
                self._file = create(self._temporary, self._data)
        with step("writing the annex"):
            write_all(self._file, line)
        self._size += len(line)

    def _close(self) -> None:
        close(self._file)
        self._file = -1


def _path(data: Path, digest: str) -> Path:
    return data.with_name(name_of(data.name, digest))
