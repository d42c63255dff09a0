"""The data: keys to canonical JSON bytes, in insertion order, and what was just done to them.

May live here: the content, the count of its changes, and the log of those that are not committed
yet. It knows neither sockets nor files, and checks nothing: handlers prove a value before it
comes here. Everything runs in the loop's one thread, so each method is atomic.

Changes are made at once and logged. `commit` forgets the log once they are durable; `roll_back`
undoes them, last first, where they could not be made so.

A batch too large to be applied without holding the loop is *adopted*: from that moment its
entries count, since they are looked up first; they go into the table a chunk at a time (`fold`).
What concerns the whole content has to wait until that is done (`folding`).

A key that expires is gone at its deadline, though it stays in the table until `reap` comes to it:
whoever looks at a value looks at its deadline too. The store also has what the changes go with:
the counters, the feed, and the locks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

from pickledbd import watches
from pickledbd.clock import now_ms
from pickledbd.counters import Counters
from pickledbd.expiry import (
    NEVER,
    Piece,
    deadline_of,
    is_due,
    living,
    stamped,
    text_at,
    text_of,
    without,
)
from pickledbd.last import LastKey
from pickledbd.locks import Locks
from pickledbd.table import Place, Table, View
from pickledbd.wheel import Wheel

ENTRY_BYTES = 150
"""What an entry takes beside the characters of its key and the bytes of its value: the headers of
both, and its place in a chunk and in the index (measured: 138 to 145, with CPython 3.11)."""

LOOKED_AT_ONCE = 2000
"""Keys that are looked at in one step, to find the last one."""


class Size(NamedTuple):
    """How many entries, and the bytes of memory that they take."""

    keys: int
    bytes: int

    def plus(self, more: Size) -> Size:
        """Both together."""
        return Size(self.keys + more.keys, self.bytes + more.bytes)


@dataclass(slots=True)
class Change:
    """One key set (`value`) or removed (None), `many` set, or all `cleared`; and the way back.

    Or something else, which `undo` undoes.
    """

    table: Table
    key: str = ""
    value: bytes | None = None
    before: bytes | None = None
    place: Place | None = None
    cleared: Table | None = None
    wheel: Wheel[str] | None = None
    """The deadlines before all was cleared."""
    deadline_only: bool = False
    """Only when the key expires was changed."""
    again: bool = False
    """It is the removal of a key which the change before has removed from another table."""
    undo: Callable[[], None] | None = None
    effect: dict[str, Any] | None = None
    many: dict[str, bytes] | None = None
    """Many keys set at once, whose values before are in `befores`."""
    befores: Sequence[bytes | None] = ()
    count: int = 0
    """The store's `changes` before it."""


@dataclass(slots=True)
class Effect:
    """What some changes come to. To be applied in this order: clear, remove, set, expire."""

    sets: dict[str, bytes] = field(default_factory=dict)
    """The texts of keys that were set, which do not expire but for those in `expires`."""
    removed: dict[str, None] = field(default_factory=dict)
    clear: bool = False
    expires: dict[str, int | None] = field(default_factory=dict)
    """The deadlines of keys."""
    others: dict[str, Any] = field(default_factory=dict)
    """What happened beside the content."""


