"""Files that a command writes for its user: whole ones, or none.

May live here: the steps to the disk of the client's side. A file is written beside its place under
another name, synced, and put there, as the daemon does with its data file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pickledbd_protocol import LOCK_SUFFIX, PickleDBError, SaveFailed

_OWN = re.compile(r"(.+)\.(?:lock|counters|journal\.\d+|annex-[0-9a-f]+)", re.DOTALL)
"""What a daemon calls its files: after that whose they are."""


@contextlib.contextmanager
def writing(target: str, *, force: bool = True) -> Iterator[BinaryIO]:
    """A file to write to, which is at `target` and on disk once the block has ended well.

    Else what was there is as it was. What is no regular file, as a device or a pipe, is written to
    as it is. `force` False: SaveFailed if there is a file; and so it is where something fails, or
    where a daemon's database is, or a file of one's.
    """
    path = Path(target)
    with _telling(target):
        if path.exists() and not (path.is_file() or path.is_dir()):
            with path.open("wb") as file:
                yield file
            return
        path = Path(os.path.realpath(path))
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        _refuse_database(path)
        if not force and path.exists():
            raise SaveFailed(f"{target} is there already; --force has it replaced")
        temporary = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            with open(os.open(temporary, flags, 0o666), "wb") as file:  # noqa: PTH123 - a descriptor
                yield file
                file.flush()
                os.fsync(file.fileno())
            if force:
                temporary.rename(path)
            else:
                _put_new(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Have on disk which names are in it."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _put_new(temporary: Path, path: Path) -> None:
    """Rename it, where nobody else has put a file meanwhile."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise SaveFailed(f"{path} is there already; --force has it replaced") from None
    except OSError:  # no hard links here
        temporary.rename(path)
    else:
        temporary.unlink()


def _refuse_database(path: Path) -> None:
    """SaveFailed if it is one that a daemon has its files beside, or is one of these files."""
    own = _OWN.fullmatch(path.name)
    name = own[1] if own else path.name
    beside = path.with_name(name + LOCK_SUFFIX)
    journals = sorted(path.parent.glob(f"{_escaped(name)}.journal.*"))
    for found in [*([beside] if beside.exists() else []), *journals]:
        what = "is of" if own else "is"
        raise SaveFailed(
            f"{path} {what} a daemon's database ({found.name} is there) and was not touched; "
            "name another file"
        )


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


@contextlib.contextmanager
def _telling(target: str) -> Iterator[None]:
    """Have it said which file cannot be written."""
    try:
        yield
    except (PickleDBError, BrokenPipeError):
        raise
    except OSError as error:
        raise SaveFailed(f"cannot write {target}: {error.strerror or error}") from None
