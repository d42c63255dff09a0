"""Where the daemon listens: which endpoints are fit to bind, and making sure they are free.

What stands at a socket's path has to be unlinked before it is bound, and could be a regular file
or another daemon's socket. So nothing is bound that this module has not looked at under a lock.
"""

from __future__ import annotations

import contextlib
import grp
import hashlib
import ipaddress
import os
import re
import socket
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pickledbd.ownership import AlreadyOwnedError, Ownership
from pickledbd_protocol.counters import COUNTERS_SUFFIX

IPC_MAX = 107 if os.uname().sysname == "Linux" else 103
"""The longest path of a socket, in bytes (unix(7): sun_path, less its final NUL)."""

PORT_MAX = 65535

GREETING_BYTES = 64
"""How ZMTP begins, on both sides (ZeroMQ's RFC 37)."""

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - what is made there is checked to be ours alone


class CannotServe(Exception):
    """The daemon cannot serve as asked; the text is for the person who started it."""


def private_endpoint(location: Path) -> str:
    """The endpoint for `location` when none was asked for: a socket only this user reaches.

    It lies in the directory for temporary files, not beside the data (too long a path for a
    socket, a file system without sockets, other users) and not in $XDG_RUNTIME_DIR (gone when
    the user logs out, while programs that use the database may go on).
    """
    name = f"pickledbd-{os.geteuid()}/{hashlib.sha256(os.fsencode(location)).hexdigest()[:16]}.sock"
    directory = os.environ.get("TMPDIR", "")
    fits = len(os.fsencode(f"{directory}/{name}")) <= IPC_MAX and is_utf8(directory)
    if not (fits and os.path.isabs(directory) and os.path.isdir(directory)):  # noqa: PTH112, PTH117 - a str, tested
        directory = "/tmp"  # noqa: S108 - what is made there is checked below to be ours alone
    return f"ipc://{directory}/{name}"


def counters_path(endpoints: Iterable[str], *, private: bool) -> Path | None:
    """Where the counter table belongs for who reaches these endpoints; None if nobody could.

    Beside the socket, where those who may connect can read it; a private one where it stays in
    memory, since the directory for temporary files may be on a disk, whose pages now and then
    have to wait.
    """
    sockets = [each.removeprefix("ipc://") for each in endpoints if each.startswith("ipc://")]
    if not sockets:
        return None
    path = Path(sockets[0] + COUNTERS_SUFFIX)
    if private and SHARED_MEMORY.is_dir():
        directory = SHARED_MEMORY / path.parent.name
        with contextlib.suppress(CannotServe, OSError):  # somebody else's: then beside the socket
            _make_private_directory(directory)
            return directory / path.name
    return path


def is_utf8(text: str) -> bool:
    """Whether a name from the system can be told to clients: JSON has only Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def group_number(name: str) -> int:
    """The number of a group to which this user can give a socket. CannotServe if there is none."""
    try:
        number = grp.getgrnam(name).gr_gid
    except KeyError:
        raise CannotServe(f"--group {name}: there is no such group") from None
    if os.geteuid() != 0 and number not in (os.getegid(), *os.getgroups()):
        raise CannotServe(
            f"--group {name}: uid {os.geteuid()} is not in this group, and so cannot give it a "
            f"socket; run: usermod -aG {name} USER, and log in again"
        )
    return number


def _make_private_directory(directory: Path) -> None:
    """Make a directory, if it is missing, and make sure that it is this user's alone."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise CannotServe(
            f"{directory} is not a directory that only uid {os.geteuid()} can enter; "
            "remove it, or choose an endpoint with --bind"
        )


def check(endpoint: str, *, beyond_loopback: bool = False) -> None:
    """Raise CannotServe unless `endpoint` is of a kind that may be bound."""
    scheme, _, address = endpoint.partition("://")
    if scheme == "ipc":
        if not address.startswith("/") or address.endswith("/"):
            raise CannotServe(f"{endpoint}: an ipc endpoint is ipc:// and a file's absolute path")
        if not is_utf8(address):
            raise CannotServe(f"{endpoint!r}: an endpoint is written in UTF-8")
        if len(os.fsencode(address)) > IPC_MAX:
            raise CannotServe(f"{endpoint}: a socket's path ends at {IPC_MAX} bytes; use a shorter")
    elif scheme == "tcp":
        match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[0-9.]+|localhost):(\d+|\*)", address)
        if not match or (match[2] != "*" and int(match[2]) > PORT_MAX):  # libzmq would wrap it
            raise CannotServe(f"{endpoint}: a tcp endpoint is tcp://ADDRESS:PORT, in numbers")
        if not (_is_loopback(match[1]) or beyond_loopback):
            raise CannotServe(
                f"{endpoint}: without keys tcp is served on loopback only (127.0.0.1 or [::1]), "
                "since anyone who reaches the port could change the data: see --curve-key and "
                "--authorized-keys"
            )
    else:
        raise CannotServe(f"{endpoint}: an endpoint is ipc:///PATH or tcp://ADDRESS:PORT")


