"""`pickledbctl backup`: a database as it is at one moment, as the files that a daemon opens.

The data file is as an export writes it, and what it cannot hold, when keys expire, stands in the
annex beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from pickledbd_client.annexes import Deadlines, beside
from pickledbd_client.ctl_commands import DONE
from pickledbd_client.ctl_transfer import interrupted, share_of
from pickledbd_client.formats import as_json
from pickledbd_client.outfile import writing
from pickledbd_client.progress import Progress
from pickledbd_client.raw import Part, RawPickleDB
from pickledbd_protocol import SaveFailed


def backup(db: RawPickleDB, options: argparse.Namespace) -> int:
    """Write the copy and, if keys expire, its annex, which is there before it."""
    target: str = options.path
    if Path(target).exists() and not Path(target).is_file():
        raise SaveFailed(f"{target} is no file, which a backup is; name another path")
    path = Path(os.path.realpath(target))
    deadlines = Deadlines()
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
                own = deadlines.put_beside(path, digest.hexdigest())
        except BaseException:
            if own is not None:
                own.unlink(missing_ok=True)
            raise
    for old in beside(path):
        if old != own:
            with contextlib.suppress(OSError):  # of what the copy has replaced; it does no harm
                old.unlink()
    if not db.keeps_ttls:
        print(
            "pickledbctl: this daemon does not tell when keys expire: in the copy none does",
            file=sys.stderr,
        )
    return DONE
