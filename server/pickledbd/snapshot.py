"""The data file: loading it, and replacing it atomically by a snapshot of the store.

The only room that touches the data file. The file is always one plain JSON object that pickleDB
itself can open; this daemon writes each entry on a line of its own, so that it can be read back
in blocks (SPEC.md, The data file). Modelled on Redis's rdbSave: every step is checked and the
failed one is named.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import orjson

from pickledbd_protocol import InvalidValue, SaveFailed, check_integers, shown

log = logging.getLogger(__name__)

BLOCK = 2**20
"""Bytes read or written at once."""

_HEAD, _SEPARATOR, _TAIL = b"{\n", b",\n", b"\n}\n"

Identity = tuple[int, int, int]


class Unreadable(Exception):
    """The data file cannot be served as it is. It was not touched."""


class DataFile:
    """The file at `path` (absolute, symbolic links resolved)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: Identity | None = None  # the file as this daemon last read or wrote it

    def load(self, progress: Callable[[int], None] = lambda _done: None) -> dict[str, bytes]:
        """The file's content, key to canonical JSON bytes; {} if it is missing or empty.

        `progress` is called with the bytes read so far. Unreadable names the position.
        """
        try:
            # Opening a FIFO would wait for ever, and renaming over a device would replace it
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise Unreadable(f"{self.path} is not a regular file; it was not touched")
            with self.path.open("rb") as file:
                known = _identity(os.fstat(file.fileno()))
                try:
                    data = _load_blocks(file, progress)
                except _NotOurLayoutError:
                    file.seek(0)
                    data = _load_whole(file)
        except FileNotFoundError:
            known, data = None, {}
        except UnicodeDecodeError as error:
            raise Unreadable(
                f"{self.path} is not UTF-8: {error.reason} at byte {error.start}; "
                "it was not touched"
            ) from None
        except orjson.JSONDecodeError as error:
            raise Unreadable(f"{self.path} is not JSON: {error}; it was not touched") from None
        except (InvalidValue, _ContentError) as error:
            raise Unreadable(f"{self.path}: {error}; it was not touched") from None
        except OSError as error:
            raise Unreadable(f"cannot read {self.path}: {error.strerror}") from error
        self._known = known
        return data

    def exists(self) -> bool:
        """Whether there was a file when this daemon last looked, and there still is."""
        return self._known is not None and self._identity() is not None

    def changed(self) -> bool:
        """Whether another program wrote, made or removed the file since this daemon did."""
        return self._identity() != self._known

    def save(self, items: Iterable[tuple[str, bytes]]) -> None:
        """Replace the file by `items`, on disk when this returns. SaveFailed names the step.

        On failure the file is as it was, except that a failed last step (the directory's fsync)
        leaves the new one, which a power cut may undo.
        """
        temp = self.path.with_name(f"{self.path.name}.tmp-{secrets.token_hex(4)}")
        step = "creating a temporary file"
        try:
            try:
                file = _create(temp, self.path)
                try:
                    step = "writing the temporary file"
                    _write_all(file, items)
                    step = "fsync of the temporary file"
                    _fsync(file)
                    written = _identity(os.fstat(file))
                finally:
                    os.close(file)
                step = "keeping the file that another program wrote"
                self._keep_foreign()
                step = "renaming the temporary file"
                temp.rename(self.path)
            except BaseException:
                temp.unlink(missing_ok=True)
                raise
            self._known = written
            step = "fsync of the directory"
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            hint = ""
            if error.errno == errno.EBUSY:
                hint = "; if the file itself is a mount point, mount its directory instead"
            raise SaveFailed(
                f"cannot save {self.path}: {step} failed: {error.strerror}{hint}"
            ) from error

    def sweep(self) -> None:
        """Remove what saves that were killed have left. Only for the owner of the file."""
        leftover = re.compile(re.escape(self.path.name) + r"\.tmp-[0-9a-f]{8}")
        with contextlib.suppress(OSError):  # what cannot be listed or removed does no harm
            for found in self.path.parent.iterdir():
                if leftover.fullmatch(found.name):
                    log.warning("removing %s, left by a save that was killed", found.name)
                    found.unlink()

    def _identity(self) -> Identity | None:
        try:
            return _identity(self.path.stat())
        except OSError:
            return None

    def _keep_foreign(self) -> None:
        """Have a file that someone else wrote meanwhile under another name, not overwrite it."""
        found = self._identity()
        if found in (None, self._known):
            return
        aside = self.path.with_name(f"{self.path.name}.replaced-{time.time_ns()}")
        try:
            os.link(self.path, aside)  # there is never a moment without a data file
        except OSError:
            self.path.rename(aside)  # a file system without hard links
        log.warning(
            "%s was changed by another program while this daemon owned it; that file is now %s",
            self.path,
            aside.name,
        )


