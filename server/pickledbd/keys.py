"""CURVE keys: the daemon's own, and those of the clients that may come by tcp.

May live here: reading certificates, which are files in ZeroMQ's format (`pickledbctl keygen`, or
zmq.auth, makes them). Keys are handled as their text, of 40 characters (Z85, ZeroMQ's RFC 32).

Who may come stands in a directory, which is looked through again and again: what a public
certificate there says, as long as it is there. What cannot be read lets nobody in.
"""

from __future__ import annotations

import logging
import os
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.auth.certs import load_certificate
from zmq.utils import z85

from pickledbd.endpoints import CannotServe

log = logging.getLogger(__name__)

READ_ONLY = "read-only"
"""The directory, in that of the keys, with those of clients that may only read."""

LOOK_SECONDS = 1.0
"""How often the directories are looked at; and the files in them, unless that takes long."""

LOOK_SHARE = 0.0025
"""Of the time, at most: so many keys cost an idle daemon no more than a few."""

SETTLED_NS = 2 * 10**9
"""A file that was changed less than so long ago may have been changed again without a trace."""

CERTIFICATE_MAX = 2**16
"""Bytes; what is larger is none."""


@dataclass(frozen=True, slots=True)
class Key:
    """A client's key."""

    name: str
    """Of its file, without the suffix; under READ_ONLY with that in front."""
    read_only: bool


@dataclass(frozen=True, slots=True)
class _File:
    signature: tuple[int, ...]  # what tells that it was changed
    is_settled: bool
    public: str | None  # None if it is no certificate
    complaint: str


class Authorized:
    """The keys in `directory`, as of the last look."""

    def __init__(self, directory: Path) -> None:
        """CannotServe if it cannot be read, or if everybody can let in others by it."""
        try:
            os.scandir(directory).close()
        except OSError as error:
            raise CannotServe(
                f"cannot read the authorized keys: {error.strerror} ({directory})"
            ) from None
        for folder in (directory, directory / READ_ONLY):
            if folder.is_dir() and folder.stat().st_mode & stat.S_IWOTH:
                raise CannotServe(
                    f"{folder} can be written by everybody, who could so let in others: run chmod "
                    f"o-w {folder}, and look at what is in it"
                )
        self.changed = False
        """Whether there are other keys than before; for who looks at this to make it False."""
        self._folders = (directory, directory / READ_ONLY)
        self._files: dict[Path, _File] = {}
        self._keys: dict[str, Key] = {}
        self._times: list[int] = []  # when files were last added to the folders, or taken away
        self._complaints: dict[Path, str] = {}
        self._round: Iterator[None] | None = None
        self._spent = 0.0  # seconds of this round
        self._next_round = 0.0  # when files may have been rewritten, in time.monotonic()
        self.look()

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, public: str) -> Key | None:
        """The key whose text this is, as of the last look."""
        return self._keys.get(public)

    def find(self, public: str) -> Key | None:
        """The same, also if its file was put there, or taken away, just now."""
        if self._times != list(map(_changed, self._folders)):
            self._round = None
            self.look()
        return self._keys.get(public)

    def look(self, until: float = float("inf")) -> bool:
        """Look through the files, or go on with it; False if `until` came before the end."""
        self._round = self._round or self._look()
        for _ in self._round:
            if time.monotonic() >= until:
                return False
        self._round = None
        return True

    def look_again(self, until: float) -> bool:
        """The same, but at the files only if some came or went, or if it is time to."""
        began = time.monotonic()
        if self._round is None and began < self._next_round and self._is_as_it_was():
            return True
        is_done = self.look(until)
        ended = time.monotonic()
        self._spent += ended - began
        if is_done:
            self._next_round, self._spent = ended + self._spent / LOOK_SHARE, 0.0
        return is_done

    def _is_as_it_was(self) -> bool:
        """Whether no file was added to the folders, or taken away, since the last look."""
        times = list(map(_changed, self._folders))
        return times == self._times and time.time_ns() - max(times) > SETTLED_NS

    def _look(self) -> Iterator[None]:
        times = list(map(_changed, self._folders))
        files: dict[Path, _File] = {}
        keys: dict[str, Key] = {}
        for folder in self._folders:  # the read-only ones last: who has both may only read
            for name in self._certificates(folder):
                path = folder / name
                file = files[path] = self._file(path)
                self._complain(path, file.complaint)
                if file.public is not None:
                    read_only = folder.name == READ_ONLY and folder is self._folders[1]
                    told = f"{READ_ONLY}/{path.stem}" if read_only else path.stem
                    keys[file.public] = Key(told, read_only)
                yield
        for path in [each for each in self._complaints if each not in files]:
            if path not in self._folders:
                del self._complaints[path]
        self.changed = self.changed or keys != self._keys
        self._files, self._keys, self._times = files, keys, times

    def _certificates(self, folder: Path) -> list[str]:
        complaint = ""
        found: list[str] = []
        try:
            with os.scandir(folder) as entries:
                found = sorted(each.name for each in entries if each.name.endswith(".key"))
        except OSError as error:
            if folder is self._folders[0] or not isinstance(error, FileNotFoundError):
                complaint = f"{error.strerror}; nobody is let in by it"
        self._complain(folder, complaint)
        return found

    def _file(self, path: Path) -> _File:
        """What is known of a file, which is read if it may have been changed."""
        known = self._files.get(path)
        signature: tuple[int, ...] = ()
        is_settled = False
        try:
            found = path.stat()
            signature = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if known is not None and known.is_settled and known.signature == signature:
                return known
            is_settled = time.time_ns() - found.st_mtime_ns > SETTLED_NS
            if not stat.S_ISREG(found.st_mode) or found.st_size > CERTIFICATE_MAX:
                raise ValueError("it is no certificate")
            public, secret = read_certificate(path)
            if secret is not None:
                raise ValueError("it holds a secret key, which only its owner should have")
        except OSError as error:
            return _File(signature, is_settled, None, str(error.strerror or error))
        except ValueError as error:
            return _File(signature, is_settled, None, str(error))
        return _File(signature, is_settled, public, "")

    def _complain(self, path: Path, complaint: str) -> None:
        """Tell once what is wrong with a file, until that is something else."""
        if complaint and complaint != self._complaints.get(path):
            told = {"event": "key_left_out", "path": os.fspath(path), "why": complaint}
            log.warning("authorized keys: %a is left out: %s", told["path"], complaint, extra=told)
        if complaint:
            self._complaints[path] = complaint
        else:
            self._complaints.pop(path, None)


