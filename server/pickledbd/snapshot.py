"""The data file: loading it, and replacing it atomically by a snapshot of the store.

The only room that touches the data file. The file is always one plain JSON object that pickleDB
itself can open; this daemon writes each entry on a line of its own, so that it can be read back
in blocks (SPEC.md, The data file). Modelled on Redis's rdbSave: every step is checked and the
failed one is named.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import logging
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import orjson

from pickledbd import annex
from pickledbd.disk import DiskError, close, create, step, sync, sync_path, write_all
from pickledbd.expiry import Piece, stamped
from pickledbd.records import entries as members
from pickledbd.table import Table
from pickledbd_protocol import InvalidValue, check_integers, shown
from pickledbd_protocol.data_file import (
    EMPTY,
    HEAD,
    SEPARATOR,
    TAIL,
    NotThisLayoutError,
    blocks,
)

log = logging.getLogger(__name__)

BLOCK = 2**16
"""Bytes read at once: as Python objects they are to fit into the processor's cache."""

PROGRESS_BYTES = 2**20
"""Bytes read between two signs of progress."""

PROGRESS_KEYS = 10_000
"""Keys taken over between two signs of progress where nothing is read meanwhile."""

SYNC_BYTES = 16 * 2**20
"""Bytes of a snapshot between two syncs."""

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""How a file system tells that it has no hard links, or no further ones."""

_NOTHING: Mapping[str, int] = MappingProxyType({})

Identity = tuple[int, int, int]

Progress = Callable[[str, int], None]
"""Called with the name of a file and how many bytes of it have been read."""

T = TypeVar("T")

if TYPE_CHECKING:
    from hashlib import _Hash as Hash


def no_progress(_what: str, _done: int) -> None:
    """Tell nobody."""


class Unreadable(Exception):
    """The data file, or its journal, cannot be served as it is. It was not touched."""


class DataFile:
    """The file at `path` (absolute, symbolic links resolved)."""

    def __init__(self, path: Path, backups: int = 0) -> None:
        """`backups`: how many of the files that saves replace are kept."""
        self.path = path
        self.backups = backups
        self.digest = _new_hash().hexdigest()
        """Of the file's bytes as they were loaded; a missing file has none."""
        self.annex = annex.Annex()
        """What the annex of the file told when it was loaded; see `take_deadlines`."""
        self._known: Identity | None = None  # the file as this daemon last read or wrote it

    def load(self, progress: Progress = no_progress) -> Table:
        """The file's content, keys to canonical JSON bytes; empty if it is missing or empty.

        Unreadable names the position.
        """

        def told(done: int) -> None:
            progress(self.path.name, done)

        table = Table()
        digest = _new_hash()
        known: Identity | None = None
        collects = gc.isenabled()
        gc.disable()  # else it would look through the objects of each block again and again
        try:
            # Opening a FIFO would wait for ever, and renaming over a device would replace it
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise Unreadable(f"{self.path} is not a regular file; it was not touched")
            with self.path.open("rb") as file:
                known = _identity(os.fstat(file.fileno()))
                try:
                    _load_blocks(file, table, digest, told)
                except NotThisLayoutError:
                    file.seek(0)
                    table, digest = Table(), _new_hash()
                    _load_whole(file, table, digest, told)
            self.annex = self._annex_of(digest, progress)
            expires = self.annex.expires.items()
            _stamp(table, with_progress(expires, known[1], told))
        except FileNotFoundError:
            self.annex = self._annex_of(digest, progress)
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
        finally:
            if collects:
                gc.enable()
        self._known = known
        self.digest = digest.hexdigest()
        return table

    def _annex_of(self, digest: Hash, progress: Progress) -> annex.Annex:
        try:
            return annex.read(self.path, digest.hexdigest(), progress)
        except annex.DamagedError as error:
            raise Unreadable(
                f"{error}; it tells when keys of {self.path} expire. Put the right one back, or "
                "remove it to do without; nothing was touched"
            ) from None
        except OSError as error:
            raise Unreadable(f"cannot read {error.filename}: {error.strerror}") from error

    def take_deadlines(self) -> dict[str, int]:
        """What the annex told of when keys expire; it is not kept, since their values tell it."""
        expires, self.annex.expires = self.annex.expires, {}
        return expires

    @property
    def size(self) -> int:
        """Bytes of the file as this daemon last read or wrote it."""
        return 0 if self._known is None else self._known[1]

    def on_disk(self) -> int:
        """Bytes of the file as it is now; 0 if there is none."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def exists(self) -> bool:
        """Whether there was a file when this daemon last looked, and there still is."""
        return self._known is not None and self._identity() is not None

    def changed(self) -> bool:
        """Whether another program wrote, made or removed the file since this daemon did."""
        return self._identity() != self._known

    def write(self) -> Writing:
        """Begin a snapshot that is to replace the file."""
        return Writing(self)

    def sweep(self) -> None:
        """Remove what saves that were killed have left. Only for the owner of the file."""
        leftover = re.compile(re.escape(self.path.name) + r"\.tmp-[0-9a-f]{8}(\.annex)?")
        with contextlib.suppress(OSError):  # what cannot be listed or removed does no harm
            for found in self.path.parent.iterdir():
                if leftover.fullmatch(found.name):
                    log.warning(
                        "removing %s, left by a save that was killed",
                        found.name,
                        extra={"event": "leftover_removed", "path": str(found)},
                    )
                    found.unlink()

    def _identity(self) -> Identity | None:
        try:
            return _identity(self.path.stat())
        except OSError:
            return None

    def _keep_old(self) -> Path | None:
        """Have under another name what is not to be overwritten; that name. OSError.

        That is a file that someone else wrote meanwhile, and as many backups as were asked for.
        """
        try:
            found = _identity(self.path.stat())
        except FileNotFoundError:
            return None
        if found != self._known:
            aside = self.path.with_name(f"{self.path.name}.replaced-{time.time_ns()}")
            log.warning(
                "%s was changed by another program while this daemon owned it; that file is now %s",
                self.path,
                aside.name,
                extra={"event": "file_replaced", "path": str(self.path), "kept_as": str(aside)},
            )
        elif self.backups:
            aside = self.path.with_name(f"{self.path.name}.backup-{time.time_ns()}")
        else:
            return None
        # There is never a moment without a data file, not even where there are no hard links
        try:
            os.link(self.path, aside)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            shutil.copy2(self.path, aside)
            sync_path(aside)
        return aside

    def _put_back(self, aside: Path) -> None:
        """Undo `_keep_old`."""
        with contextlib.suppress(OSError):
            aside.unlink()

    def _drop_backups(self) -> None:
        """Keep no more backups than were asked for; where none are, they are someone else's."""
        pattern = re.compile(re.escape(self.path.name) + r"\.backup-[0-9]{19}")
        with contextlib.suppress(OSError):  # one too many does no harm
            found = [p for p in self.path.parent.iterdir() if pattern.fullmatch(p.name)]
            for old in sorted(found)[: -self.backups] if self.backups else ():
                old.unlink()


