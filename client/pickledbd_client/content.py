"""What `PickleDB.db` gives: the content as a real dict, whose changes reach the daemon.

A dict, so that orjson and everything else that wants one takes it. Changing a key is sent
to the daemon first. A list or dict inside a value cannot be changed in place, since nobody
would notice that: it raises, and says to set the changed value.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Mapping, MutableMapping, ValuesView
from typing import Any, NoReturn, Self, SupportsIndex

import orjson

from pickledbd_client.calls import MISSING
from pickledbd_protocol import InvalidValue, encode_value, restore


def read_only(value: Any) -> Any:
    """`value`, or a read-only copy of it if it is a list or a dict."""
    if type(value) is dict:
        return ReadOnlyDict(value)
    if type(value) is list:
        return ReadOnlyList(value)
    return value


def _refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
    raise InvalidValue(
        "a value read through .db is a copy that cannot be changed in place: "
        "get it with get(key), change that, and set(key, value)"
    )


class _Items(ItemsView[str, Any]):
    """The items of a dict whose own lookup makes its values read-only."""

    _mapping: Mapping[str, Any]

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return ((key, self._mapping[key]) for key in self._mapping)


class _Values(ValuesView[Any]):
    _mapping: Mapping[str, Any]

    def __iter__(self) -> Iterator[Any]:
        return (self._mapping[key] for key in self._mapping)


class _Reading(dict[str, Any]):
    """A dict that hands out its values read-only; a copy of it is plain and the caller's own."""

    def __getitem__(self, key: str) -> Any:
        return read_only(super().__getitem__(key))

    def get(self, key: str, default: Any = None) -> Any:
        return read_only(super().get(key, default))

    def items(self) -> _Items:  # type: ignore[override] # a view, though not dict's own class
        return _Items(self)

    def values(self) -> _Values:  # type: ignore[override] # the same
        return _Values(self)

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


class ReadOnlyDict(_Reading):
    """A dict inside a value of `.db`: reads as a dict, refuses to be changed."""

    __setitem__ = __delitem__ = __ior__ = _refuse
    pop = popitem = setdefault = update = clear = _refuse


class ReadOnlyList(list[Any]):
    """A list inside a value of `.db`: reads as a list, refuses to be changed."""

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        found = super().__getitem__(index)
        return [read_only(item) for item in found] if isinstance(index, slice) else read_only(found)

    def __iter__(self) -> Iterator[Any]:
        return map(read_only, super().__iter__())

    def __reversed__(self) -> Iterator[Any]:
        return map(read_only, super().__reversed__())

    def __reduce__(self) -> Any:
        return list, (list(self),)

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = extend = insert = pop = remove = clear = _refuse
    sort = reverse = _refuse


class Content(_Reading):
    """The content at one moment. A key set or deleted in it is set or deleted in the daemon."""

    def __init__(
        self,
        content: dict[str, Any],
        database: MutableMapping[str, Any],
        mark: Callable[[], object],
    ) -> None:
        """`mark` tells whether this thread has asked `database` anything since."""
        super().__init__(content)
        self._database = database
        self._mark = mark
        self._merged: object = None

    # Each change goes to the daemon first: when that raises, nothing has changed here.

    def __setitem__(self, key: Any, value: Any) -> None:
        self._database[key] = value
        super().__setitem__(str(key), _as_stored(value))

    def __delitem__(self, key: Any) -> None:
        del self._database[key]
        super().pop(str(key), None)

    def pop(self, key: Any, default: Any = MISSING) -> Any:
        value = self._database.pop(key, default)
        super().pop(str(key), None)
        return value

    def popitem(self) -> tuple[str, Any]:
        key, value = self._database.popitem()
        super().pop(key, None)
        return key, value

    def setdefault(self, key: Any, default: Any = None) -> Any:
        value = self._database.setdefault(key, default)
        super().__setitem__(str(key), value)
        return read_only(value)

    def update(self, /, *args: Any, **kwargs: Any) -> None:
        items = dict(*args, **kwargs)
        self._database.update(items)
        super().update({str(key): _as_stored(value) for key, value in items.items()})

    def clear(self) -> None:
        self._database.clear()
        super().clear()

    def __ior__(self, other: Any) -> Self:  # type: ignore[override,misc] # takes what update takes
        self.update(other)
        self._merged = self._mark()
        return self

    def was_merged_just_now(self, database: object) -> bool:
        """Whether this is what `database.db |= other` is about to assign.

        Assigning it would undo what others have changed since it was read.
        """
        return self._database is database and self._merged == self._mark()


def _as_stored(value: Any) -> Any:
    return restore(orjson.loads(encode_value("", value)))