def place(endpoint: str) -> tuple[object, ...]:
    """Where that is, however it is written: of an endpoint that passed the `check`."""
    scheme, _, address = endpoint.partition("://")
    if scheme == "ipc":
        path = Path(address)
        return os.path.realpath(path.parent), path.name
    host, _, port = address.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.strip("[]")
    return ipaddress.ip_address(host), 0 if port == "*" else int(port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        raise CannotServe(f"{host} is not an IP address") from None


class Claim:
    """The right to bind `endpoint`, which has passed the `check`, until `release`.

    `private`: in a directory of its own, made if missing, that only this user can enter.
    `group`: the number of the group that may reach a socket's file, if not the process's.
    `read_only`: who comes there may only read.
    It has the listening socket. For ipc it holds a lock beside that, and knows the file that was
    bound, so that it can tell when somebody removed it and removes only its own.

    `passed`: a socket that listens there already, and is somebody else's to bind and to remove
    (`activation`). It is only used.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        private: bool = False,
        group: int | None = None,
        read_only: bool = False,
        passed: socket.socket | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.is_private = private
        self.read_only = read_only
        self._group = group
        if private:
            _make_private_directory(self._path.parent)
        self._lock: Ownership | None = None
        self._socket = passed
        self._passed = passed is not None
        self._bound: tuple[int, int] | None = None
        if not endpoint.startswith("ipc://"):
            return
        if self._passed:
            # Nobody needs it but clients that wait: it tells them that the daemon gets on
            with contextlib.suppress(AlreadyOwnedError, OSError):
                self._lock = Ownership(self._path)
                self._lock.announce({"pid": os.getpid(), "state": "starting"})
            return
        path = self._path
        try:
            self._lock = Ownership(path)
        except AlreadyOwnedError as taken:
            raise CannotServe(f"{endpoint} is served by another daemon, pid {taken.pid}") from None
        except OSError as error:
            raise CannotServe(f"cannot bind {endpoint}: {error.strerror} ({path.parent})") from None
        try:
            _refuse_unless_free(endpoint, path)
            self._share_lock()
        except BaseException:
            self._lock.release()
            raise
        self._lock.announce({"pid": os.getpid(), "state": "starting"})

    def announce(self, told: dict[str, Any]) -> None:
        """Tell those who find the socket, but nobody who answers there, how far the daemon is."""
        if self._lock:
            with contextlib.suppress(OSError):  # they wait, but not as long
                self._lock.announce(told)

    def _share_lock(self) -> None:
        """Have who may connect read there, too, how far a start is."""
        if self._lock and not self.is_private:
            with contextlib.suppress(OSError):  # as above
                self._lock.share(self._group)

    @property
    def is_tcp(self) -> bool:
        """Whether other machines may be at the other end."""
        return self.endpoint.startswith("tcp://")

    @property
    def is_shared(self) -> bool:
        """Whether it is a socket that other users may reach."""
        return not (self.is_private or self.is_tcp)

    @property
    def _path(self) -> Path:
        return Path(self.endpoint.removeprefix("ipc://"))

    def listen(self) -> str:
        """Have a listening socket; the endpoint as clients reach it. CannotServe."""
        if self._passed:
            return self.endpoint
        self._close()
        try:
            self._socket = self._listen_unix() if self._lock else self._listen_tcp()
        except OSError as error:
            raise CannotServe(f"cannot bind {self.endpoint}: {error.strerror}") from None
        self._socket.setblocking(False)  # libzmq accepts when there was something, which may go
        if self._lock:
            self._bound = self._found()
        else:
            host, port, *_ = self._socket.getsockname()
            self.endpoint = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
        return self.endpoint

    def _listen_unix(self) -> socket.socket:
        with contextlib.suppress(FileNotFoundError):  # what is there was looked at, and is dead
            self._path.unlink()
        listening = socket.socket(socket.AF_UNIX)
        umask = os.umask(0o117)  # its mode is to be 0660
        try:
            listening.bind(os.fspath(self._path))
            if self._group is not None:  # before anybody can connect
                os.chown(self._path, -1, self._group, follow_symlinks=False)
            listening.listen(socket.SOMAXCONN)
        except BaseException:
            listening.close()
            raise
        finally:
            os.umask(umask)
        return listening

    def _listen_tcp(self) -> socket.socket:
        address, port = place(self.endpoint)
        host = str(address)
        listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
            listening.listen(socket.SOMAXCONN)
        except BaseException:
            listening.close()
            raise
        return listening

    def hold(self) -> None:
        """Have nothing be read of who connects by tcp, until it is known who that is.

        libzmq would hang up at once on who shows no key, and then nobody knows any more.
        """
        if self._socket is not None and self.is_tcp and sys.platform == "linux":
            # Inherited by what is accepted; not so on other systems
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, GREETING_BYTES + 1)

    def fileno(self) -> int:
        """Of the listening socket; -1 if there is none."""
        return -1 if self._socket is None else self._socket.fileno()

    def lost(self) -> bool:
        """Whether somebody removed or replaced the socket since it was bound."""
        return self._bound is not None and self._found() != self._bound

    def restore(self) -> None:
        """Make the lost endpoint fit to be bound again: directory, lock and free path.

        Raises CannotServe, AlreadyOwnedError or OSError where it is not.
        """
        if self._lock:
            if self.is_private:
                _make_private_directory(self._path.parent)
            self._lock.restore()
            self._share_lock()
            _refuse_unless_free(self.endpoint, self._path)

    def release(self) -> None:
        """Listen no longer; remove the socket's file, if it is still ours, and the lock."""
        self._close()
        if self._lock:
            if self._bound and not self.lost():
                with contextlib.suppress(OSError):
                    self._path.unlink()
            self._lock.release()

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _found(self) -> tuple[int, int] | None:
        try:
            found = self._path.lstat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


def _refuse_unless_free(endpoint: str, path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise CannotServe(
            f"cannot bind {endpoint}: {path} exists and is not a socket; "
            "it was not touched: move it away or choose another endpoint"
        )
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return  # left by a daemon that was killed
        except OSError as error:
            raise CannotServe(f"cannot bind {endpoint}: {error.strerror}") from None
    raise CannotServe(f"cannot bind {endpoint}: another program listens there")