def own_key(path: Path) -> tuple[str, str]:
    """The daemon's public and secret key. CannotServe if there are none, or others may read it.

    As with ssh: what the daemon's user owns is its own alone. That of another user, root's, may be
    for a group, which is also how the credentials of systemd look.
    """
    try:
        found = path.stat()
        public, secret = read_certificate(path)
    except OSError as error:
        raise CannotServe(f"cannot read the key {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise CannotServe(f"cannot use the key {path}: {error}") from None
    if secret is None:
        raise CannotServe(
            f"{path} holds no secret key: --curve-key is the file NAME.key_secret that "
            "`pickledbctl keygen NAME` makes"
        )
    others = 0o077 if found.st_uid == os.geteuid() else 0o007
    if found.st_mode & others:
        raise CannotServe(
            f"{path} holds a secret key and can be read by others: run chmod 600 {path}, and make "
            "a new key if anybody may have done so"
        )
    return public, secret


def read_certificate(path: Path) -> tuple[str, str | None]:
    """The public key of a certificate, and the secret one if it is there. OSError, ValueError."""
    try:
        public, secret = load_certificate(path)
    except IndexError:  # of a line without "="
        raise ValueError("it is no certificate") from None
    except ValueError:
        raise ValueError("it holds no public key") from None
    if secret is None:
        return _checked(public), None
    text = _checked(secret)
    if zmq.curve_public(text.encode()) != public:
        raise ValueError("its two keys do not belong together")
    return _checked(public), text


def _checked(key: bytes) -> str:
    try:
        if len(key) == 40 and z85.encode(z85.decode(key)) == key:  # noqa: PLR2004 - RFC 32
            return key.decode("ascii")
    except (ValueError, KeyError, struct.error):
        pass
    raise ValueError("a key is 40 characters of Z85, as `pickledbctl keygen` writes it")


def _changed(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0
