"""What the snapshot and the journal ask of the disk, with the name of the step that failed."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType


class DiskError(Exception):
    """A step on the way to the disk failed; the text names it and tells why."""

    def __init__(self, step: str, error: OSError) -> None:
        super().__init__(f"{step} failed: {error.strerror or error}")
        self.errno = error.errno
        self.leaves_traces = False
        """Whether what could not be made durable may still be found by the next start."""


class step:  # noqa: N801 - read as a statement; a class, since it stands in the way of each write
    """Turn an OSError within into a DiskError that names the step."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(exc, OSError):
            raise DiskError(self._name, exc) from exc


def write_all(file: int, data: bytes) -> None:
    """Write all of `data`: a disk that is nearly full takes a part of it before it refuses."""
    written = os.write(file, data)
    while written < len(data):
        written += os.write(file, memoryview(data)[written:])


def sync(file: int, *, data_only: bool = False) -> None:
    """Have the file on the disk. After an error nothing is known about what it holds.

    `data_only`: its times may be late, but not its length.
    """
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync alone stops at the drive's cache
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)
    elif data_only:
        os.fdatasync(file)
    else:
        os.fsync(file)


def sync_path(path: Path) -> None:
    """Have a file on the disk, or of a directory the names of the files in it."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync(file)
    finally:
        close(file)


def create(path: Path, like: Path) -> int:
    """Make a new file with the mode, and as far as may be the owner, of the file `like`."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    try:
        model = like.stat()
    except FileNotFoundError:
        return os.open(path, flags, 0o666)
    file = os.open(path, flags, 0o600)
    for owner in (model.st_uid, -1):  # only root may give files away, but to one's groups one may
        with contextlib.suppress(OSError):
            os.fchown(file, owner, model.st_gid)
            break
    try:
        os.fchmod(file, model.st_mode & 0o777)
    except OSError:
        close(file)
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    return file


def close(file: int) -> None:
    """Let go of a descriptor, which is free afterwards even where an error is told.

    What had to be on the disk was synced before, so such an error is of no interest.
    """
    with contextlib.suppress(OSError):
        os.close(file)
