"""Reaping: what is left of keys that are due is removed.

May live here: when that is done, and how much at once. For all commands these keys are gone
already; what is given back is their memory, and the next daemon need not hear of them.
"""

from __future__ import annotations

from pickledbd import records
from pickledbd.disk import DiskError
from pickledbd.journal import Journal
from pickledbd.saver import Saver
from pickledbd.store import Store
from pickledbd.tasks import Task, Tasks

AT_ONCE = 64
"""Keys that are removed in one step."""


class Reaper:
    """Removes keys that are due from the store, a few at a time."""

    def __init__(self, store: Store, journal: Journal, saver: Saver, tasks: Tasks) -> None:
        self.busy = False
        """Whether it is at it."""
        self._store = store
        self._journal = journal
        self._saver = saver
        self._tasks = tasks

    def begin(self) -> None:
        """Have it done between the turns, if there is anything to do."""
        if self._store.behind and not self.busy and not self._store.folding:
            self.busy = True
            self._tasks.add(self._reap())

    def _reap(self) -> Task[None]:
        try:
            yield from self.all_due()
        finally:
            self.busy = False

    def all_due(self) -> Task[None]:
        """Remove all that are due, unless a batch is folded meanwhile."""
        while self._store.behind and not self._store.folding:
            self._some()
            yield None

    def _some(self) -> None:
        removed = self._store.reap(AT_ONCE)
        if removed and self._journal.appends and not self._saver.refusing:
            try:  # before anybody can set one of them again
                self._journal.write([records.effects({}, removed)], sync_now=False)
            except DiskError as error:
                self._saver.failed(error)
