"""Values kept at hand, and how their holder knows that they are current.

May live here: the mapped counter table of the daemon, and what `get` was answered. SPEC.md, The
counter table, holds the argument why what is found here is never stale. An entry has all that it
is judged by: its slot, the number that the slot had, and the counters and the lease of the table
that the slot is in. It counts while the slot still has that number and the lease is 0. So
everything may be called from any thread, in a signal handler and in a forked child, which inherits
the mapping: no lock is taken, and entries of different tables may meet.

What was answered is kept as text at first, *raw*, since most of it is never read again; the first
read makes the entry of it that is quickest to read.

The bound in bytes is kept by two generations: new entries go into the young one; when that is
full it becomes the old one, and the old one is dropped. What is used meanwhile is young again.
"""

from __future__ import annotations

import mmap
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from sys import getsizeof
from typing import Any, NamedTuple

import orjson

from pickledbd_protocol import Reply, may_hold_binary, restore
from pickledbd_protocol import counters as layout

Entry = tuple[Sequence[int], int, int, Sequence[int], Any, Callable[[Any], Any] | None]
"""How it is known to be current: the counters, a slot, its number, the lease; then what is kept,
and what makes the caller's copy of it (None: it is immutable).

A raw one has RAW for its number, and keeps the number and the text.
"""

LOOK_SECONDS = 5.0
"""How often a table that could not be read is looked for again."""

LARGE = 2**16
"""Bytes of the text of a list or a dict that stays one: as objects it takes many times as many."""

RAW = -1
"""No counter is ever that."""

_ENTRY_BYTES = 300
"""Of an entry, beside its key and its value: a tuple, two numbers, and its share of the dict."""

_RAW_BYTES = 150
"""Of a raw one, beside these and its text: a tuple and the rest of the text."""

_SCALARS = frozenset({str, int, float, bool, type(None), bytes})

ABSENT: Any = object()
"""What a lookup finds where it is known that there is no such key."""

UNKNOWN: Any = object()
"""What a lookup finds where the daemon has to be asked."""


class Cache:
    """What was read of a daemon that has a counter table, within `limit` bytes; 0 for nothing."""

    def __init__(self, limit: int) -> None:
        self.young: dict[str, Entry] = {}
        """The same dict for ever, for PickleDB.get, which looks here by itself: a call would cost
        half as much again."""
        self._old: dict[str, Entry] = {}
        self._limit = limit // 2  # of each generation
        self._bytes = 0  # of the young one; threads that meet here may count it a little wrong
        self._table = _NONE
        self._look_at = 0.0

    def lookup(self, key: str) -> Any:
        """A copy of the value of `key`, ABSENT or UNKNOWN."""
        young, old = self.young, self._old
        for generation in (young, old):
            entry = generation.get(key)
            if entry is None:
                continue
            counters, slot, count, lease, value, copy = entry
            raw = count == RAW
            if raw:
                count, text = value
            if counters[slot] != count or lease[0]:
                continue
            if raw:
                value, copy = _kept(text)
                entry = counters, slot, count, lease, value, copy
            if raw or generation is old:
                self._put(key, entry)
            return value if copy is None else copy(value)
        return UNKNOWN

    def keep(
        self, key: str, text: bytes | None, reply: Reply, told: Mapping[str, Any] | None
    ) -> bool:
        """Have the answer to a get of `key`; `told`: what its daemon tells of its table.

        Or to a set, with the `text` that it wrote: kept only if the key was read lately.
        To be called before anything else reads the reply. False if that table has ended although
        its daemon answers, so that the daemon is to be asked for another.
        """
        if not self._limit or not told:
            return True
        table = self._table
        if told["id"] != table.id or (not table.counters and self._look_again()):
            self._drop()
            self._table = table = _mapped(told)
            if not table.counters:  # it may have been made again since the daemon told of it
                return False
        _, counters, lease = table
        result = reply.result
        slot, count = result.get("slot"), result.get("count")
        if type(slot) is not int or type(count) is not int or not 0 < slot < len(counters):
            return True
        if lease[0]:
            return False
        if text is None and "value" not in result:
            self._put(key, (counters, slot, count, lease, None, _absent))
        elif text is None or key in self.young:
            text = orjson.dumps(result["value"]) if text is None else text
            text = bytes(memoryview(text))  # orjson's own keeps the room that it was written in
            self._put(key, (counters, slot, RAW, lease, (count, text), None))
        return True

    def _look_again(self) -> bool:
        """Whether it is time to look for a table that was not found."""
        now = time.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + LOOK_SECONDS
        return True

    def close(self) -> None:
        """Hold nothing from now on."""
        self._limit = 0
        self._table = _NONE
        self._drop()

    def _drop(self) -> None:
        self.young.clear()
        self._old, self._bytes = {}, 0

    def _put(self, key: str, entry: Entry) -> None:
        size = _size(key, entry)
        if size > self._limit:
            return
        replaced = self.young.pop(key, None)  # for one of the threads that meet here
        if replaced is not None:
            self._bytes -= _size(key, replaced)
        if self._bytes + size > self._limit:
            # What another thread puts there in between is lost, which costs it a request
            self._old, self._bytes = self.young.copy(), 0
            self.young.clear()
        self._bytes += size
        self.young[key] = entry
        if not self._limit:  # it was closed meanwhile
            self._drop()


