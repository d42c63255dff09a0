"""The data: keys to canonical JSON bytes, in insertion order, and what was just done to them.

May live here: the content, the count of its changes, and the log of those that are not committed
yet. It knows neither sockets nor files, and checks nothing: handlers prove a value before it
comes here. Everything runs in the loop's one thread, so each method is atomic.

Changes are made at once and logged. `commit` forgets the log once they are durable; `roll_back`
undoes them, last first, where they could not be made so.

A batch too large to be applied without holding the loop is *adopted*: from that moment its
entries count, since they are looked up first; they go into the table a chunk at a time (`fold`).
What concerns the whole content has to wait until that is done (`folding`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from pickledbd.counters import Counters
from pickledbd.table import Place, Table, View


@dataclass(slots=True)
class Change:
    """One key set (`value`) or removed (None), `many` set, or all `cleared`; and the way back."""

    table: Table
    key: str = ""
    value: bytes | None = None
    before: bytes | None = None
    place: Place | None = None
    cleared: Table | None = None
    many: dict[str, bytes] | None = None
    """Many keys set at once, whose values before are in `befores`."""
    befores: Sequence[bytes | None] = ()
    count: int = 0
    """The store's `changes` before it."""


class Store:
    """The content. `changes` counts every key set or removed since the start."""

    def __init__(self, table: Table | None = None, counters: Counters | None = None) -> None:
        self._table = Table() if table is None else table
        self.counters = Counters() if counters is None else counters
        self._adopted: Table | None = None
        self._garbage: list[Table] = []
        self._log: list[Change] = []
        self.changes = 0

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, key: str) -> bool:
        return key in self._table or (self._adopted is not None and key in self._adopted)

    def get(self, key: str) -> bytes | None:
        if self._adopted is not None:
            value = self._adopted.get(key)
            if value is not None:
                return value
        return self._table.get(key)

    def get_many(self, keys: list[str]) -> list[bytes | None]:
        if self._adopted is not None:
            return [self.get(key) for key in keys]
        return self._table.get_many(keys)

    def set_many(self, items: dict[str, bytes]) -> None:
        if self._adopted is not None:
            for key, value in items.items():
                self.set(key, value)
            return
        table = self._table
        befores = table.update(items)
        self._log.append(Change(table, many=items, befores=befores, count=self.changes))
        self.changes += len(items)
        self.counters.changed_many(items, len(items))

    def set(self, key: str, value: bytes) -> None:
        table = self._table
        if self._adopted is not None and (key in self._adopted or key not in table):
            table = self._adopted  # a new key comes after those that were adopted
        self._log.append(Change(table, key, value, table.set(key, value), count=self.changes))
        self.changes += 1
        self.counters.changed(key)

    def remove(self, key: str) -> bytes | None:
        """The value removed, or None if there was no such key."""
        removed = None
        for table in (self._table, self._adopted):
            if table is not None and key in table:
                place = table.place(key)
                removed = table.remove(key)
                self._log.append(Change(table, key, None, removed, place, count=self.changes))
        if removed is not None:
            self.changes += 1
            self.counters.changed(key)
        return removed

    def last_key(self) -> str | None:
        """The key that was inserted last, or None if there is none. Not while folding."""
        return self._table.last_key()

    def clear(self) -> None:
        """Remove everything. Not while folding."""
        cleared, self._table = self._table, Table()
        self._log.append(Change(self._table, cleared=cleared, count=self.changes))
        self.changes += len(cleared)
        self.counters.all_changed()

    # What the engine does with the changes that its handlers made

    def logged(self) -> int:
        """How many changes are not committed: where a command begins its own."""
        return len(self._log)

    def effect(self, start: int) -> tuple[dict[str, bytes], dict[str, None], bool]:
        """What the changes from `start` on come to: keys set, keys removed, whether cleared.

        To be applied as: clear, remove, set.
        """
        sets: dict[str, bytes] = {}
        removed: dict[str, None] = {}
        cleared = False
        for change in self._log[start:]:
            if change.cleared is not None:
                sets, removed, cleared = {}, {}, True
            elif change.many is not None:
                sets.update(change.many)
            elif change.value is not None:
                sets[change.key] = change.value
            else:
                sets.pop(change.key, None)
                removed[change.key] = None
        return sets, removed, cleared

    def commit(self) -> None:
        """Keep all changes."""
        for change in self._log:
            if change.cleared is not None:
                self._garbage.append(change.cleared)
        if self._log:
            self._table.trim()
            self._log.clear()

    def roll_back(self, start: int = 0) -> None:
        """Undo the changes from `start` on."""
        while len(self._log) > start:
            change = self._log.pop()
            self.changes = change.count
            if change.cleared is not None:
                self.counters.all_changed()
                self._garbage.append(self._table)
                self._table = change.cleared
            elif change.many is not None:
                self.counters.changed_many(change.many, len(change.many))
                for key, before in zip(
                    reversed(change.many), reversed(change.befores), strict=True
                ):
                    _restore(change.table, key, before)
            elif change.place is not None and change.before is not None:
                self.counters.changed(change.key)
                change.table.put_back(change.key, change.before, change.place)
            else:
                self.counters.changed(change.key)
                _restore(change.table, change.key, change.before)

    # Whole contents

    def view(self) -> View:
        """The content as it is now, which later changes leave alone. Not while folding."""
        return self._table.view()

    @property
    def folding(self) -> bool:
        """Whether an adopted batch is not in the table yet."""
        return self._adopted is not None

    def adopt(self, batch: Table, *, clear: bool) -> None:
        """Have all entries of `batch`, a table for the store alone, at once and committed.

        `clear`: and nothing else. Not while folding, and not while changes are uncommitted.
        """
        self.changes += len(batch)
        if clear:
            self.changes += len(self._table)
            self.counters.all_changed()
            self._garbage.append(self._table)
            self._table = batch
        else:
            self._adopted = batch
            self.counters.changed_many(chain.from_iterable(batch.chunks()), len(batch))

    def fold(self) -> Iterator[None]:
        """Put what was adopted where it belongs, a little at each step."""
        batch = self._adopted
        while batch:
            chunk = batch.take_chunk()
            self._table.extend(list(chunk), list(chunk.values()))
            yield
        self._adopted = None
        if batch is not None:
            self._garbage.append(batch)

    @property
    def garbage(self) -> bool:
        """Whether there is something to `free`."""
        return any(not table.viewed for table in self._garbage)

    def free(self) -> Iterator[None]:
        """Give back the memory of what was cleared, a little at each step."""
        for table in [table for table in self._garbage if not table.viewed]:
            self._garbage.remove(table)
            yield from table.free()


def _restore(table: Table, key: str, before: bytes | None) -> None:
    if before is None:
        table.remove(key)
    else:
        table.set(key, before)
