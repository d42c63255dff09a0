"""When and how the data reaches the disk: snapshots, checkpoints, the journal's syncs and ends.

May live here: the order of the steps, and what becomes of a failure. The steps are the rooms'
`snapshot` and `journal`. A snapshot is a task: it takes a view of the store, which costs nothing,
and writes it while the loop goes on.

While writes cannot be made durable they are refused (`refusing` tells why), until a snapshot has
started a new journal: it is tried again by itself, with growing pauses.
"""

from __future__ import annotations

import errno
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path

from pickledbd import clock
from pickledbd.disk import DiskError, sync_path
from pickledbd.journal import Journal
from pickledbd.ownership import AlreadyOwnedError, Ownership
from pickledbd.records import Answer
from pickledbd.retries import Retries
from pickledbd.snapshot import DataFile, Unreadable, Writing, texts
from pickledbd.status import Status
from pickledbd.store import Store
from pickledbd.tasks import Task, Tasks, Worker, result
from pickledbd_protocol import PickleDBError, SaveFailed, Unavailable, WritesRefused

log = logging.getLogger(__name__)

SYNC_SECONDS = 0.5
"""In mode journal: how long an acknowledged write waits for its way to the disk to begin. It is to
be there within a second, and the disk takes its time too."""

CHECKPOINT_BYTES = 4 * 2**20
"""A journal smaller than this is never too large."""

RETRY_SECONDS = 1.0
RETRY_SECONDS_MAX = 30.0
"""Pauses after a failure, each twice the one before."""

PARTS_AHEAD = 8
"""Parts of a snapshot that wait to be written: they bound the memory that it takes."""

PART_BYTES = 2**18

Saved = Callable[[SaveFailed | None], None]
"""Called when a save has ended: with the error, if it failed."""


class Gate:
    """Lets those through, one at a time and in order, who need the store in one piece."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: deque[object] = deque()

    def enter(self) -> Task[None]:
        """Wait for one's turn. Followed by `leave`."""
        me = object()
        self._queue.append(me)
        while self._queue[0] is not me or self._store.folding:
            yield None

    def leave(self) -> None:
        """Let the next one in."""
        self._queue.popleft()


