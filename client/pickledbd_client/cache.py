"""Values kept at hand, and how their holder knows that they are current.

May live here: the mapped counter table of the daemon, and what `get` was answered. SPEC.md, The
counter table, holds the argument why what is found here is never stale. An entry names its slot
and the number that the slot had; it counts while the slot still has that number and the lease
the value that the daemon told. Everything may be called from any thread, in a signal handler
and in a forked child, which inherits the mapping: no lock is taken, and each state is replaced as
a whole.

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
from typing import Any

import orjson

from pickledbd_protocol import Reply, may_hold_binary, restore
from pickledbd_protocol import counters as layout

Entry = tuple[int, int, Any, Callable[[Any], Any] | None]
"""Slot, number, what is kept, and what makes the caller's copy of it (None: it is immutable)."""

Near = tuple[dict[str, Entry], Sequence[int], Sequence[int], int]
"""The entries of a generation; the counters of their table; its lease, and what that has to be."""

LOOK_SECONDS = 5.0
"""How often a table that could not be read is looked for again."""

SMALL = 1000
"""Bytes of a text that was written and is worth taking apart, so that its copies are quicker."""

_ENTRY_BYTES = 300
"""Of an entry, beside its key and its value: a tuple, two numbers, and its share of the dict."""

_NOTHING: Near = ({}, (), (), 0)
_SCALARS = frozenset({str, int, float, bool, type(None), bytes})

ABSENT: Any = object()
"""What a lookup finds where it is known that there is no such key."""

UNKNOWN: Any = object()
"""What a lookup finds where the daemon has to be asked."""


class Cache:
    """What was read of a daemon that has a counter table, within `limit` bytes; 0 for nothing."""

    def __init__(self, limit: int) -> None:
        self.near: Near = _NOTHING
        """For PickleDB.get, which looks here by itself: a further call would cost half as much."""
        self._old: Near = _NOTHING
        self._limit = limit // 2  # of each generation
        self._bytes = 0  # of the young one; threads that meet here may count it a little wrong
        self._table: tuple[str, Sequence[int]] = "", ()
        self._look_at = 0.0

    def lookup(self, key: str) -> Any:
        """A copy of the value of `key`, ABSENT or UNKNOWN."""
        near = self.near
        found = _find(near, key)
        if found is None:
            found = _find(self._old, key)
            if found is None:
                return UNKNOWN
            self._put(near, key, found)
        _, _, value, copy = found
        return value if copy is None else copy(value)

    def keep(
        self, key: str, text: bytes | None, reply: Reply, told: Mapping[str, Any] | None
    ) -> bool:
        """Have the answer to a get of `key`; `told`: what its daemon tells of its table.

        Or to a set, with the `text` that it wrote: kept only if the key was read before.
        To be called before anything else reads the reply. False if that table has ended although
        its daemon answers, so that the daemon is to be asked for another.
        """
        if not self._limit or not told:
            return True
        table = self._table
        if told["id"] != table[0] or (not table[1] and self._look_again()):
            self._bytes = 0
            self._old = _NOTHING
            self.near = near = _mapped(told)
            self._table = table = told["id"], near[1]
            if not table[1]:  # it may have been made again since the daemon told of it
                return False
        near = self.near
        entries, counters, alive, lease = near
        if counters is not table[1]:  # a thread that asked another daemon came in between
            return True
        slot, count = reply.result.get("slot"), reply.result.get("count")
        if type(slot) is not int or type(count) is not int or not 0 < slot < len(counters):
            return True
        if alive[0] != lease:
            return False
        if text is not None:
            if key in entries and len(text) <= self._limit:
                self._put(near, key, (slot, count, *_kept_text(text)))
        elif "value" in reply.result:
            kept = _kept(reply.result["value"], binary=reply.binary)
            self._put(near, key, (slot, count, *kept))
        else:
            self._put(near, key, (slot, count, None, _absent))
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
        self.near = self._old = _NOTHING
        self._table = "", ()

    def _put(self, near: Near, key: str, entry: Entry) -> None:
        entries, counters, alive, lease = near
        size = _size(key, entry)
        if size > self._limit:
            return
        replaced = entries.get(key)
        if replaced is not None:
            self._bytes -= _size(key, replaced)
        if self._bytes + size > self._limit:
            self._old = near
            self._bytes = 0
            entries = {}
            if self.near is near:  # else the table was changed meanwhile, or it was closed
                self.near = (entries, counters, alive, lease)
        self._bytes += size
        entries[key] = entry


def _find(near: Near, key: str) -> Entry | None:
    entries, counters, alive, lease = near
    entry = entries.get(key)
    if entry is None or counters[entry[0]] != entry[1] or alive[0] != lease:
        return None
    return entry


def _kept(value: Any, *, binary: bool) -> tuple[Any, Callable[[Any], Any] | None]:
    """What to keep of a value from the wire, and how it is copied for a caller."""
    kind = type(value)
    if kind in _SCALARS:
        return value, None
    # Where all its values are scalars, a copy is quicker than parsing
    if kind is dict and not binary and _SCALARS.issuperset(map(type, value.values())):
        return value.copy(), dict.copy
    if kind is list and not binary and _SCALARS.issuperset(map(type, value)):
        return value.copy(), list.copy
    text = bytes(memoryview(orjson.dumps(value)))  # orjson's own keeps the room it was written in
    return text, _load_restored if binary else orjson.loads


def _size(key: str, entry: Entry) -> int:
    """Bytes that an entry takes."""
    value = entry[2]
    size = _ENTRY_BYTES + getsizeof(key) + getsizeof(value)
    if type(value) is dict:
        size += sum(map(getsizeof, value)) + sum(map(getsizeof, value.values()))
    elif type(value) is list:
        size += sum(map(getsizeof, value))
    return size


def _kept_text(text: bytes) -> tuple[Any, Callable[[Any], Any] | None]:
    """The same of the text of a value."""
    binary = may_hold_binary(text)
    if len(text) > SMALL:
        return bytes(memoryview(text)), _load_restored if binary else orjson.loads
    return _kept(orjson.loads(text), binary=binary)


def _absent(_kept: None) -> Any:
    return ABSENT


def _load_restored(text: bytes) -> Any:
    return restore(orjson.loads(text))


def _mapped(told: Mapping[str, Any]) -> Near:
    """The table that a daemon tells of, empty of entries; _NOTHING if it can't be read."""
    try:
        file = os.open(told["path"], os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            found = os.fstat(file)
            if [found.st_dev, found.st_ino] != told["file"]:  # another's, or a mere copy
                return _NOTHING
            if not stat.S_ISREG(found.st_mode) or found.st_size != layout.TABLE_BYTES:
                return _NOTHING
            shared = mmap.mmap(file, layout.TABLE_BYTES, prot=mmap.PROT_READ)
        finally:
            os.close(file)
    except OSError:  # not for this user, or removed: then it is asked each time
        return _NOTHING
    known = layout.MAGIC + bytes.fromhex(told["id"])
    if shared[layout.MAGIC_AT : layout.MAGIC_AT + len(known)] != known:
        return _NOTHING
    lease_at = told["lease_at"]
    alive = memoryview(shared)[lease_at : lease_at + layout.LEASE_BYTES].cast("I")
    return {}, memoryview(shared).cast("Q"), alive, told["lease"]
