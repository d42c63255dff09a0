"""`pickledbd --check`: what a start would find, without changing anything."""

from __future__ import annotations

import sys
from pathlib import Path

from pickledbd.expiry import deadline_of
from pickledbd.journal import find_journals
from pickledbd.ownership import AlreadyOwnedError, refuse_if_owned
from pickledbd.recovery import recover, scan
from pickledbd.snapshot import DataFile, Unreadable


def check(path: Path) -> int:
    """Read the data file and its journals and print what they hold; the exit status.

    0: a start would serve all of it. 1: it would refuse, or cut something, or they are in use.
    """

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")

    file = DataFile(path)
    try:
        refuse_if_owned(path)
        journals = find_journals(path)
        for number, journal in journals.items():
            found = scan(number, journal)
            state = "whole"
            if found.good < found.length:
                state = f"{'damaged at' if found.damaged else 'good up to'} byte {found.good:,}"
            say(f"{journal}: {found.length:,} bytes, {found.effects:,} writes, {state}")
        recovered = recover(file)
    except AlreadyOwnedError as error:
        say(f"{path} is in use by pid {error.pid}: stop that, or check a copy")
        return 1
    except Unreadable as error:
        say(f"{error}")
        return 1
    except OSError as error:
        say(f"cannot read {error.filename}: {error.strerror}")
        return 1
    for warning in recovered.warnings:
        say(warning)
    if not path.exists():
        say(f"there is no {path}: a start begins with an empty one")
    values = filter(None, recovered.table.get_many(recovered.expiring.keys()))
    expiring = sum(deadline_of(value) is not None for value in values)
    say(
        f"{path}: {file.size:,} bytes, sha256 {file.digest}; with its journal "
        f"{len(recovered.table):,} keys, of which {expiring:,} expire, "
        f"{recovered.replayed:,} changes that the file does not hold"
    )
    return 1 if recovered.cut_bytes else 0
