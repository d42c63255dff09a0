"""`pickledbctl export` and `import`: whole contents out and in.

An export shows one moment. An import is read to its end and found good before the first byte of it
is sent, and is applied by the daemon whole or not at all; so whatever ends it, the content is the
old one or the new one. One that is too large for that goes in chunks, if it is asked to: each is a
request that carries, as a key of the database, how far the import is by then. So the position is
as true and as durable as the data itself, and an import that was killed goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shlex
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from pickledbd_client.annexes import with_deadlines
from pickledbd_client.calls import ALL, Some
from pickledbd_client.ctl_commands import DONE
from pickledbd_client.formats import READERS, WRITERS, format_of
from pickledbd_client.outfile import writing
from pickledbd_client.progress import Progress
from pickledbd_client.raw import Entry, Part, RawPickleDB, Request
from pickledbd_protocol import (
    LOCK_SUFFIX,
    InvalidValue,
    PickleDBError,
    RequestTimeout,
    TooLarge,
    owner_told,
    shown,
)

CHUNK_ENTRIES = 1000
"""Entries that are applied in one go, for which everybody else waits."""

CHUNK_BYTES = 100_000
"""The same in bytes, of entries that are not larger themselves."""

_STEP = 256  # entries after which progress is looked at


def export(db: RawPickleDB, options: argparse.Namespace) -> int:
    """Write the items to a file or to stdout."""
    target = None if options.file == "-" else options.file
    form = options.format or format_of(target)
    some = Some(options.prefix, options.glob)
    expiring = 0
    with Progress(
        "exporting", "exported", asked=options.progress, share=share_of(db, some)
    ) as progress:

        def parts() -> Iterator[Part]:
            nonlocal expiring
            for part in db.dumped(some):
                yield part
                expiring += len(part.ttls)
                progress.add(len(part.items))

        with interrupted("nothing was written" if target else "what was written is not all of it"):
            texts = WRITERS[form](parts())
            if target is None:
                sys.stdout.buffer.writelines(texts)
            else:
                with writing(target) as file:
                    file.writelines(texts)
    if not db.keeps_ttls:
        print("pickledbctl: this daemon does not tell when keys expire", file=sys.stderr)
    if expiring and form == "json":
        print(
            f"pickledbctl: {expiring:,} of these keys expire, which JSON cannot tell: "
            "--format jsonl does, and so does backup",
            file=sys.stderr,
        )
    return DONE


def share_of(db: RawPickleDB, some: Some = ALL) -> Callable[[int], float | None]:
    """How much of an export is done, if it is of all keys."""
    if some != ALL:
        return lambda _count: None
    total = max(1, len(db))
    return lambda count: min(1.0, count / total)


def import_(db: RawPickleDB, options: argparse.Namespace) -> int:
    """Read items from a file or from stdin and set them."""
    with contextlib.ExitStack() as stack:
        source: BinaryIO = sys.stdin.buffer
        path = None if options.file == "-" else options.file
        if path is not None:
            _refuse_served(Path(path))
            source = stack.enter_context(Path(path).open("rb"))
        name = path or "standard input"
        status = os.fstat(source.fileno())
        total = status.st_size if stat.S_ISREG(status.st_mode) else 0
        form = options.format or format_of(path)
        progress = stack.enter_context(
            Progress(
                "importing",
                "imported",
                asked=options.progress,
                share=lambda _count: min(1.0, source.tell() / total) if total else None,
            )
        )
        entries = READERS[form](source, name)
        if form == "json" and path is not None and total:
            entries = with_deadlines(entries, Path(path))
        if options.resumable:
            place = os.path.realpath(path) if path else name
            Chunks(db, f"pickledbctl import: {place}", name).carry_in(entries, progress)
        else:
            _import_at_once(db, entries, name, progress, replace=options.replace)
    return DONE


def _refuse_served(path: Path) -> None:
    """InvalidValue if a daemon has this file: it holds what was saved, and not what is so."""
    path = Path(os.path.realpath(path))
    told: dict[str, Any] = {}
    with contextlib.suppress(OSError):
        told = owner_told(path.with_name(path.name + LOCK_SUFFIX).read_bytes())
    if "pid" in told:
        raise InvalidValue(
            f"{path} is a daemon's database, whose file lacks what was not saved; nothing was "
            "changed. All of it goes by: "
            f"pickledbctl -f {shlex.quote(str(path))} export | pickledbctl import"
        )


def _import_at_once(
    db: RawPickleDB, entries: Iterable[Entry], name: str, progress: Progress, *, replace: bool
) -> None:
    request = Request()
    with interrupted("nothing was changed"):
        for entry in entries:
            request.add(entry)
            if request.bytes > db.request_bytes:
                raise TooLarge(
                    f"{name} is larger than the {db.request_bytes:,} bytes that the daemon takes "
                    "at once; nothing was changed. --resumable imports it in chunks; or start "
                    "the daemon with a larger --max-request"
                )
            if not request.count % _STEP:
                progress.add(_STEP)
    progress.skip(request.count - progress.count)
    if replace and not request.count:  # what was to be piped here has failed, more likely
        raise InvalidValue(f"{name} has no keys; nothing was changed. purge removes everything")
    progress.note(f"importing: the daemon takes in {request.count:,} keys ...")
    with interrupted("the daemon was just at it: all of it is imported, or nothing"):
        db.put(request, replace=replace)


class Chunks:
    """An import in chunks, which can be gone on with."""

    def __init__(self, db: RawPickleDB, mark: str, name: str) -> None:
        """`mark`: the key that tells how far it is, and the name of the lock that it holds."""
        self._db = db
        self._mark = mark
        self._name = name
        self._digest = hashlib.sha256(usedforsecurity=False)  # of all entries before `_done`
        self._done = 0

    def carry_in(self, entries: Iterable[Entry], progress: Progress) -> None:
        """Import what was not imported before. PickleDBError; it tells how to go on."""
        lock = self._db.lock(self._mark, timeout=0)
        try:
            held = lock.acquire()
        except RequestTimeout:
            raise RequestTimeout(f"another import of {self._name} is going on") from None
        try:
            self._go_on(entries, progress, held.token)
        except PickleDBError as error:
            raise type(error)(f"{error}. {self._told()}") from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._told()) from None
        finally:
            with contextlib.suppress(PickleDBError):  # it may be lost, or the daemon be gone
                lock.release()

    def _told(self) -> str:
        if not self._done:
            return "Nothing was changed"
        return f"{self._done:,} keys are imported; the same command goes on behind them"

    def _go_on(self, entries: Iterable[Entry], progress: Progress, token: int) -> None:
        before, checksum = self._position()
        chunk = Request(token)
        for entry in entries:
            if chunk.count and (
                chunk.count == CHUNK_ENTRIES or chunk.bytes + len(entry.value) > CHUNK_BYTES
            ):
                self._put(chunk)
                progress.add(chunk.count - 1)
                chunk = Request(token)
            self._digest.update(b"%b:%b\n" % (entry.key, entry.value))
            if self._done < before:
                self._done += 1
                progress.skip(1)
                if self._done == before and self._digest.hexdigest() != checksum:
                    self._refuse(before)
            else:
                chunk.add(entry)
        if self._done < before:
            self._refuse(before)
        if chunk.count:
            self._put(chunk)
            progress.add(chunk.count - 1)
        self._db.remove(self._mark, token=token)

    def _position(self) -> tuple[int, str]:
        """How many entries were imported before, and the digest of these."""
        found = self._db.get(self._mark)
        if found is None:
            return 0, ""
        try:
            return int(found["entries"]), str(found["sha256"])
        except (KeyError, TypeError, ValueError):
            raise InvalidValue(
                f"key {shown(self._mark)} is to tell how far an import is, and holds something else"
            ) from None

    def _refuse(self, before: int) -> None:
        self._done = 0
        raise InvalidValue(
            f"{self._name} is not what was being imported: its first {before:,} keys are others. "
            f"Go on with that, or have this one imported from its beginning after: "
            f"pickledbctl remove {shlex.quote(self._mark)}"
        )

    def _put(self, chunk: Request) -> None:
        done = self._done + chunk.count
        position = {"entries": done, "sha256": self._digest.hexdigest()}
        chunk.add(Entry(orjson.dumps(self._mark), orjson.dumps(position)))
        self._db.put(chunk)
        self._done = done


@contextlib.contextmanager
def interrupted(text: str) -> Iterator[None]:
    """Have it said what becomes of what Ctrl+C ends."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(text) from None