class Writing:
    """A snapshot on its way to the disk. Every method blocks, and one runs at a time.

    After a DiskError, which names the step, the file is as it was, except that a failed last
    step (the directory's fsync) leaves the new one, which a power cut may undo.
    """

    def __init__(self, file: DataFile) -> None:
        self._target = file
        self._temp = file.path.with_name(f"{file.path.name}.tmp-{secrets.token_hex(4)}")
        self._file = -1
        self.published = False
        """Whether it is in the data file's place, though perhaps not for ever."""
        self._hash = _new_hash()
        self._annex = annex.Writing(file.path, self._temp.with_name(f"{self._temp.name}.annex"))
        self._unsynced = 0
        self._written: Identity | None = None

    def create(self) -> None:
        """Make the temporary file."""
        with step("creating a temporary file"):
            self._file = create(self._temp, self._target.path)

    def write(self, text: bytes, expires: Mapping[str, int] = _NOTHING) -> None:
        """Write a part, and when its keys expire. Now and then it is sent on its way to the disk.

        Else it would all be left to the last fsync, and whoever writes meanwhile be held up.
        """
        with step("writing the temporary file"):
            write_all(self._file, text)
        self._hash.update(text)
        if expires:
            self._annex.add(expires)
        self._unsynced += len(text)
        if self._unsynced >= SYNC_BYTES:
            self._unsynced = 0
            with step("fdatasync of the temporary file"):
                sync(self._file, data_only=True)

    def sync(self, locks: Mapping[str, Any], clock: Mapping[str, Any]) -> str:
        """Have it on the disk; the digest of all that was written.

        `locks` and `clock` go into the annex.
        """
        with step("fsync of the temporary file"):
            sync(self._file)
            self._written = _identity(os.fstat(self._file))
        digest = self._hash.hexdigest()
        # The journal is told of the digest next, and no data file is to be there without its annex,
        # be it the one that is there already, with the same bytes
        if self._annex.finish(digest, locks, clock):
            with step("fsync of the directory"):
                sync_path(self._target.path.parent)
        return digest

    def publish(self) -> None:
        """Put it in the place of the data file."""
        file = self._target
        with step("keeping the old file"):
            aside = file._keep_old()  # noqa: SLF001 - the same room
        try:
            with step("renaming the temporary file"):
                self._temp.rename(file.path)
        except DiskError:
            if aside is not None:
                file._put_back(aside)  # noqa: SLF001 - the same room
            raise
        self.published = True
        file._known = self._written  # noqa: SLF001 - the same room
        self._close()
        with step("fsync of the directory"):
            sync_path(file.path.parent)
        self._annex.drop_others()
        file._drop_backups()  # noqa: SLF001 - the same room

    def give_up(self) -> None:
        """Remove the temporary file, if it is still there."""
        if not self.published:
            self._annex.give_up()
        if self._file >= 0:
            self._close()
            with contextlib.suppress(OSError):
                self._temp.unlink()

    def _close(self) -> None:
        close(self._file)
        self._file = -1


