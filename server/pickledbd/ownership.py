"""Exclusive ownership, by flock on a file beside what is owned.

May live here: the lock and what it tells. A lock file holds one JSON object about its owner
(SPEC.md, The lock file); its content means nothing unless the flock is held. It is removed when
ownership ends, so whoever locks it checks that it is still the file at that path.
flock is for local disks: on a network file system it may hold on one machine only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Any

import orjson

from pickledbd.disk import close
from pickledbd_protocol import LOCK_SUFFIX, may_be_written, owner_told


class AlreadyOwnedError(Exception):
    """Somebody else holds the lock. `owner` is what the lock file tells of them."""

    def __init__(self, path: Path, owner: dict[str, Any]) -> None:
        super().__init__(path, owner)
        self.owner = owner

    @property
    def pid(self) -> str:
        """Its process, for a message."""
        return str(self.owner.get("pid") or "unknown")


class Ownership:
    """The held lock of `target`, at `target` + ".lock"; released by `release`."""

    def __init__(self, target: Path, inherited: int | None = None) -> None:
        """Take the lock, or take over `inherited`, the descriptor of one that a client took.

        Raises AlreadyOwnedError, or OSError if the lock file cannot be made.
        """
        self.path = target.with_name(target.name + LOCK_SUFFIX)
        self._file = -1
        self._told = b""
        self._written = True  # so far there is nothing to tell
        if inherited is not None:
            os.set_inheritable(inherited, False)
            self._file = inherited
            fcntl.flock(inherited, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._refuse_foreign(inherited)
        if not self.held():
            self._acquire()

    def _acquire(self) -> None:
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            file = os.open(self.path, flags, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._refuse_foreign(file)
            except BlockingIOError:
                owner = _read(file)
                close(file)
                raise AlreadyOwnedError(self.path, owner) from None
            except BaseException:
                close(file)
                raise
            previous, self._file = self._file, file
            if previous >= 0:
                close(previous)
            if self.held():
                return

    def held(self) -> bool:
        """Whether the locked file is still the one at the path, where others look. OSError."""
        if self._file < 0:
            return False
        try:
            return os.path.samestat(os.fstat(self._file), self.path.stat())
        except FileNotFoundError:
            return False

    def _refuse_foreign(self, file: int) -> None:
        """Raise FileExistsError if this is another program's."""
        if not may_be_written(os.pread(file, 2**16, 0)):
            raise FileExistsError(
                errno.EEXIST, "it is another program's file, and was not touched", self.path
            )

    def share(self, group: int | None) -> None:
        """Have a group read what it tells, the process's own if None, whatever the umask."""
        if group is not None:
            os.fchown(self._file, -1, group)
        os.fchmod(self._file, stat.S_IMODE(os.fstat(self._file).st_mode) | stat.S_IRGRP)

    def restore(self) -> None:
        """Take the lock anew if somebody removed its file. Raises as the constructor does."""
        if not self.held():
            self._acquire()
            self._written = False
        if not self._written:
            self._write()

    def announce(self, told: dict[str, Any]) -> None:
        """Have the lock file tell `told`."""
        self._told = orjson.dumps(told) + b"\n"
        self._write()

    def _write(self) -> None:
        # A reader that comes in between sees no JSON, or an old owner's, and asks again. Cut only
        # afterwards: on a full disk the room that it gave up would be gone.
        self._written = False
        try:
            if os.pwrite(self._file, self._told, 0) < len(self._told):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.ftruncate(self._file, len(self._told))
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(self.path)) from None
        self._written = True

    def release(self) -> None:
        """Give the lock up and remove its file."""
        with contextlib.suppress(OSError):
            if self.held():
                self.path.unlink()
        close(self._file)


def refuse_if_owned(target: Path) -> None:
    """Raise AlreadyOwnedError if somebody owns `target`. Makes no file."""
    path = target.with_name(target.name + LOCK_SUFFIX)
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise AlreadyOwnedError(path, _read(file)) from None
    finally:
        close(file)


def _read(file: int) -> dict[str, Any]:
    try:
        return owner_told(os.pread(file, 2**16, 0))
    except OSError:
        return {}
