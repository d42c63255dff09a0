"""The journal: effects of writes, appended before their replies, and the files they stand in.

May live here: the journal's files, numbered NAME.journal.1 and so on. A snapshot makes what was
appended before it superfluous, and a new file is begun once it stands in the data file's place
(SPEC.md, The journal). Methods whose docstring says so block and run in a thread; the others are
the loop's.

A descriptor on which a write or a sync failed is never believed again: `failed` stays set until
a snapshot has started another file.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pickledbd import records
from pickledbd.disk import DiskError, close, create, step, sync, sync_path, write_all
from pickledbd.records import Answer
from pickledbd.retries import Retries


@dataclass
class _File:
    number: int
    name: str
    descriptor: int
    size: int
    start: int = 0
    """The records from here on are not in the data file."""
    synced: int = 0
    """How many of its bytes are known to be on the disk."""
    failed: DiskError | None = None
    """Why no later sync of it tells anything."""


def journal_path(data: Path, number: int) -> Path:
    """The path of a journal of the data file `data`."""
    return data.with_name(f"{data.name}.journal.{number}")


def find_journals(data: Path) -> dict[int, Path]:
    """The journals beside the data file, by number in ascending order."""
    pattern = re.compile(re.escape(data.name) + r"\.journal\.([1-9][0-9]*)")
    found = {}
    for path in data.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match:
            found[int(match[1])] = path
    return dict(sorted(found.items()))


class Journal:
    """Appends to the newest journal of `data`, and knows the ones before it."""

    def __init__(
        self,
        data: Path,
        *,
        durable: str,
        known: Sequence[tuple[int, int, int]] = (),
        highest: int = 0,
    ) -> None:
        """Go on after the journals `known`: of each its number, and from where to where it counts.

        `durable`: "save" (writes are not appended), "journal" or "fsync". `highest`: the highest
        number there ever was. OSError.
        """
        self.durable = durable
        self.failed: str | None = None
        """Why writes cannot be made durable."""
        self._data = data
        self._files: list[_File] = []
        self._next: _File | None = None
        self._superfluous: set[int] = set()
        self._highest = highest  # never a number twice: a file may have failed to be removed
        self._told_synced = 0
        self.written = 0
        """Bytes that were appended."""
        self._syncs = [0, 0]  # by the loop, by the thread: neither counts what the other does
        self._syncing = threading.Lock()  # held while descriptors are synced, or closed
        for number, start, end in known:
            path = journal_path(data, number)
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            self._files.append(_File(number, path.name, file, end, start))
            if path.stat().st_size > end:
                os.ftruncate(file, end)
                sync(file)  # what was cut must not come back behind what is appended now

    @property
    def appends(self) -> bool:
        """Whether writes are made durable here."""
        return self.durable != "save"

    @property
    def size(self) -> int:
        """Bytes of what is not in the data file."""
        return sum(file.size - file.start for file in self._files)

    @property
    def syncs(self) -> int:
        """How often what was appended was synced to the disk."""
        return sum(self._syncs)

    @property
    def unsynced(self) -> bool:
        """Whether something that was appended is not known to be on the disk."""
        return any(file.synced < file.size for file in self._files)

    def write(self, texts: Iterable[bytes], *, sync_now: bool = True) -> None:
        """Append records of these texts; in mode fsync have them on the disk.

        DiskError; then none counts. `sync_now`: False if a later write takes these to disk.
        """
        sync_now = sync_now and self.durable == "fsync"
        file = self._files[-1]
        if file.failed is not None:  # in the thread that syncs, which the loop has not heard of yet
            raise file.failed
        if file.synced > self._told_synced:
            self._told_synced = file.synced
            texts = [records.synced(file.synced), *texts]
        lines = records.encode(texts, file.number, file.size)
        try:
            with step(f"writing {file.name}"):
                write_all(file.descriptor, lines)
            if sync_now:
                if any(older.synced < older.size for older in self._files[:-1]):
                    self.sync()  # the batch that is committed now may have begun there
                with step(f"fdatasync of {file.name}"):
                    sync(file.descriptor, data_only=True)
        except DiskError as error:
            self.failed = str(error)
            file.failed = error
            try:  # no start is to find what was refused
                os.ftruncate(file.descriptor, file.size)
            except OSError:
                error.leaves_traces = True  # until a later journal's head tells this one's length
            raise
        file.size += len(lines)
        self.written += len(lines)
        if sync_now:
            self._syncs[0] += 1
            file.synced = file.size

    def sync(self, *, newest_only: bool = False) -> None:
        """Have all that was appended on the disk, the oldest file first. DiskError. Blocks."""
        with self._syncing:
            for file in self._files[-1:] if newest_only else self._files.copy():
                size = file.size
                if file.failed is not None:
                    raise file.failed
                if file.synced < size:
                    try:
                        with step(f"fdatasync of {file.name}"):
                            sync(file.descriptor, data_only=True)
                    except DiskError as error:
                        file.failed = error
                        raise
                    self._syncs[1] += 1
                    file.synced = size

    # When a snapshot is written: mark, rebase; a new file: prepare, switch, drop the older ones.

    @property
    def end(self) -> int:
        """Where the newest file ends: what is appended later is not in a view made now."""
        return self._files[-1].size if self._files else 0

    def rebase(self, digest: str, end: int) -> None:
        """Tell that the data file of this digest holds the content as it was at `end`.

        To be synced before the data file is put in its place. DiskError.
        """
        self.write([records.based_on(digest, end)])

    def rebased(self, end: int) -> None:
        """The data file has been put in its place."""
        self._files[-1].start = end

    def prepare(self) -> None:
        """Make the next file, empty. DiskError. Blocks."""
        self._highest = number = max(self._highest, self.number) + 1
        path = journal_path(self._data, number)
        with step(f"creating {path.name}"):
            file = create(path, self._data)
        self._next = _File(number, path.name, file, 0)
        try:
            with step("fsync of the directory"):
                sync_path(self._data.parent)
        except DiskError:
            self._give_up()
            raise

    @property
    def number(self) -> int:
        """The newest journal's number; 0 if there is none."""
        return self._files[-1].number if self._files else 0

    def switch(
        self, base: str | None, retries: Retries, answers: Iterable[Answer] | None = None
    ) -> None:
        """Append to the prepared file from now on. DiskError; then the old one goes on.

        `base`: the digest of the data file, if that holds all that there is. `answers`: those of
        the writes that it holds, if they are not all that there are.
        """
        new = self._next
        assert new is not None  # noqa: S101 - prepared
        text = records.head(
            new.number,
            base=base,
            previous=(self.number, self.end) if self._files else None,
            answers=retries.awaited() if answers is None else answers,
            forgotten=retries.forgotten,
        )
        head = records.encode([text], new.number, 0)
        try:
            with step(f"writing {new.name}"):
                write_all(new.descriptor, head)
        except DiskError:
            self._give_up()
            raise
        new.size = new.start = len(head)
        self.written += len(head)
        self._told_synced = 0
        self._next = None
        self._files.append(new)

    def begin(self, base: str, retries: Retries) -> None:
        """Have one new journal, which follows the data file of this digest. DiskError. Blocks."""
        self.prepare()
        self.switch(base, retries)
        self.sync()
        self.drop(lambda number: number != self.number)

    def _give_up(self) -> None:
        """Remove the file that was prepared, if it was not switched to."""
        new, self._next = self._next, None
        if new is not None:
            close(new.descriptor)
            self._remove(new.number)

    def drop(self, unneeded: Callable[[int], bool]) -> None:
        """Remove the journals of the numbers that are `unneeded`. Blocks."""
        with self._syncing:
            for file in self._files.copy():
                if unneeded(file.number):
                    self._files.remove(file)
                    close(file.descriptor)
                    self._remove(file.number)

    def _remove(self, number: int) -> None:
        self._superfluous.add(number)
        for each in self._superfluous.copy():
            with contextlib.suppress(OSError):  # tried again next time, and by the next start
                journal_path(self._data, each).unlink(missing_ok=True)
                self._superfluous.discard(each)

    def close(self) -> None:
        """Let go of the files."""
        self._give_up()
        with self._syncing:
            while self._files:
                close(self._files.pop().descriptor)