class _Table(NamedTuple):
    """A table that is mapped: its counters, and the byte that is its lease; none if it can't be."""

    id: str
    counters: Sequence[int]
    lease: Sequence[int]


_NONE = _Table("", (), ())


def _kept(text: bytes) -> tuple[Any, Callable[[Any], Any] | None]:
    """What to keep of a value on the wire, and how it is copied for a caller."""
    load = _load_restored if may_hold_binary(text) else orjson.loads
    if len(text) > LARGE and text[0] in b"[{":
        return text, load
    value = load(text)
    kind = type(value)
    if kind in _SCALARS:
        return value, None
    # Where all its values are scalars, a copy is quicker than parsing
    if kind is dict and _SCALARS.issuperset(map(type, value.values())):
        return value, dict.copy
    if kind is list and _SCALARS.issuperset(map(type, value)):
        return value, list.copy
    return text, load


def _size(key: str, entry: Entry) -> int:
    """Bytes that an entry takes."""
    _, _, count, _, value, _ = entry
    if count == RAW:
        return _ENTRY_BYTES + _RAW_BYTES + getsizeof(key) + len(value[1])
    size = _ENTRY_BYTES + getsizeof(key) + getsizeof(value)
    if type(value) is dict:
        size += sum(map(getsizeof, value)) + sum(map(getsizeof, value.values()))
    elif type(value) is list:
        size += sum(map(getsizeof, value))
    return size


def _absent(_kept: None) -> Any:
    return ABSENT


def _load_restored(text: bytes) -> Any:
    return restore(orjson.loads(text))


def _mapped(told: Mapping[str, Any]) -> _Table:
    """The table that a daemon tells of; one without counters if it can't be read."""
    none = _Table(told["id"], (), ())
    try:
        file = os.open(told["path"], os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            found = os.fstat(file)
            if [found.st_dev, found.st_ino] != told["file"]:  # another's, or a mere copy
                return none
            if not stat.S_ISREG(found.st_mode) or found.st_size != layout.TABLE_BYTES:
                return none
            shared = memoryview(mmap.mmap(file, layout.TABLE_BYTES, prot=mmap.PROT_READ))
        finally:
            os.close(file)
    except OSError:  # not for this user, or removed: then it is asked each time
        return none
    known = layout.MAGIC + bytes.fromhex(told["id"])
    if shared[layout.MAGIC_AT : layout.MAGIC_AT + len(known)] != known:
        return none
    lease_at = told["lease_at"]
    return _Table(told["id"], shared.cast("Q"), shared[lease_at : lease_at + 1])