class _ContentError(Exception):
    """JSON, but not what a pickleDB file holds."""


def _load_blocks(
    file: BinaryIO, table: Table, digest: Hash, progress: Callable[[int], None]
) -> None:
    """Read a file of one entry a line, a block of lines at a time."""
    done = told = 0

    def chunks() -> Iterator[bytes]:
        nonlocal done, told
        while chunk := file.read(BLOCK):
            digest.update(chunk)
            done += len(chunk)
            yield chunk
            if done - told >= PROGRESS_BYTES:
                told = done
                progress(done)

    for block in blocks(chunks()):
        _add_block(table, block)


def _add_block(table: Table, block: bytes) -> None:
    try:
        entries = orjson.loads(block)
    except orjson.JSONDecodeError:
        raise NotThisLayoutError from None
    if not entries:  # between two separators, or after the last, there has to be an entry
        raise NotThisLayoutError
    check_integers(block)
    _add(table, entries)


def _load_whole(
    file: BinaryIO, table: Table, digest: Hash, progress: Callable[[int], None]
) -> None:
    """Read any other layout: pickleDB's own one long line, or a file edited by hand."""
    progress(0)  # the next step is a long one
    text = file.read()
    if not text:
        return
    digest.update(text)
    try:
        entries = orjson.loads(text)
    except orjson.JSONDecodeError:
        text.decode()  # orjson tells of bad UTF-8, but not where it is
        raise
    if type(entries) is not dict:
        raise _ContentError(f"it holds a JSON {type(entries).__name__}, not an object of keys")
    check_integers(text)
    size, count = len(text), len(entries)
    del text
    pairs = iter(entries.items())
    while part := dict(islice(pairs, PROGRESS_KEYS)):
        _add(table, part)
        progress(size * len(table) // count)


def _add(table: Table, entries: dict[str, object]) -> None:
    # Not `canonical`: a file of pickleDB's may be nested a little deeper than a new value may
    # be, and is served all the same. Like there, the copy drops orjson's oversized buffer.
    try:
        values = [bytes(memoryview(text)) for text in map(orjson.dumps, entries.values())]
    except TypeError:
        for key, value in entries.items():
            try:
                orjson.dumps(value)
            except TypeError as error:
                raise _ContentError(f"the value of key {shown(key)}: {error}") from None
        raise
    table.extend(list(entries), values)


def with_progress(things: Collection[T], size: int, progress: Callable[[int], None]) -> Iterator[T]:
    """All of them, with signs of progress as if a file of this size were read meanwhile.

    Who waits for a start, a client or systemd, gives up where nothing goes on.
    """
    for number, each in enumerate(things, 1):
        yield each
        if number % PROGRESS_KEYS == 0:
            progress(size * number // len(things))


def _stamp(table: Table, expires: Iterable[tuple[str, int]]) -> None:
    for key, deadline in expires:
        value = table.get(key)
        if value is not None:
            table.set(key, stamped(value, deadline))


def _new_hash() -> Hash:
    return hashlib.sha256(usedforsecurity=False)


def _identity(found: os.stat_result) -> Identity:
    return found.st_ino, found.st_size, found.st_mtime_ns


def texts(content: Iterable[Piece]) -> Iterator[tuple[bytes, Mapping[str, int]]]:
    """The text of a data file in parts, each with the deadlines of its keys.

    Each entry stands on a line of its own.
    """
    separator = HEAD
    for keys, values, deadlines in content:
        text = members(keys, values, SEPARATOR)
        if text:
            yield separator + text, deadlines
            separator = SEPARATOR
        else:
            yield b"", {}
    yield EMPTY if separator is HEAD else TAIL, {}