class Saver:
    """Keeps the disk up with the store."""

    def __init__(
        self,
        store: Store,
        file: DataFile,
        journal: Journal,
        retries: Retries,
        *,
        owner: Ownership,
        status: Status,
        tasks: Tasks,
        gate: Gate,
        wake: Callable[[], object],
        interval: float | None = None,
    ) -> None:
        """`wake` is called, in any thread, when a task can go on.

        `interval`: what is unsaved is saved every so many seconds; None: only when it has to be.
        """
        self._store = store
        self._file = file
        self._journal = journal
        self._retries = retries
        self._owner = owner
        self._status = status
        self._tasks = tasks
        self._gate = gate
        self._interval = interval
        self._save_at = math.inf if interval is None else time.monotonic() + interval
        self.failures = 0
        """How often the journal has failed."""
        self._saved_changes = 0
        self._saved_locks = 0
        self._viewed: int | None = None  # the changes that the snapshot being written holds
        self._saving = False
        self._joined: list[Saved] = []  # who came while a snapshot is written, and are content
        self._waiting: list[Saved] = []  # for the next one
        self._file_bytes = 0
        self._written_bytes = 0  # of the snapshot that is being written
        self._retry_at = 0.0
        self._pause = RETRY_SECONDS
        self._unsynced_since: float | None = None
        self._syncing = False
        self._snapshots = Worker("snapshot", wake)
        self._syncs = Worker("journal", wake)  # it must not wait for the other

    @property
    def dirty(self) -> int:
        """How many changes the data file does not hold."""
        return self._store.changes - self._saved_changes

    @property
    def unsaved(self) -> bool:
        """Whether the data file may hold something else than the store."""
        locks = self._store.locks
        return (
            self.dirty > 0
            or locks.changes != self._saved_locks
            or self._status.last_save_error is not None
        )

    @property
    def needed(self) -> bool:
        """Whether a save would write something."""
        # While writes are refused it is what is waited for, though nothing may be unsaved
        return bool(
            self.unsaved or self.refusing or not self._file.exists() or self._file.changed()
        )

    @property
    def saving(self) -> bool:
        """Whether a snapshot is being written."""
        return self._saving

    @property
    def told(self) -> str:
        """What a save, or the end of other tasks, has come to; for people."""
        if not self._saving:
            return "ending what was begun"
        return f"saving {len(self._store):,} keys, {self._written_bytes / 2**20:.0f} MiB written"

    @property
    def last_status(self) -> str | None:
        """How the last save ended: "ok", "failed", or None if there was none."""
        if self._status.last_save_error is not None:
            return "failed"
        return None if self._status.last_save_time is None else "ok"

    @property
    def refusing(self) -> str | None:
        """Why writes are refused; None if they are not."""
        return self._journal.failed

    def refusal(self, why: str, *, in_doubt: bool = False) -> PickleDBError:
        """The error for a write that is refused; `in_doubt`: though it may come back at a start."""
        location = self._status.location
        if in_doubt:
            return Unavailable(
                f"this write to {location} was not applied, but it may be if the daemon ends "
                f"before a save succeeds: {why}, and it could not be undone",
                outcome_known=False,
            )
        return WritesRefused(
            f"writes to {location} are refused, reads go on: {why}; they are accepted again once "
            "a save succeeds"
        )

    def loaded(self, size: int, locks: int | None = None) -> None:
        """The data file holds just what the store does, in `size` bytes.

        `locks`: and its annex the locks as they were after so many changes.
        """
        self._saved_changes = self._store.changes
        if locks is not None:
            self._saved_locks = locks
        self._file_bytes = size

    def begin(
        self,
        superfluous: list[Path],
        *,
        choice: str | None,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Get the journal under way after a start, before anybody is served.

        `superfluous`: journals that are not needed beside what was loaded. After a `choice` of
        the user's, what was loaded is saved first (SaveFailed), or they are kept aside. DiskError.
        """
        journal = self._journal
        if choice == "discard":  # before a new one is begun, which would make these superfluous
            for path in superfluous:
                aside = path.with_name(f"{path.name}.discarded-{time.time_ns()}")
                log.warning("%s is kept as %s", path, aside.name)
                path.rename(aside)
        if choice == "replay" and superfluous:
            journal.failed = "it is replayed and not begun anew yet"
            failure = self.save_now(progress)
            if failure is not None:
                raise failure
        else:
            try:
                if journal.appends and not journal.number:
                    journal.begin(self._file.digest, self._retries)
                else:
                    journal.sync()  # what it tells is served from now on, and repeats are answered
            except DiskError as error:
                self.failed(error)
        if superfluous and choice != "discard" and not journal.failed:
            # What makes them superfluous, a rename perhaps, is on disk before they go. And none
            # comes back later, when a journal before it has grown to the length that it follows.
            directory = self._file.path.parent
            sync_path(directory)
            for path in superfluous:
                path.unlink()
            sync_path(directory)

    def save_now(self, progress: Callable[[], None] = lambda: None) -> SaveFailed | None:
        """Save, and do all other tasks, while nobody is served; why it failed."""
        failures: list[SaveFailed | None] = []
        self.save(failures.append)
        self._tasks.finish(progress)
        return failures[0]

    def save(self, saved: Saved) -> None:
        """Have what the store holds now in the data file, and then call `saved`."""
        if self._saving and self._viewed in (None, self._store.changes):
            self._joined.append(saved)
            return
        self._waiting.append(saved)
        self._start()

    def _start(self) -> None:
        if not self._saving:
            self._saving = True
            asked, self._waiting = self._waiting, []
            self._tasks.add(self._save(asked))

    def _save(self, asked: list[Saved]) -> Task[None]:
        status = self._status
        started = time.monotonic()
        failure: SaveFailed | None = None
        try:
            yield from self._snapshot()
        except DiskError as error:
            hint = ""
            if error.errno == errno.EBUSY:
                hint = "; if the file itself is a mount point, mount its directory instead"
            failure = SaveFailed(f"cannot save {self._file.path}: {error}{hint}")
            failure.__cause__ = error
        except SaveFailed as error:
            failure = error
        except Exception:
            log.exception("a save failed")  # a fault; but whoever waits for it must not wait on
            failure = SaveFailed(f"cannot save {self._file.path}: see the daemon's log")
        if failure is not None:
            if status.last_save_error != str(failure):  # however often it is met, it is logged once
                log.error("%s", failure)
            status.last_save_error = str(failure)
            self._retry_at = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, RETRY_SECONDS_MAX)
        else:
            if status.last_save_error is not None:
                log.info("saved %s again", self._file.path)
            status.last_save_error = None
            status.last_save_time = time.time()
            status.last_save_duration_ms = round((time.monotonic() - started) * 1e3, 3)
            self._pause = RETRY_SECONDS
        self._tell(asked, failure)

    def _tell(self, asked: list[Saved], failure: SaveFailed | None) -> None:
        """Answer those who waited for the save that has ended, and begin what others wait for."""
        self._saving = False
        self._viewed = None
        joined, self._joined = self._joined, []
        if failure is None:
            asked += joined
        else:  # what failed may have been mended before they asked
            self._waiting = joined + self._waiting
        for saved in asked:
            saved(failure)
        if self._waiting:
            self._start()

    def _snapshot(self) -> Task[None]:
        self._keep_owning()
        journal = self._journal
        writing = self._file.write()
        try:
            yield from result(self._snapshots.do(writing.create))
            yield from self._gate.enter()
            # Between these two lines nothing can be appended: they are one moment.
            end, view = journal.end, self._store.view()
            self._viewed = self._store.changes
            locks, locked = self._store.locks.told(), self._store.locks.changes
            answers = None if journal.appends else self._retries.awaited()
            self._gate.leave()
            try:
                content = texts(self._store.content(view))
                self._file_bytes = yield from self._write(writing, content)
            except DiskError:
                yield from view.free()
                raise
            digest = yield from result(self._snapshots.do(writing.sync, locks, clock.told()))
            if journal.appends and not journal.failed:
                yield from self._publish(writing, digest, end)
            else:
                yield from self._publish_anew(writing, digest, answers, (self._viewed, locked))
            self._saved_changes, self._saved_locks = self._viewed, locked
        except Exception:
            yield from result(self._snapshots.do(writing.give_up))
            raise

    def _write(
        self, writing: Writing, parts: Iterator[tuple[bytes, Mapping[str, int]]]
    ) -> Task[int]:
        ahead: deque[Future[None]] = deque()
        gathered: list[bytes] = []
        expires: dict[str, int] = {}
        size = total = self._written_bytes = 0
        try:
            for part, deadlines in parts:
                expires.update(deadlines)
                gathered.append(part)
                size += len(part)
                if size >= PART_BYTES:
                    ahead.append(self._snapshots.do(writing.write, b"".join(gathered), expires))
                    gathered, expires, total, size = [], {}, total + size, 0
                    self._written_bytes = total
                yield ahead[0] if len(ahead) >= PARTS_AHEAD else None
                while ahead and ahead[0].done():
                    ahead.popleft().result()
            ahead.append(self._snapshots.do(writing.write, b"".join(gathered), expires))
        finally:
            # Nobody may close the file that a thread still writes to
            while ahead and not ahead[-1].done():
                yield ahead[-1]
        for written in ahead:
            written.result()
        return total + size

    def _publish(self, writing: Writing, digest: str, end: int) -> Task[None]:
        """Have the journal say which file holds what it has up to `end`, and put that in place."""
        journal = self._journal
        clean = journal.end == end
        try:
            journal.rebase(digest, end)
            rebased = journal.end
            yield from result(self._snapshots.do(journal.sync))
        except DiskError as error:
            self.failed(error)
            raise
        yield from result(self._snapshots.do(writing.publish))
        journal.rebased(end)
        # From here on the save has succeeded: if no new journal can be begun, the old one goes on.
        number = journal.number
        try:
            yield from result(self._snapshots.do(journal.prepare))
            clean = clean and journal.end == rebased
            journal.switch(digest if clean else None, self._retries)
        except DiskError as error:
            log.warning("no new journal was begun, the old one goes on: %s", error)
            return
        try:
            # The answers in its head are to be as safe as they were in the old one, which is synced
            # before, as it may go on for a while: what the new one tells is synced, is all of it
            yield from result(self._snapshots.do(journal.sync))
        except DiskError as error:
            self.failed(error)
        else:
            yield from result(self._snapshots.do(journal.drop, lambda n: n < number + clean))

    def _publish_anew(
        self, writing: Writing, digest: str, answers: list[Answer] | None, held: tuple[int, int]
    ) -> Task[None]:
        """Begin a journal with this snapshot: the one there was has failed, or is not kept.

        `held`: the changes of the store and of the locks that the snapshot holds. `answers`: of the
        writes that it holds, if there may be later ones, which a kill loses: their repeats are then
        to be carried out.
        """
        journal = self._journal
        if journal.failed and (self._store.changes, self._store.locks.changes) != held:
            raise SaveFailed(
                f"cannot save {self._file.path}: the journal failed meanwhile: {journal.failed}"
            )
        yield from result(self._snapshots.do(journal.prepare))
        journal.switch(digest, self._retries, answers)
        number = journal.number
        try:
            yield from result(self._snapshots.do(journal.sync, newest_only=True))
            yield from result(self._snapshots.do(writing.publish))
        except DiskError:
            if not writing.published:  # else only this journal tells what the data file holds
                journal.drop(lambda n: n == number)
            raise
        yield from result(self._snapshots.do(journal.drop, lambda n: n < number))
        # Until here a sync may still have met the file that failed. If a lock has ended since, no
        # journal tells that, and it is done once more
        if journal.failed and self._store.locks.changes == held[1]:
            log.info("writes are accepted again")
            journal.failed = None

    def refresh(self, progress: Callable[[], None] = lambda: None) -> bool:
        """Have the store hold what another program wrote to the data file; whether it does.

        Not if something is unsaved, and not while tasks run. `progress` is called while it reads.
        """
        if self.unsaved or not self._file.changed():
            return False
        try:
            table = self._file.load(lambda _what, _done: progress())
        except Unreadable as error:
            log.error("%s; what it held before is served", error)
            return False
        self._store.adopt(table, clear=True, expiring=self._file.take_deadlines())
        self.loaded(self._file.size)
        if self._journal.number:
            try:
                self._journal.begin(self._file.digest, self._retries)
            except DiskError as error:
                self.failed(error)
        return True

    def tick(self, now: float) -> float:
        """Begin what is due; when to be called again at the latest. Both time.monotonic()."""
        journal = self._journal
        if self._interval is not None and now >= self._save_at:
            self._save_at = now + self._interval
            if self.unsaved and not self._saving:
                self._start()
        again = min(now + RETRY_SECONDS_MAX, self._save_at)
        too_large = journal.size > max(CHECKPOINT_BYTES, self._file_bytes)
        if (journal.failed or (too_large and journal.appends)) and not self._saving:
            if now >= self._retry_at:
                self._start()
            again = min(again, self._retry_at)
        if not journal.unsynced or journal.failed:
            self._unsynced_since = None
        elif self._unsynced_since is None:
            self._unsynced_since = now
        if self._unsynced_since is not None and not self._syncing:
            due = self._unsynced_since + SYNC_SECONDS
            if now >= due:
                self._syncing = True
                self._unsynced_since = None
                self._tasks.add(self._sync())
            again = min(again, due)
        return again

    def _sync(self) -> Task[None]:
        try:
            yield from self.sync()
        except DiskError as error:
            self.failed(error)
        self._syncing = False

    def sync(self) -> Task[None]:
        """Wait until all that was appended is on disk. DiskError."""
        yield from result(self._syncs.do(self._journal.sync))

    def failed(self, error: DiskError) -> None:
        """The journal failed with `error`: writes are refused from now on."""
        self._journal.failed = str(error)
        self.failures += 1
        log.error("writes are refused until a save succeeds: %s", error)

    def end(self) -> None:
        """Leave no journal behind, if it would carry nothing that anybody may ask for."""
        if not self.unsaved and not self._retries.needed:
            self._journal.drop(lambda _number: True)

    def close(self) -> None:
        """End the threads."""
        self._snapshots.close()
        self._syncs.close()

    def _keep_owning(self) -> None:
        """Have the lock, anew if somebody removed its file; SaveFailed if it is another's now."""
        try:
            self._owner.restore()
        except AlreadyOwnedError as taken:
            why = f"it was removed, and pid {taken.pid} holds it now"
        except OSError as error:
            why = str(error.strerror)
        else:
            return
        raise SaveFailed(f"cannot save {self._file.path}: its lock file {self._owner.path}: {why}")
