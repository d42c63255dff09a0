"""The counter table: shared memory that tells clients which of the values they hold are current.

May live here: the file, its mapping, and the robust mutex in it. SPEC.md, The counter table, is
its prose. Each change of a key gives the key's slot a number that there never was before; the
store does that at the change itself, so it is done before anybody is answered.

The mutex is the lease. The loop's thread holds it as long as the daemon lives; when the thread
dies, in whatever way, the kernel marks it (set_robust_list(2)), and does so before it lets go of
the lock on the data file. So whoever serves next finds no client that still trusts this table,
even if its file was removed: nobody has to wait for a time to run out, and while a daemon is
merely stopped, its clients read on. Other systems than Linux know no such mutexes for all
processes, and have no table.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import logging
import mmap
import os
import secrets
import sys
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pickledbd_protocol import counters as layout

log = logging.getLogger(__name__)

PROCESS_SHARED = 1  # PTHREAD_PROCESS_SHARED of <pthread.h>, in glibc and musl
ROBUST = 1  # PTHREAD_MUTEX_ROBUST
MUTEX_ATTR_BYTES = 64  # more than any pthread_mutexattr_t
MARK = 0x40  # the highest byte of FUTEX_OWNER_DIED of <linux/futex.h>
MARKED_BYTE = 3 if sys.byteorder == "little" else 0  # where in a word that byte is

MANY = layout.SLOTS // 16
"""Keys from which on it is quicker to renew every slot than that of each."""

_MASK = layout.SLOTS - 1


class Counters:
    """One number a slot. Until a table is shared, or where it can't be, nobody else sees them."""

    def __init__(self) -> None:
        self.told: dict[str, Any] | None = None
        """What clients are told of the table (SPEC.md); None if there is none."""
        self._place: Callable[[], Path | None] = lambda: None
        self._sweeps = False
        self._group: int | None = None
        self._failure: str | None = None
        self._path: Path
        self._file: os.stat_result
        self._lease: _Lease | None = None  # and only with one, the two above
        self._words: Any = array("Q", bytes(layout.TABLE_BYTES))
        self._number = 0  # the highest that was given so far

    # For the store

    def changed(self, key: str) -> None:
        """Nobody may take a value that he holds of `key` for current any more."""
        self._number = number = self._number + 1
        self._words[layout.FIRST_SLOT + (hash(key) & _MASK)] = number

    def changed_many(self, keys: Iterable[str], count: int) -> None:
        """The same for `count` keys at once."""
        if count >= MANY:
            self.all_changed()
            return
        self._number = number = self._number + 1
        words, first = self._words, layout.FIRST_SLOT
        for key in keys:
            words[first + (hash(key) & _MASK)] = number

    def all_changed(self) -> None:
        """The same for every key."""
        self._number += 1
        self._words[layout.FIRST_SLOT :] = array("Q", [self._number]) * layout.SLOTS

    def of(self, key: str) -> bytes:
        """Members of an answer that tell the slot of `key` and its number; none without a table."""
        if self.told is None:
            return b""
        slot = layout.FIRST_SLOT + (hash(key) & _MASK)
        return b'"slot":%d,"count":%d' % (slot, self._words[slot])

    # For the loop

    def share(
        self,
        place: Callable[[], Path | None],
        *,
        sweep: bool = False,
        group: int | None = None,
    ) -> None:
        """Have the table at the path that `place` tells, instead of what may stand there.

        To be called in the thread that serves, before it does. Without a path nobody could read
        it. Where it cannot be made, that is logged, and tried again by `keep_up`. `sweep`: its
        directory is this user's alone, and tables of killed daemons there are to be removed.
        `group`: of those who may read it, if not the process's.
        """
        self._place = place
        self._sweeps = sweep
        self._group = group
        if not sys.platform.startswith("linux"):
            return
        path = place()
        if path is None:
            return
        try:
            self._share(path)
        except OSError as error:
            self.end()
            failure = f"no table at {path}: {error.strerror}"
            if failure != self._failure:
                told = {"event": "no_counters"}
                log.warning("clients cannot keep values at hand: %s", failure, extra=told)
            self._failure = failure
        else:
            self._failure = None

    def _share(self, path: Path) -> None:
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        file = os.open(temporary, flags, 0o600)
        try:
            if self._group is not None:
                os.fchown(file, -1, self._group)
            os.fchmod(file, 0o640)  # as the socket: for the group too, whatever the umask
            # Else a full file system would end the daemon, at the first write to a page
            os.posix_fallocate(file, 0, layout.TABLE_BYTES)
            shared = mmap.mmap(file, layout.TABLE_BYTES)
            table_id = secrets.token_bytes(layout.ID_BYTES)
            shared[layout.MAGIC_AT : layout.ID_AT] = layout.MAGIC
            shared[layout.ID_AT : layout.ID_AT + layout.ID_BYTES] = table_id
            self._file = os.fstat(file)
            self._lease = lease = _Lease(shared)
            self._words = memoryview(shared).cast("Q")
            # At its end the interpreter frees the mapping, where the kernel would leave its mark
            atexit.register(self.end)
            _end_lease_of(path, lease.place)
            temporary.rename(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        finally:
            os.close(file)
        self._path = path
        self.all_changed()  # nor are its numbers those of another table
        self.told = {
            "path": os.fspath(path),
            "file": [self._file.st_dev, self._file.st_ino],
            "id": table_id.hex(),
            "lease_at": lease.place,
        }
        if self._sweeps:
            with contextlib.suppress(OSError):
                _sweep(path.parent, lease.place)

    def keep_up(self) -> None:
        """Have a table where new clients look for it, if somebody removed or replaced its file.

        Who has the old one mapped is told by its lease that it does not count any more.
        """
        if self._lease is not None and self._in_place():
            return
        if self._lease is not None:
            told = {"event": "counters_removed", "path": str(self._path)}
            log.warning("%s was removed; making it again", self._path, extra=told)
            self.end()
        self.share(self._place, sweep=self._sweeps, group=self._group)

    def end(self) -> None:
        """Have nobody trust the table any more."""
        lease, self._lease = self._lease, None
        if lease is not None:
            atexit.unregister(self.end)
            self.all_changed()
            lease.end()
            self._words = array("Q", bytes(layout.TABLE_BYTES))
        self.told = None

    def close(self) -> None:
        """End it, and remove its file."""
        if self._lease is not None and self._in_place():
            with contextlib.suppress(OSError):
                self._path.unlink()
        self.end()

    def _in_place(self) -> bool:
        try:
            return os.path.samestat(self._path.lstat(), self._file)
        except OSError:
            return False


class _Lease:
    """A mutex at the beginning of a mapping, locked until the thread that made it dies."""

    def __init__(self, shared: mmap.mmap) -> None:
        self._libc = ctypes.CDLL(None)
        self._mutex = ctypes.byref(ctypes.c_char.from_buffer(shared))  # which keeps it mapped
        attributes = ctypes.create_string_buffer(MUTEX_ATTR_BYTES)
        self._call("mutexattr_init", attributes)
        self._call("mutexattr_setpshared", attributes, PROCESS_SHARED)
        self._call("mutexattr_setrobust", attributes, ROBUST)
        self._call("mutex_init", self._mutex, attributes)
        before = shared[: layout.MUTEX_BYTES]
        self._call("mutex_lock", self._mutex)
        self._shared = shared
        self.place = self._mark(before)

    def _mark(self, before: bytes) -> int:
        """Which byte of the mutex, which was `before` unlocked, the kernel marks at the death.

        Libraries differ in the place of the word; but by the kernel's rules it holds the thread's
        number, which leaves the byte of the mark 0 (PID_MAX_LIMIT of <linux/threads.h> is 2**22).
        """
        words = memoryview(self._shared)[: layout.MUTEX_BYTES].cast("I")
        unlocked = memoryview(before).cast("I")
        for index, word in enumerate(words):
            if word == threading.get_native_id() and not unlocked[index]:
                return index * words.itemsize + MARKED_BYTE
        self._call("mutex_unlock", self._mutex)
        raise OSError(errno.ENOTSUP, "a mutex of this system does not tell its thread")

    def end(self) -> None:
        """Unlock and mark it, which are two steps: no counter may be relied on any more."""
        self._call("mutex_unlock", self._mutex)
        self._shared[self.place] = MARK

    def _call(self, name: str, *args: Any) -> None:
        error = getattr(self._libc, f"pthread_{name}")(*args)
        if error:
            raise OSError(error, os.strerror(error))


def _end_lease_of(path: Path, place: int) -> None:
    """End the lease of a table that a daemon before left, as the kernel should have done.

    What the kernel does leaves a mutex whole, should its daemon be alive, and the table moved here.
    """
    with contextlib.suppress(OSError), _opened(path, os.O_RDWR) as file:
        if _is_table(file):
            os.pwrite(file, bytes([MARK]), place)


def _sweep(directory: Path, place: int) -> None:
    """Remove the tables whose lease has ended: nobody but a daemon of the same file would.

    Should that daemon be starting, it finds its new table removed, and makes another (`keep_up`).
    What was never locked, or not marked in time, stays until that daemon comes.
    """
    for path in directory.iterdir():
        with contextlib.suppress(OSError), _opened(path, os.O_RDONLY) as file:
            if _is_table(file) and os.pread(file, 1, place) == bytes([MARK]):
                path.unlink()


@contextlib.contextmanager
def _opened(path: Path, access: int) -> Iterator[int]:
    """OSError if there is none, or it is something else."""
    file = os.open(path, access | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        yield file
    finally:
        os.close(file)


def _is_table(file: int) -> bool:
    return os.pread(file, len(layout.MAGIC), layout.MAGIC_AT) == layout.MAGIC