class _NotOurLayoutError(Exception):
    """Not entries on lines of their own; it may still be JSON."""


class _ContentError(Exception):
    """JSON, but not what a pickleDB file holds."""


def _load_blocks(file: BinaryIO, progress: Callable[[int], None]) -> dict[str, bytes]:
    """Read a file of one entry a line, a block of lines at a time.

    A cut at a line's end between two entries is safe whatever the file: no JSON string holds a
    raw newline, and the first block starts inside the outermost object, so as long as each
    block is an object when put into braces, each cut was between two of that object's members.
    """
    if file.read(len(_HEAD)) != _HEAD:
        raise _NotOurLayoutError
    data: dict[str, bytes] = {}
    pending = bytearray()
    done = len(_HEAD)
    while chunk := file.read(BLOCK):
        done += len(chunk)
        start = max(0, len(pending) - 1)
        pending += chunk
        cut = pending.rfind(_SEPARATOR, start)
        if cut >= 0:
            _add_block(data, b"{%s}" % pending[:cut])
            del pending[: cut + len(_SEPARATOR)]
            progress(done)
    _add_block(data, b"{%s" % pending)
    return data


def _add_block(data: dict[str, bytes], block: bytes) -> None:
    try:
        entries = orjson.loads(block)
    except orjson.JSONDecodeError:
        raise _NotOurLayoutError from None
    if not entries:  # between two separators, or after the last, there has to be an entry
        raise _NotOurLayoutError
    check_integers(block)
    _add(data, entries)


def _load_whole(file: BinaryIO) -> dict[str, bytes]:
    """Read any other layout: pickleDB's own one long line, or a file edited by hand."""
    text = file.read()
    if not text:
        return {}
    try:
        entries = orjson.loads(text)
    except orjson.JSONDecodeError:
        text.decode()  # orjson tells of bad UTF-8, but not where it is
        raise
    if type(entries) is not dict:
        raise _ContentError(f"it holds a JSON {type(entries).__name__}, not an object of keys")
    check_integers(text)
    del text
    data: dict[str, bytes] = {}
    _add(data, entries)
    return data


def _add(data: dict[str, bytes], entries: dict[str, object]) -> None:
    # Not `canonical`: a file of pickleDB's may be nested a little deeper than a new value may
    # be, and is served all the same. Like there, the copy drops orjson's oversized buffer.
    dumps = orjson.dumps
    key = ""
    try:
        for key, value in entries.items():
            data[key] = bytes(memoryview(dumps(value)))
    except TypeError as error:
        raise _ContentError(f"the value of key {shown(key)}: {error}") from None


def _identity(found: os.stat_result) -> Identity:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _create(temp: Path, old: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        like = old.stat()
    except FileNotFoundError:
        return os.open(temp, flags, 0o666)
    file = os.open(temp, flags, 0o600)
    for owner in (like.st_uid, -1):  # only root may give files away, but to one's groups one may
        with contextlib.suppress(OSError):
            os.fchown(file, owner, like.st_gid)
            break
    os.fchmod(file, like.st_mode & 0o777)
    return file


def _write_all(file: int, items: Iterable[tuple[str, bytes]]) -> None:
    for chunk in _chunks(items):
        view = memoryview(chunk)
        while view:
            view = view[os.write(file, view) :]


def _chunks(items: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
    part: list[bytes] = []
    size = 0
    first = True
    for key, value in items:
        part.append(b"%s%s:%s" % (_HEAD if first else _SEPARATOR, orjson.dumps(key), value))
        first = False
        size += len(part[-1])
        if size >= BLOCK:
            yield b"".join(part)
            part, size = [], 0
    yield b"".join(part)
    yield b"{}\n" if first else _TAIL


def _fsync(file: int) -> None:
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync alone stops at the drive's cache
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)
    else:
        os.fsync(file)