class Store:
    """The content. `changes` counts every key set or removed since the start."""

    def __init__(
        self,
        table: Table | None = None,
        counters: Counters | None = None,
        locks: Locks | None = None,
        *,
        expiring: Iterable[str] = (),
    ) -> None:
        """`expiring`: those keys of the `table` whose values have a deadline."""
        self._table = Table() if table is None else table
        self.counters = Counters() if counters is None else counters
        self.locks = Locks() if locks is None else locks
        self.feed = watches.Feed()
        self._wheel: Wheel[str] = Wheel()
        self._expect(expiring)
        self._last = LastKey(self._table)
        self._adopted: Table | None = None
        self._garbage: list[Table | Wheel[str]] = []
        self._log: list[Change] = []
        self.changes = 0
        self.expired = 0
        """How many keys were removed since they were due."""

    def __len__(self) -> int:
        """How many keys there are; while folding, of those that were adopted about those so far."""
        overdue = self._wheel.overdue(now_ms()) if self._wheel.used else 0
        return max(0, len(self._table) - overdue)

    @property
    def size(self) -> Size:
        """What all entries take; while folding, those to be put in place in addition."""
        table, adopted = self._table, self._adopted
        keys, held = len(table), table.bytes
        if adopted is not None:
            keys += len(adopted)
            held += adopted.bytes
        return Size(keys, held + ENTRY_BYTES * keys)

    def sized_with(self, batch: Table, *, clear: bool) -> Iterator[Size | None]:
        """What all would take once `batch` is adopted, in the last of several steps."""
        keys, held = len(batch), batch.bytes
        for chunk in batch.chunks() if not clear else ():
            befores = self._table.get_many(chunk)
            known = [(key, v) for key, v in zip(chunk, befores, strict=True) if v is not None]
            keys -= len(known)
            held -= sum(len(key) + len(value) for key, value in known)
            yield None
        if not clear:  # with what others have added meanwhile
            keys, held = keys + len(self._table), held + self._table.bytes
        yield Size(keys, held + ENTRY_BYTES * keys)

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def _stored(self, key: str) -> bytes | None:
        if self._adopted is not None:
            value = self._adopted.get(key)
            if value is not None:
                return value
        return self._table.get(key)

    def get(self, key: str) -> bytes | None:
        """The text of a value; None if there is no such key."""
        value = self._stored(key)
        return value if value is None or value[0] else text_at(value, now_ms())

    def deadline(self, key: str) -> int | None:
        """When the key, which must be there, expires; None if it does not."""
        if not self._wheel.used and self._adopted is None:
            return None
        value = self._stored(key)
        return None if value is None else deadline_of(value)

    def get_many(self, keys: list[str]) -> list[bytes | None]:
        if self._adopted is not None:
            return [self.get(key) for key in keys]
        values = self._table.get_many(keys)
        if self._wheel.used:
            now = now_ms()
            values = [v if v is None or v[0] else text_at(v, now) for v in values]
        return values

    def set_many(self, items: dict[str, bytes], deadlines: Mapping[str, int] = NEVER) -> None:
        """Have these values, until their deadlines where there are some."""
        # A key that is due and set again is a new one
        if self._adopted is not None or self.behind:
            for key, value in items.items():
                self.set(key, value, deadlines.get(key))
            return
        if deadlines:
            items = {key: stamped(text, deadlines.get(key)) for key, text in items.items()}
        table = self._table
        befores = table.update(items)
        self._log.append(Change(table, many=items, befores=befores, count=self.changes))
        self.changes += len(items)
        self.counters.changed_many(items, len(items))
        if deadlines or self._wheel.used:
            for key, before in zip(items, befores, strict=True):
                self._turn_wheel(key, before, deadlines.get(key))

    def set(self, key: str, text: bytes, deadline: int | None = None) -> None:
        """Have the value of this text, until `deadline` if there is one."""
        if self._wheel.used or self._adopted is not None:
            before = self._stored(key)
            if before is not None and is_due(before):
                self.remove(key)
        self._change(key, stamped(text, deadline))

    def expire(self, key: str, deadline: int | None) -> None:
        """Have the key, which must be there, expire at another time; None: never."""
        value = self._stored(key)
        if value is not None:
            self._change(key, stamped(text_of(value), deadline), deadline_only=True)

    def _change(self, key: str, value: bytes, *, deadline_only: bool = False) -> None:
        table = self._table
        if self._adopted is not None and (key in self._adopted or key not in table):
            table = self._adopted  # a new key comes after those that were adopted
        before = table.set(key, value)
        self._log.append(
            Change(table, key, value, before, count=self.changes, deadline_only=deadline_only)
        )
        self.changes += 1
        self.counters.changed(key)
        if not value[0] or self._wheel.used:
            self._turn_wheel(key, before, deadline_of(value))

    def _turn_wheel(self, key: str, before: bytes | None, deadline: int | None) -> None:
        """The key's stored value was `before`, and now has this deadline."""
        if before is not None:
            known = deadline_of(before)
            if known is not None and known != deadline:
                self._wheel.discard(key, known)
        if deadline is not None:
            self._wheel.add(key, deadline)

    def remove(self, key: str) -> bytes | None:
        """The text of the value removed, or None if there was no such key."""
        removed: list[bytes] = []
        for table in (self._table, self._adopted):
            if table is not None and key in table:
                place = table.place(key)
                value = table.remove(key)
                self._log.append(
                    Change(table, key, None, value, place, count=self.changes, again=bool(removed))
                )
                if value is not None:
                    removed.append(value)
                    if not value[0]:
                        self._turn_wheel(key, value, None)
        if not removed:
            return None
        self.changes += 1
        self.counters.changed(key)
        return text_at(removed[-1], now_ms())

    def find_last(self) -> bool:
        """Whether `last_key` can tell it at once. Else each further call comes closer to that."""
        return not self._wheel.used or self._last.find(now_ms(), LOOKED_AT_ONCE)[0]

    def last_key(self) -> str | None:
        """The key that was inserted last, or None if there is none. Not while folding."""
        return self._last.find(now_ms())[1] if self._wheel.used else self._table.last_key()

    def clear(self) -> None:
        """Remove everything. Not while folding."""
        cleared, self._table = self._table, Table()
        self._last = LastKey(self._table)
        wheel, self._wheel = self._wheel, Wheel()
        self._log.append(Change(self._table, cleared=cleared, wheel=wheel, count=self.changes))
        self.changes += len(cleared)
        self.counters.all_changed()

    def did(self, undo: Callable[[], None], effect: dict[str, Any]) -> None:
        """Something else was done, which is to be undone if the changes are."""
        self._log.append(Change(self._table, undo=undo, effect=effect, count=self.changes))

    # What the engine does with the changes that its handlers made

    def logged(self) -> int:
        """How many changes are not committed: where a command begins its own."""
        return len(self._log)

    def was_set(self, start: int) -> Iterator[Mapping[str, bytes]]:
        """What was set by the changes from `start` on."""
        for change in self._log[start:]:
            if change.many is not None:
                yield change.many
            elif change.value is not None and not change.deadline_only:
                yield {change.key: change.value}

    def effect(self, start: int) -> Effect:
        """What the changes from `start` on come to."""
        effect = Effect()
        for change in self._log[start:]:
            if change.effect is not None:
                effect.others |= change.effect
            elif change.cleared is not None:
                effect = Effect(clear=True, others=effect.others)
            elif change.many is not None:
                for key, value in change.many.items():
                    _set(effect, key, value)
            elif change.value is None:
                effect.sets.pop(change.key, None)
                effect.expires.pop(change.key, None)
                effect.removed[change.key] = None
            elif change.deadline_only:
                effect.expires[change.key] = deadline_of(change.value)
            else:
                _set(effect, change.key, change.value)
        return effect

    def commit(self) -> None:
        """Keep all changes."""
        if not self._log:
            return
        tell = self._tell if self.feed.active else None
        told = False
        for change in self._log:
            if change.cleared is not None:
                self._garbage.append(change.cleared)
                if change.wheel is not None and change.wheel.used:
                    self._garbage.append(change.wheel)
            # Where a batch was adopted, a key may have been removed from two tables
            if change.undo is None and not change.again:
                if tell is not None:
                    tell(change)
                told = True
        if told and tell is None:
            self.feed.skip()
        self._table.trim()
        self._log.clear()

    def _tell(self, change: Change) -> None:
        """Have those who watch know of it."""
        feed = self.feed
        if change.deadline_only:
            return
        if change.cleared is not None:
            feed.note_all(len(change.cleared), _removed(change.cleared))
        elif change.many is not None:
            feed.note_all(len(change.many), _set_to(change.many))
        else:
            feed.note(change.key, None if change.value is None else text_of(change.value))

    def roll_back(self, start: int = 0) -> None:
        """Undo the changes from `start` on."""
        undone = len(self._log) > start
        while len(self._log) > start:
            change = self._log.pop()
            self.changes = change.count
            if change.undo is not None:
                change.undo()
            elif change.cleared is not None:
                self.counters.all_changed()
                self._garbage.append(self._table)
                self._table = change.cleared
                if change.wheel is not None:
                    self._wheel = change.wheel
            elif change.many is not None:
                self.counters.changed_many(change.many, len(change.many))
                for (key, value), before in zip(
                    reversed(change.many.items()), reversed(change.befores), strict=True
                ):
                    self._restore(change.table, key, value, before)
            elif change.place is not None and change.before is not None:
                self.counters.changed(change.key)
                change.table.put_back(change.key, change.before, change.place)
                self._expect_value(change.key, change.before)
            elif change.value is not None:
                self.counters.changed(change.key)
                self._restore(change.table, change.key, change.value, change.before)
        if undone:
            self._last = LastKey(self._table)

    def _restore(self, table: Table, key: str, value: bytes, before: bytes | None) -> None:
        """Undo that a key, whose stored value was `before`, has `value`."""
        if before is None:
            table.remove(key)
        else:
            table.set(key, before)
        deadline = None if before is None else deadline_of(before)
        if self._wheel.used or deadline is not None:
            self._turn_wheel(key, value, deadline)

    # Keys that expire

    def _expect(self, keys: Iterable[str]) -> None:
        for key in keys:
            value = self._table.get(key)
            if value is not None:
                self._expect_value(key, value)

    def _expect_value(self, key: str, value: bytes) -> None:
        deadline = deadline_of(value)
        if deadline is not None:
            self._wheel.add(key, deadline)

    @property
    def expires(self) -> bool:
        """Whether there may be a key that expires."""
        return self._wheel.used

    @property
    def next_due(self) -> int | None:
        """When a key may be due, in milliseconds of the daemon's clock."""
        return self._wheel.next

    @property
    def behind(self) -> bool:
        """Whether there is something to `reap`."""
        due = self._wheel.next
        return due is not None and due <= now_ms()

    def reap(self, most: int) -> list[str]:
        """Remove keys that are due, `most` at most; those.

        Not while folding, nor while anything is uncommitted.
        """
        removed = []
        now = now_ms()
        for key in self._wheel.take(now, most):
            value = self._table.get(key)
            if value is not None and is_due(value):
                self._table.remove(key)
                self.changes += 1
                self.counters.changed(key)
                removed.append(key)
                if self.feed.active:
                    self.feed.note(key, None)
            elif value is not None:
                self._expect_value(key, value)
        if removed:
            self.expired += len(removed)
            self._table.trim()
            if not self.feed.active:
                self.feed.skip()
        return removed

    # Whole contents

    def view(self) -> View:
        """The content as it is now, which later changes leave alone. Not while folding."""
        return self._table.view()

    def content(self, view: View) -> Iterator[Piece]:
        """What is in a `view`, which was made just now, without what is gone by now."""
        return living(view, now_ms()) if self.expires else without(view)

    @property
    def folding(self) -> bool:
        """Whether an adopted batch is not in the table yet."""
        return self._adopted is not None

    def adopt(
        self,
        batch: Table,
        *,
        clear: bool,
        expiring: Iterable[str] = (),
        wheel: Wheel[str] | None = None,
    ) -> None:
        """Have all entries of `batch`, a table for the store alone, at once and committed.

        `clear`: and nothing else; then those keys whose values have a deadline are `expiring`, or
        in the `wheel`. Not while folding, and not while changes are uncommitted.
        """
        count = len(batch)
        told: Iterable[watches.Change] = chain.from_iterable(map(_set_to, batch.chunks()))
        if clear:
            count += len(self._table)
            told = chain(_removed(self._table), told)
            self.counters.all_changed()
            self._garbage += [self._table, self._wheel]
            self._table, self._wheel = batch, Wheel() if wheel is None else wheel
            self._last = LastKey(self._table)
            self._expect(expiring)
        else:
            self._adopted = batch
            self.counters.changed_many(chain.from_iterable(batch.chunks()), len(batch))
        self.changes += count
        self.feed.note_all(count, told)

    def fold(self) -> Iterator[None]:
        """Put what was adopted where it belongs, a little at each step."""
        batch = self._adopted
        while batch:
            chunk = batch.take_chunk()
            for key, value in chunk.items():
                if not value[0] or self._wheel.used:
                    self._turn_wheel(key, self._table.get(key), deadline_of(value))
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


def _removed(table: Table) -> Iterator[watches.Change]:
    """As watchers are told that all of it was removed."""
    return ((key, None) for key in chain.from_iterable(table.chunks()))


def _set_to(items: Mapping[str, bytes]) -> Iterator[watches.Change]:
    """As watchers are told that these keys were set to these stored values."""
    return ((key, text_of(value)) for key, value in items.items())


def _set(effect: Effect, key: str, value: bytes) -> None:
    if value[0]:
        effect.expires.pop(key, None)
    else:
        effect.expires[key] = deadline_of(value)
    effect.sets[key] = text_of(value)
