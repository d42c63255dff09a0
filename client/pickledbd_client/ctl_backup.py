"""`pickledbctl backup`: a database as it is at one moment, as the files that a daemon opens.

The data file is as an export writes it. What it cannot hold, when keys expire, stands in the annex
beside it, as the daemon itself writes one (SPEC.md, The data file). Times are the system's: a
daemon that is started on the copy begins with just these.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pickledbd_client.ctl_commands import DONE
from pickledbd_client.ctl_transfer import interrupted, share_of
from pickledbd_client.formats import as_json
from pickledbd_client.outfile import writing
from pickledbd_client.progress import Progress
from pickledbd_client.raw import Part, RawPickleDB
from pickledbd_protocol import SaveFailed, annex


def backup(db: RawPickleDB, options: argparse.Namespace) -> int:
    """Write the copy and, if keys expire, its annex, which is there before it."""
    target: str = options.path
    if Path(target).exists() and not Path(target).is_file():
        raise SaveFailed(f"{target} is no file, which a backup is; name another path")
    path = Path(os.path.realpath(target))
    deadlines = _Deadlines()
    digest = hashlib.sha256(usedforsecurity=False)
    own: Path | None = None
    with (
        interrupted("there is no backup"),
        Progress("copying", "copied", asked=options.progress, share=share_of(db)) as progress,
    ):

        def parts() -> Iterator[Part]:
            for part in db.dumped():
                deadlines.add(part)
                yield part
                progress.add(len(part.items))

        try:
            with writing(target, force=options.force) as file:
                for text in as_json(parts()):
                    file.write(text)
                    digest.update(text)
                own = _put_annex(path, digest.hexdigest(), deadlines)
        except BaseException:
            if own is not None:
                own.unlink(missing_ok=True)
            raise
    for old in _annexes(path):
        if old != own:
            with contextlib.suppress(OSError):  # of what the copy has replaced; it does no harm
                old.unlink()
    if not db.keeps_ttls:
        print(
            "pickledbctl: this daemon does not tell when keys expire: in the copy none does",
            file=sys.stderr,
        )
    return DONE


class _Deadlines:
    """The records of an annex."""

    def __init__(self) -> None:
        self.now = 0
        """The system's time, in milliseconds, at which the copy was begun."""
        self._texts: list[bytes] = []
        self._size = 0

    def add(self, part: Part) -> None:
        """Have those of a further part, which are reckoned from when the first came."""
        self.now = self.now or time.time_ns() // 1_000_000
        if part.ttls:
            # A part of this millisecond is over, and no key is to be gone before its time
            expires = {key: self.now + 1 + ttl_ms for key, ttl_ms in part.ttls.items()}
            text = annex.deadlines(expires, self._size)
            self._texts.append(text)
            self._size += len(text)

    def texts(self, digest: str) -> list[bytes]:
        """All of the annex; nothing if no key expires."""
        if not self._texts:
            return []
        clock = {"boot": "", "ahead_ns": 0, "now": self.now}
        return [*self._texts, annex.ending(digest, {"fence": 0, "locks": []}, clock, self._size)]


def _put_annex(path: Path, digest: str, deadlines: _Deadlines) -> Path | None:
    """Have the annex of this data file on disk, or none of it; its path."""
    place = path.with_name(annex.name_of(path.name, digest))
    texts = deadlines.texts(digest)
    if not texts:
        place.unlink(missing_ok=True)  # of an equal file that was here once
        return None
    with writing(str(place)) as file:
        file.writelines(texts)
    return place


def _annexes(path: Path) -> list[Path]:
    pattern = re.compile(re.escape(path.name) + r"\.annex-[0-9a-f]{16}")
    return [found for found in path.parent.iterdir() if pattern.fullmatch(found.name)]
