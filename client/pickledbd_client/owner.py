"""From a path to the endpoint of the daemon that owns it, starting one if there is none.

The lock file beside the data tells who owns it (SPEC.md, The lock file). Who finds it unlocked
takes the lock and hands it to the daemon it starts, so of many clients in the same instant one
starts a daemon and the others wait for that one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import orjson

from pickledbd_client.channel import Deadline, NobodyThereError
from pickledbd_protocol import NotAllowed, Unavailable

T = TypeVar("T")

IDLE_EXIT = 30.0
"""Seconds without a client after which a daemon started here ends ($PICKLEDBD_IDLE_EXIT)."""

STARTING_SECONDS = 60.0
"""How long a starting daemon may take without any sign of progress."""

_RETRY_SECONDS = 0.02

_lock_files: set[int] = set()  # held while starting a daemon; a fork's copy would keep the lock


def _forget_locks() -> None:
    for file in _lock_files:
        with contextlib.suppress(OSError):
            os.close(file)
    _lock_files.clear()


os.register_at_fork(after_in_child=_forget_locks)


def reach_owner(
    path: Path,
    connect: Callable[[str, Deadline], T],
    *,
    deadline: Deadline,
    autostart: bool,
    patient: bool,
) -> T:
    """`connect(endpoint, deadline)` for the endpoint of the daemon that owns `path`.

    `connect` raises NobodyThereError where nobody listens. `patient`: a daemon that is loading
    its file is waited for beyond the deadline, as long as it gets on. Unavailable or NotAllowed
    if nobody can be reached.
    """
    started: _Started | None = None
    seen: dict[str, Any] = {}
    while True:
        told = _read(path)
        if patient and deadline is not None and told != seen and told.get("state") in _STARTING:
            deadline = max(deadline, time.monotonic() + STARTING_SECONDS)
        seen = told
        problem = _problem(told)
        for endpoint in told.get("endpoints", ()):
            try:
                return connect(endpoint, deadline)
            except NobodyThereError as error:
                if error.forbidden:
                    raise NotAllowed(
                        f"not allowed to connect to {endpoint}, where pid {told.get('pid')} "
                        f"serves {path}: ask its user for an endpoint that you may use"
                    ) from None
                problem = f"pid {told.get('pid')} does not answer at {endpoint}: {error.why}"
        if started:
            started.check()
        elif autostart:
            lock = _try_lock(path)
            started = None if lock is None else _Started(path, lock)
        elif told.get("state") not in _STARTING:
            raise Unavailable(f"cannot reach {path}: {problem}, and autostart is off")
        if deadline is not None and time.monotonic() > deadline:
            raise Unavailable(f"cannot reach {path}: {problem}")
        time.sleep(_RETRY_SECONDS)


_STARTING = ("starting", "loading")


def _problem(told: dict[str, Any]) -> str:
    if told.get("state") in _STARTING:
        done = f", {told['bytes']:,} bytes so far" if "bytes" in told else ""
        return f"pid {told.get('pid')} is still loading it{done}"
    return "nobody serves it"


class _Started:
    """A daemon started here, until it serves or tells why not."""

    def __init__(self, path: Path, lock: int) -> None:
        idle_exit = os.environ.get("PICKLEDBD_IDLE_EXIT", str(IDLE_EXIT))
        command = [_python(), "-m", "pickledbd", os.fspath(path), "--detach"]
        command += ["--idle-exit", idle_exit, "--lock-fd", str(lock)]
        self._path = path
        self._output = b""
        self._pipe, theirs = os.pipe()
        os.set_blocking(self._pipe, False)
        try:
            # Its parent exits at once and it gets a session of its own, so that neither the
            # end of this process nor Ctrl+C at its terminal ends it.
            process = subprocess.Popen(  # noqa: S603 - our own module, and a path as one argument
                command,
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                cwd="/",
                pass_fds=(lock,),
                start_new_session=True,
            )
        except OSError as error:
            os.close(self._pipe)
            raise Unavailable(f"cannot start a daemon for {path}: {error}") from None
        finally:
            os.close(theirs)
            _lock_files.discard(lock)
            os.close(lock)
        process.wait()

    def check(self) -> None:
        """Raise Unavailable if it ended without having served, with what it said."""
        while True:
            try:
                chunk = os.read(self._pipe, 2**16)
            except BlockingIOError:
                return  # it is still starting
            if not chunk:
                break
            self._output += chunk
        lines = self._output.decode(errors="replace").strip().splitlines()
        if not any(line.startswith("pickledbd: serving ") for line in lines):
            said = lines[-1].removeprefix("pickledbd: ") if lines else "it said nothing"
            raise Unavailable(f"the daemon for {self._path} did not start: {said}")

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._pipe)


def _python() -> str:
    """The interpreter that has pickledbd installed; in an embedding program not sys.executable."""
    if "python" in Path(sys.executable or "").name.lower():
        return sys.executable
    return os.fspath(Path(sys.prefix) / "bin" / "python3")


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _read(path: Path) -> dict[str, Any]:
    """What the lock file tells; {} if there is none, or while it is being written."""
    try:
        told = orjson.loads(_lock_path(path).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return told if isinstance(told, dict) else {}


def _try_lock(path: Path) -> int | None:
    """The locked lock file's descriptor, or None if somebody else holds it."""
    lock_path = _lock_path(path)
    try:
        file = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except PermissionError as error:
        raise NotAllowed(f"cannot serve {path}: {error.strerror} ({lock_path})") from None
    except OSError as error:
        raise Unavailable(f"cannot serve {path}: {error.strerror} ({lock_path})") from None
    _lock_files.add(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The file may have been removed by an owner that ended since it was opened.
        if os.path.samestat(os.fstat(file), lock_path.stat()):
            os.ftruncate(file, 0)  # what an owner that was killed told is no longer true
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    _lock_files.discard(file)
    os.close(file)
    return None
