"""The data: a dict from key to canonical JSON bytes, in insertion order.

May live here: the dict and the count of its changes. It knows neither sockets nor files, and
checks nothing: handlers prove a value before it comes here. Everything runs in the loop's one
thread, so each method is atomic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class Store:
    """Keys to canonical JSON bytes. `changes` counts every key set or removed since the start."""

    def __init__(self, data: dict[str, bytes] | None = None) -> None:
        self._data = {} if data is None else data
        self.changes = 0

    def __len__(self) -> int:
        return len(self._data)

    def __contains__(self, key: str) -> bool:
        return key in self._data

    def get(self, key: str) -> bytes | None:
        return self._data.get(key)

    def keys(self) -> Iterable[str]:
        return self._data.keys()

    def items(self) -> Iterable[tuple[str, bytes]]:
        return self._data.items()

    def set(self, key: str, value: bytes) -> None:
        self._data[key] = value
        self.changes += 1

    def update(self, items: Mapping[str, bytes]) -> None:
        self._data.update(items)
        self.changes += len(items)

    def remove(self, key: str) -> bytes | None:
        """The value removed, or None if there was no such key."""
        value = self._data.pop(key, None)
        if value is not None:
            self.changes += 1
        return value

    def pop_last(self) -> tuple[str, bytes] | None:
        """The item inserted last, removed, or None if there is none."""
        if not self._data:
            return None
        self.changes += 1
        return self._data.popitem()

    def replace(self, data: dict[str, bytes]) -> None:
        """Have `data` for content, and nothing else."""
        self.changes += len(self._data) + len(data)
        self._data = data
