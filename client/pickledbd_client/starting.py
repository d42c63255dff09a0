"""Starting the daemon of a path, by whoever finds the path's lock free.

It takes the lock and hands it to the daemon, so of many clients in the same instant one starts a
daemon. The daemon belongs to nobody: neither the end of its starter nor Ctrl+C at its terminal
ends it. Descriptors made here must not live on in a fork of another thread's: a copy of the lock
would keep the path locked, a copy of the pipe would keep the daemon's last word from being read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from pickledbd_protocol import (
    BEING_STARTED,
    LOCK_SUFFIX,
    NotAllowed,
    Unavailable,
    may_be_written,
)

IDLE_EXIT = 30.0
"""Seconds without a client after which a daemon started here ends ($PICKLEDBD_IDLE_EXIT)."""

STARTS_MAX = 10
"""How many daemons may be killed one after the other while they start."""

_making = threading.RLock()  # held while a descriptor is made and noted, and during a fork
_made: set[int] = set()


def _in_child() -> None:
    while _made:
        with contextlib.suppress(OSError):
            os.close(_made.pop())
    _making.release()


os.register_at_fork(
    before=_making.acquire, after_in_parent=_making.release, after_in_child=_in_child
)


def _close(descriptor: int) -> None:
    with _making:
        if descriptor in _made:  # not in a fork, which has closed its copy
            _made.discard(descriptor)
            os.close(descriptor)


def lock_path(path: Path) -> Path:
    """The lock file of the data at `path`."""
    return path.with_name(path.name + LOCK_SUFFIX)


def is_free(path: Path) -> bool:
    """Whether nobody owns `path`, whatever its lock file tells."""
    try:
        with lock_path(path).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


class Starter:
    """Has a daemon for `path` started by whoever comes first, until one serves."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started: Started | None = None
        self._killed = 0

    def go_on(self) -> bool:
        """Start one if nobody does, or look after the one that was; to be called again and again.

        Whether it started one just now. Unavailable if that does not start; if it was killed only
        after STARTS_MAX of them.
        """
        if self._started is None:
            with _lock(self._path) as lock:
                self._started = None if lock is None else Started(self._path, lock)
            return self._started is not None
        try:
            if self._started.is_starting():
                return False
        except EndedError:
            self._killed += 1
            if self._killed == STARTS_MAX:
                raise Unavailable(
                    f"the daemon for {self._path} was killed {STARTS_MAX} times while it started"
                ) from None
        self._started = None
        return False


class EndedError(Exception):
    """A daemon ended before it served, and said nothing: it was killed."""


class Started:
    """A daemon started here."""

    def __init__(self, path: Path, lock: int) -> None:
        self._path = path
        self._output = b""
        self._pipe = theirs = -1
        try:
            with _making:
                self._pipe, theirs = os.pipe()
                _made.update((self._pipe, theirs))
            os.set_blocking(self._pipe, False)
            _spawn(path, lock, theirs)
        except OSError as error:
            raise Unavailable(f"cannot start a daemon for {path}: {error}") from None
        finally:
            _close(theirs)

    def is_starting(self) -> bool:
        """False once it serves. If it ended before: Unavailable, with what it said, or EndedError.

        It says only why it cannot serve, since the log of a daemon started here goes nowhere.
        """
        while True:
            try:
                chunk = os.read(self._pipe, 2**16)
            except BlockingIOError:
                return True
            if not chunk:
                break
            self._output += chunk
        lines = self._output.decode(errors="replace").strip().splitlines()
        if any(line.startswith("pickledbd: serving ") for line in lines):
            return False
        if not lines:
            raise EndedError
        said = lines[-1].strip().removeprefix("pickledbd: ")
        raise Unavailable(f"the daemon for {self._path} did not start: {said}")

    def __del__(self) -> None:
        _close(self._pipe)


def _spawn(path: Path, lock: int, output: int) -> None:
    """Run the daemon, detached. Not by subprocess, which would wait for forks made meanwhile."""
    its_lock = max(lock, output) + 1  # none of the descriptors that are still to be copied
    idle_exit = os.environ.get("PICKLEDBD_IDLE_EXIT", str(IDLE_EXIT))
    # -P: what lies in the current directory is not to be imported
    command = [_python(), "-P", "-m", "pickledbd", os.fspath(path), "--detach"]
    command += ["--idle-exit", idle_exit, "--lock-fd", str(its_lock)]
    pid = os.posix_spawn(
        command[0],
        command,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, lock, its_lock),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        ],
        setsigmask=[],
        setpgroup=0,  # until it has a session of its own: Ctrl+C is for its starter alone
    )
    with contextlib.suppress(ChildProcessError):  # where SIGCHLD is ignored
        os.waitpid(pid, 0)  # it leaves at once a child of its own, the daemon


def _python() -> str:
    """The interpreter that has pickledbd installed; in an embedding program not sys.executable."""
    if "python" in Path(sys.executable or "").name.lower():
        return sys.executable
    return os.fspath(Path(sys.prefix) / "bin" / "python3")


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[int | None]:
    """The locked lock file's descriptor, or None if somebody else holds it; closed at the end."""
    lock_file = lock_path(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with _making:
            file = os.open(lock_file, flags, 0o644)
            _made.add(file)
    except PermissionError as error:
        raise NotAllowed(f"cannot serve {path}: {error.strerror} ({lock_file})") from None
    except OSError as error:
        raise Unavailable(f"cannot serve {path}: {error.strerror} ({lock_file})") from None
    try:
        yield file if _is_locked(file, lock_file) else None
    finally:
        _close(file)


def _is_locked(file: int, lock_file: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The file may have been removed by an owner that ended since it was opened.
        if not os.path.samestat(os.fstat(file), lock_file.stat()):
            return False
    except (BlockingIOError, FileNotFoundError):
        return False
    # What an owner that was killed told is no longer true. What no owner told is another
    # program's file, and is the daemon's to refuse. Not cut: on a full disk the room that it has
    # may be all that there is for what the next owner tells.
    if may_be_written(os.pread(file, 2**16, 0)):
        with contextlib.suppress(OSError):  # a full disk is the daemon's to tell
            os.pwrite(file, BEING_STARTED.ljust(os.fstat(file).st_size), 0)
    return True
