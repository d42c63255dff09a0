"""Names by the time at which they are due, found without looking at the rest.

May live here: that structure. After hierarchical timing wheels (Varghese and Lauck, 1987), with a
heap in place of the wheel. Times are the daemon's clock's, in milliseconds. What is due soon
stands in a bucket of its millisecond; what is due later, in one of many seconds, and is moved on
before its time comes. No step takes long, however many names are due at once: a large bucket is
many dicts, each of which stays small enough to grow quickly, and none of interest to the
garbage collector.

Its memory is that of the names in it, however many have come and gone: of those whose time moves
on again and again, as a session's does, each leaves a bucket that may stand there for a month.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from itertools import chain
from sys import getsizeof
from typing import Generic, TypeVar

from pickledbd.clock import now_ms

Name = TypeVar("Name", bound=Hashable)
Key = TypeVar("Key")
Value = TypeVar("Value")

FAR_MS = 2**14
"""The width of the buckets for later, and how long before its beginning such a one is moved on."""

LARGE = 4096
"""Names in a bucket that is one dict. Many dicts become one again at half of that."""

SHARDS = 256

MOVES = 4
"""Names that are moved on in the time that one takes to be dealt with."""

ENTRY_BYTES = 200
"""What a dict may take for each of its entries: more than twice what one does that only grew."""

STALE = 64
"""Times without a bucket that a level may have beside as many as it has buckets."""


class _Bucket(Generic[Name]):
    """Names, each with its time."""

    __slots__ = ("_emptied", "_shards", "count", "times")

    def __init__(self) -> None:
        self.count = 0
        self.times: dict[int, int] = {}  # how many there are of each
        self._shards: list[dict[Name, int]] = [{}]
        self._emptied = 0  # there is nothing in so many of the first

    def add(self, name: Name, at: int) -> None:
        shards = self._shards
        number = hash(name) & (len(shards) - 1)
        self._emptied = min(self._emptied, number)
        shard = shards[number]
        if name in shard:
            self._lose(shard[name])
        shard[name] = at
        self.count += 1
        self.times[at] = self.times.get(at, 0) + 1
        if self.count > LARGE and len(shards) == 1:
            self._shards = [{} for _ in range(SHARDS)]
            for each in shard:
                self._shards[hash(each) & (SHARDS - 1)][each] = shard[each]

    def discard(self, name: Name, at: int) -> bool:
        number = hash(name) & (len(self._shards) - 1)
        shard = self._shards[number]
        if shard.get(name) != at:
            return False
        del shard[name]
        self._shards[number] = _fitting(shard)
        self._lose(at)
        if self.count <= LARGE // 2 and len(self._shards) > 1:
            self._shards = [dict(chain.from_iterable(each.items() for each in self._shards))]
            self._emptied = 0
        return True

    def take(self) -> tuple[Name, int]:
        """Remove one of those that there are."""
        while not self._shards[self._emptied]:
            self._emptied += 1
        shard = self._shards[self._emptied]
        name, at = shard.popitem()
        self._shards[self._emptied] = _fitting(shard)
        self._lose(at)
        return name, at

    def _lose(self, at: int) -> None:
        self.count -= 1
        self.times[at] -= 1
        if not self.times[at]:
            del self.times[at]
            self.times = _fitting(self.times)


class _Level(Generic[Name]):
    """Buckets by their time, the earliest first."""

    def __init__(self) -> None:
        self.buckets: dict[int, _Bucket[Name]] = {}  # in each of which there is something
        self.times: list[int] = []  # a heap of theirs, and of some that are gone

    def add(self, name: Name, at: int, bucket_at: int) -> None:
        bucket = self.buckets.get(bucket_at)
        if bucket is None:
            bucket = self.buckets[bucket_at] = _Bucket()
            heapq.heappush(self.times, bucket_at)
        bucket.add(name, at)

    def discard(self, name: Name, at: int, bucket_at: int) -> bool:
        bucket = self.buckets.get(bucket_at)
        if bucket is None or not bucket.discard(name, at):
            return False
        if not bucket.count:
            del self.buckets[bucket_at]
            self._forget_stale()
        return True

    def first(self) -> int | None:
        """When the earliest is due; None if there is none."""
        while self.times and self.times[0] not in self.buckets:
            heapq.heappop(self.times)
        return self.times[0] if self.times else None

    def pop(self, until: int) -> Iterator[tuple[int, _Bucket[Name]]]:
        """Remove those that are due until then."""
        while (at := self.first()) is not None and at <= until:
            yield at, self.buckets.pop(at)
        self._forget_stale()

    def _forget_stale(self) -> None:
        if len(self.times) > 2 * len(self.buckets) + STALE:
            self.buckets = _fitting(self.buckets)
            self.times = list(self.buckets)
            heapq.heapify(self.times)


class Wheel(Generic[Name]):
    """Names, each due at the time that it was added with."""

    def __init__(self) -> None:
        self._near: _Level[Name] = _Level()
        self._far: _Level[Name] = _Level()
        self._due: dict[int, _Bucket[Name]] = {}  # buckets of `near` whose time has come
        self._moving: dict[int, _Bucket[Name]] = {}  # and those of `far` that are moved on
        self._overdue = 0  # names in the former
        self.used = False
        """Whether there may be anything in it."""

    def add(self, name: Name, at: int) -> None:
        """Have `name` due at that time."""
        self.used = True
        if at - now_ms() >= 2 * FAR_MS:
            self._far.add(name, at, _far(at))
            return
        # It may stand among those for later, from a time when this was later
        if not self._far.discard(name, at, _far(at)) and _far(at) in self._moving:
            self._moving[_far(at)].discard(name, at)
        if at in self._due:
            self._overdue -= self._due[at].count
            self._due[at].add(name, at)
            self._overdue += self._due[at].count
        else:
            self._near.add(name, at, at)

    def discard(self, name: Name, at: int) -> None:
        """Forget `name`, if it was added with that time."""
        if self._near.discard(name, at, at) or self._far.discard(name, at, _far(at)):
            return
        if _far(at) in self._moving and self._moving[_far(at)].discard(name, at):
            return
        if at in self._due and self._due[at].discard(name, at):
            self._overdue -= 1

    @property
    def next(self) -> int | None:
        """When there is something to `take`, or to be moved on; None if there is nothing."""
        if not self.used:
            return None
        if self._due or self._moving:
            return 0
        near, far = self._near.first(), self._far.first()
        if far is None:
            self.used = near is not None
            return near
        return far - FAR_MS if near is None else min(near, far - FAR_MS)

    def overdue(self, now: int) -> int:
        """How many names are due at `now`."""
        self._advance(now)
        late = (bucket.times.items() for at, bucket in self._moving.items() if at <= now)
        return self._overdue + sum(count for at, count in chain.from_iterable(late) if at <= now)

    def take(self, now: int, most: int) -> list[Name]:
        """Remove names that are due at `now`, in a time that is bounded by `most`."""
        self._advance(now)
        for at, bucket in list(self._moving.items())[:1]:
            for _ in range(min(bucket.count, MOVES * most)):
                self.add(*bucket.take())
            if not bucket.count:
                del self._moving[at]
        taken: list[Name] = []
        while self._due and len(taken) < most:
            at = next(iter(self._due))
            bucket = self._due[at]
            while bucket.count and len(taken) < most:
                taken.append(bucket.take()[0])
                self._overdue -= 1
            if not bucket.count:
                del self._due[at]
        self._look_whether_used()
        return taken

    def _advance(self, now: int) -> None:
        """Know what is due at `now`."""
        self._moving.update(self._far.pop(now + FAR_MS))
        for at, bucket in self._near.pop(now):
            self._due[at] = bucket
            self._overdue += bucket.count
        self._look_whether_used()

    def _look_whether_used(self) -> None:
        self.used = bool(self._near.buckets or self._far.buckets or self._due or self._moving)

    viewed = False  # as a table has it: whether it must not be freed yet

    def free(self) -> Iterator[None]:
        """Give the memory back, a little at each step."""
        for buckets in (self._near.buckets, self._far.buckets, self._due, self._moving):
            while buckets:
                _, bucket = buckets.popitem()
                while bucket.count:
                    bucket.take()
                    yield


def _far(at: int) -> int:
    return at // FAR_MS * FAR_MS


def _fitting(entries: dict[Key, Value]) -> dict[Key, Value]:
    """The same, but in a new dict if there were many more: a dict keeps its room."""
    if getsizeof(entries) <= ENTRY_BYTES * (len(entries) + 1):
        return entries
    return dict(entries.items())  # as a mere dict(entries) may take over the room
