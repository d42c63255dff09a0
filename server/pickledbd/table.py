"""An ordered map from key to bytes, each step of which is short however many keys it holds.

May live here: the map, and views of it. One big dict would do, but for its worst steps: growing
it beyond ten million keys takes a second, and so does copying or freeing it. So the entries
stand in *chunks*, small dicts in order of insertion, and an *index* of many small dicts tells the
number of each key's chunk. All keys of a chunk share one int object, and neither kind of dict
holds anything that the garbage collector would have to visit.

A `View` is the content of one moment. It is made without copying anything: whoever then changes a
chunk that a view has not passed yet first leaves it a copy (copy-on-write), so what a view adds is
bounded by the dicts, without what they hold.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

CHUNK = 341
"""Keys in a chunk: what a dict holds in 512 slots, so that a full chunk wastes nothing."""

PIECE_BYTES = 2**17
"""A view gives no more than this at once, unless one entry is larger."""

MISSED_AT_ONCE = 1000
"""Numbers of chunks that are gone, which a view skips in one step."""

SHARDS = 1024
"""Dicts of the index; each stays small enough to grow in well under a millisecond."""

_MASK = SHARDS - 1

_NO_CHUNK: dict[str, bytes] = {}

Entries = tuple[Collection[str], Collection[bytes]]
"""Some keys and their values, in the same order."""

Place = tuple[int, int]
"""Where a key stood: the number of its chunk, and how many keys stood before it there."""


def _pieces(keys: list[str], values: list[bytes]) -> Iterator[Entries]:
    start = size = 0
    for stop, (key, value) in enumerate(zip(keys, values, strict=True), 1):
        size += len(key) + len(value)
        if size >= PIECE_BYTES or stop == len(keys):
            yield keys[start:stop], values[start:stop]
            start, size = stop, 0


def _bytes_of(chunk: Mapping[str, bytes]) -> int:
    return sum(map(len, chunk)) + sum(map(len, chunk.values()))


class View:
    """The content of a table at one moment, read once, chunk by chunk. `close` it when done."""

    def __init__(self, chunks: dict[int, dict[str, bytes]], last: int, views: list[View]) -> None:
        self._chunks = chunks  # as they are now; what changes before it is read is in _kept
        self._kept: dict[int, dict[str, bytes]] = {}
        self._next = next(iter(chunks), last + 1)
        self._last = last
        self._views = views
        views.append(self)

    def __iter__(self) -> Iterator[Entries]:
        """The entries, some at a time. What is yielded is to be used before the table changes."""
        missed = 0
        while self._next <= self._last:
            chunk = self._kept.pop(self._next, None)
            if chunk is None:  # not merely empty, as it may have been at the view's moment
                chunk = self._chunks.get(self._next)
            self._next += 1
            if not chunk:
                missed += 1
                if missed % MISSED_AT_ONCE == 0:
                    yield (), ()
                continue
            keys, values = chunk.keys(), chunk.values()
            if sum(map(len, keys)) + sum(map(len, values)) <= PIECE_BYTES:
                yield keys, values
            else:
                yield from _pieces(list(keys), list(values))
        self.close()

    def keep(self, number: int, chunk: dict[str, bytes]) -> None:
        """Have a copy of a chunk that is about to change, if it is still to be read.

        The copy is a dict too, which the garbage collector leaves alone: lists of all these keys
        would hold everybody up each time that it looks through them.
        """
        if self._next <= number <= self._last and number not in self._kept:
            self._kept[number] = chunk.copy()

    def close(self) -> None:
        """Need no further copies."""
        if self in self._views:
            self._views.remove(self)

    def free(self) -> Iterator[None]:
        """Close it before its end, and give its copies back, a little at each step."""
        self.close()
        while self._kept:
            self._kept.popitem()
            yield


class Table:
    """Keys to bytes, in order of insertion."""

    def __init__(self) -> None:
        self._index: list[dict[str, int]] = [{} for _ in range(SHARDS)]
        self._chunks: dict[int, dict[str, bytes]] = {}
        self._first = 0
        self._last = -1
        self._tail: dict[str, bytes] | None = None
        self._length = 0
        self.bytes = 0
        """Characters of all keys and bytes of all values."""
        self._views: list[View] = []
        self._emptied: list[int] = []

    def __len__(self) -> int:
        return self._length

    def __contains__(self, key: str) -> bool:
        return key in self._index[hash(key) & _MASK]

    def get(self, key: str) -> bytes | None:
        number = self._index[hash(key) & _MASK].get(key)
        return None if number is None else self._chunks[number][key]

    def get_many(self, keys: Collection[str]) -> list[bytes | None]:
        """The values of many keys; None where there is no such key."""
        index, chunks = self._index, self._chunks
        try:
            return [chunks[index[hash(key) & _MASK][key]][key] for key in keys]
        except KeyError:
            return [self.get(key) for key in keys]

    def set(self, key: str, value: bytes) -> bytes | None:
        """Set one key, a new one last; its value before, or None."""
        shard = self._index[hash(key) & _MASK]
        number = shard.get(key)
        if number is not None:
            if self._views:
                self._freeze(number)
            chunk = self._chunks[number]
            before = chunk[key]
            chunk[key] = value
            self.bytes += len(value) - len(before)
            return before
        tail = self._tail
        if tail is None or len(tail) >= CHUNK:
            self._last += 1
            tail = self._tail = self._chunks[self._last] = {}
        elif self._views:
            self._freeze(self._last)
        shard[key] = self._last
        tail[key] = value
        self._length += 1
        self.bytes += len(key) + len(value)
        return None

    def chunks(self) -> Iterable[Mapping[str, bytes]]:
        """All that there is, to be looked at before anything changes."""
        return self._chunks.values()

    def update(self, items: Mapping[str, bytes]) -> list[bytes | None]:
        """Set many keys; their values before. Quicker than one by one where they are there."""
        index, chunks = self._index, self._chunks
        before: list[bytes | None] = []
        grown = 0
        for key, value in items.items():
            number = index[hash(key) & _MASK].get(key)
            if number is None:
                before.append(self.set(key, value))
                continue
            if self._views:
                self._freeze(number)
            chunk = chunks[number]
            replaced = chunk[key]
            before.append(replaced)
            grown += len(value) - len(replaced)
            chunk[key] = value
        self.bytes += grown
        return before

    def extend(self, keys: list[str], values: list[bytes]) -> None:
        """Set many keys, no two of them the same; quicker than one by one where they are new."""
        index = self._index
        for start in range(0, len(keys), CHUNK):
            some = keys[start : start + CHUNK]
            chunk = dict(zip(some, values[start : start + CHUNK], strict=True))
            number = self._last + 1
            known = [k for k in some if index[hash(k) & _MASK].setdefault(k, number) != number]
            if not known:
                self._last = number
                self._tail = self._chunks[number] = chunk
                self._length += len(chunk)
                self.bytes += _bytes_of(chunk)
                continue
            # A chunk of what is left would keep the room of all
            for key in known:
                self.set(key, chunk.pop(key))
            for key, value in chunk.items():
                del index[hash(key) & _MASK][key]
                self.set(key, value)

    def remove(self, key: str) -> bytes | None:
        """Remove one key; its value, or None if there was no such key."""
        number = self._index[hash(key) & _MASK].pop(key, None)
        if number is None:
            return None
        if self._views:
            self._freeze(number)
        self._length -= 1
        chunk = self._chunks[number]
        value = chunk.pop(key)
        self.bytes -= len(key) + len(value)
        if not chunk:
            self._emptied.append(number)
        return value

    def place(self, key: str) -> Place:
        """Where `key`, which must be there, stands: for `put_back`."""
        number = self._index[hash(key) & _MASK][key]
        return number, list(self._chunks[number]).index(key)

    def put_back(self, key: str, value: bytes, place: Place) -> None:
        """Undo the last change, which was the removal of `key`."""
        number, position = place
        if self._views:
            self._freeze(number)
        chunk = self._chunks[number]
        entries = list(chunk.items())
        entries.insert(position, (key, value))
        chunk.clear()
        chunk.update(entries)
        self._index[hash(key) & _MASK][key] = number
        self._length += 1
        self.bytes += len(key) + len(value)

    def last_key(self) -> str | None:
        """The key that was inserted last."""
        for chunk in reversed(self._chunks.values()):
            if chunk:
                return next(reversed(chunk))
        return None

    @property
    def last_number(self) -> int:
        """Of the chunk that new keys come into; -1 before there was one."""
        return self._last

    def chunk(self, number: int) -> dict[str, bytes]:
        """The chunk of this number; it may be gone, and is empty then."""
        return self._chunks.get(number, _NO_CHUNK)

    def trim(self) -> None:
        """Drop chunks that were emptied, once nothing can be put back into them."""
        while self._emptied:
            number = self._emptied.pop()
            if not self._chunks.get(number, True):
                del self._chunks[number]
                if number == self._last:
                    self._tail = None

    def view(self) -> View:
        """The content as it is now. Not to be made between a removal and its undoing."""
        return View(self._chunks, self._last, self._views)

    @property
    def viewed(self) -> bool:
        """Whether there are views of it that are still read."""
        return bool(self._views)

    def take_chunk(self) -> dict[str, bytes]:
        """Remove the first of the chunks; its entries. Not from an empty table."""
        while self._first not in self._chunks:
            self._first += 1
        self._freeze(self._first)
        chunk = self._chunks.pop(self._first)
        if self._first == self._last:
            self._tail = None
        for key in chunk:
            del self._index[hash(key) & _MASK][key]
        self._length -= len(chunk)
        self.bytes -= _bytes_of(chunk)
        return chunk

    def free(self) -> Iterator[None]:
        """Give the memory back, a little at each step: to free a large table takes long.

        Only once nobody views it.
        """
        while self._chunks:
            self._chunks.popitem()
            yield
        while self._index:
            self._index.pop()
            yield

    def _freeze(self, number: int) -> None:
        for view in self._views:
            view.keep(number, self._chunks[number])
