"""Reaping: what is left of keys that are due is removed.

May live here: when that is done, and how much at once. For all commands these keys are gone
already; what is given back is their memory, and the next daemon need not hear of them. While
writes are refused nothing is removed: the journal could not be told, and the save that is to end
that has to hold all that was done.
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
        self._busy = False
        self._store = store
        self._journal = journal
        self._saver = saver
        self._tasks = tasks

    def begin(self) -> None:
        """Have it done between the turns, if there is anything to do."""
        if not self._busy and self._can_go_on:
            self._busy = True
            self._tasks.add(self._reap())

    @property
    def next_due(self) -> int | None:
        """When to `begin`, by the daemon's clock; None as long as there is nothing to do."""
        return None if self._busy or self._saver.refusing else self._store.next_due

    def _reap(self) -> Task[None]:
        try:
            yield from self.all_due()
        finally:
            self._busy = False

    @property
    def _can_go_on(self) -> bool:
        return self._store.behind and not self._store.folding and not self._saver.refusing

    def all_due(self) -> Task[None]:
        """Remove all that are due, as long as that can be done."""
        while self._can_go_on:
            self._some()
            yield None

    def _some(self) -> None:
        removed = self._store.reap(AT_ONCE)
        if removed and self._journal.appends:
            try:  # before anybody can set one of them again
                self._journal.write([records.effects({}, removed)], sync_now=False)
            except DiskError as error:
                self._saver.failed(error)
