"""PickleDB: pickleDB's class, whose content lives in a daemon that everybody shares."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping, MutableMapping, ValuesView
from types import TracebackType
from typing import Any, Self

from pickledbd_client import calls
from pickledbd_client.batch import Batch
from pickledbd_client.cache import ABSENT, UNKNOWN
from pickledbd_client.content import Content
from pickledbd_client.handle import Handle
from pickledbd_client.link import Link


class PickleDB(Handle, MutableMapping[str, Any]):
    """A key-value store with pickleDB's methods, and a mapping, shared by threads and processes.

    `location` is the path of a database file, whose owner is reached, or started if there is
    none; or the endpoint of a running daemon (`ipc:///path`, `tcp://127.0.0.1:port`); or None
    for $PICKLEDBD_URL, else the system service. One object serves all threads of a process, and
    parent and child after a fork. It can be pickled: the copy is another handle on the same data.

    Keys go through `str()`. Values are what orjson writes, and bytes; what is read is a copy.

    Args:
        location: path, endpoint or None.
        timeout: seconds until a request without an answer raises RequestTimeout; None waits on.
        cache_bytes: room for values that were read and are current still (over ipc, on Linux): to
            read them again asks nobody. 0 keeps none.
        autostart: start a daemon for a path that nobody owns.
        curve: keys for another machine. This release has no such connections and takes only None.

    Every method raises, beside what it names: Unavailable when no daemon can be reached,
    RequestTimeout, InvalidKey for a key with a lone surrogate, TooLarge, ProtocolError. All are
    PickleDBError.
    """

    def _open(self) -> None:
        self._link = Link(self._route)
        self._link.connect()
        self._kept = self._cache.young
        self.location: str = self._route.location
        """The database file, as pickleDB tells it."""

    # As in pickleDB

    def set(self, key: Any, value: Any) -> bool:
        """Store `value` under `key`; True. InvalidValue if it is not JSON, nor bytes."""
        return self._link.request(calls.set_(str(key), value))

    def get(self, key: Any, default: Any = None) -> Any:
        """A copy of the value of `key`, or `default` if there is none."""
        if type(key) is str:
            # As Cache.lookup does; but that call would take as long again
            try:
                counters, slot, count, lease, value, copy = self._kept[key]
            except KeyError:
                pass
            else:
                if counters[slot] == count and not lease[0]:
                    if copy is None:
                        return value
                    found = copy(value)
                    return default if found is ABSENT else found
        found = self._read(str(key))
        return default if found is ABSENT else found

    def _read(self, key: str) -> Any:
        found = self._cache.lookup(key)
        return self._link.request(calls.get(key, ABSENT)) if found is UNKNOWN else found

    def all(self) -> list[str]:
        """All keys, in the order of their insertion."""
        return self._link.request(calls.all_())

    def remove(self, key: Any) -> bool:
        """Remove `key`; True if it was there."""
        return self._link.request(calls.remove(str(key)))

    def purge(self) -> bool:
        """Remove everything; True."""
        return self._link.request(calls.purge())

    def save(self) -> bool:
        """Have all that was acknowledged so far on disk when this returns; True.

        SaveFailed names the step that failed; the file is then as it was.
        """
        return self._link.request(calls.save())

    def load(self) -> Self:
        """This object, for `PickleDB(path).load()`. There is nothing to load: reads are current."""
        self._link.request(calls.ping())
        return self

    @property
    def db(self) -> dict[str, Any]:
        """The content now, as a dict. Setting a key in it sets it in the database.

        Each access copies the whole database. Assigning a mapping replaces the content at once.
        """
        return Content(self._link.request(calls.dump()), self, self._link.mark)

    @db.setter
    def db(self, content: Mapping[Any, Any]) -> None:
        if isinstance(content, Content) and content.was_merged_just_now(self):
            return  # `db.db |= other`, which ends with this assignment, has been done
        self._link.request(calls.replace(content))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self.save()

    # As a mapping

    def __getitem__(self, key: Any) -> Any:
        found = self._read(str(key))
        if found is ABSENT:
            raise KeyError(str(key))
        return found

    def __setitem__(self, key: Any, value: Any) -> None:
        self.set(key, value)

    def __delitem__(self, key: Any) -> None:
        if not self.remove(key):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        found = self._cache.lookup(str(key))
        if found is UNKNOWN:
            return self._link.request(calls.exists(str(key)))
        return found is not ABSENT

    def __len__(self) -> int:
        return self._link.request(calls.len_())

    def __iter__(self) -> Iterator[str]:
        return iter(self.all())

    def items(self) -> ItemsView[str, Any]:
        """A view of the items; each walk through it sees them as they are at its start."""
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        """A view of the values; each walk through it sees them as they are at its start."""
        return _Values(self)

    def pop(self, key: Any, default: Any = calls.MISSING) -> Any:
        """Remove `key` and return its value, or `default`; KeyError without one. Atomic."""
        return self._link.request(calls.pop(str(key), default))

    def popitem(self) -> tuple[str, Any]:
        """Remove the item that was inserted last and return it; KeyError if empty. Atomic."""
        return self._link.request(calls.popitem())

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """The value of `key`, which is set to `default` first if there is none. Atomic."""
        return self._link.request(calls.setdefault(str(key), default))

    def update(self, /, *args: Any, **kwargs: Any) -> None:
        """Set all items of a mapping or of pairs, and of keywords, at once or not at all."""
        self.set_many(dict(*args, **kwargs))

    def clear(self) -> None:
        """Remove everything."""
        self.purge()

    # Many at once: each is one request, and happens whole or not at all

    def set_many(self, items: Mapping[Any, Any]) -> bool:
        """Set all `items`; True. InvalidValue names the key at fault, and nothing is set."""
        return self._link.request(calls.set_many(items))

    def get_many(self, keys: Iterable[Any]) -> dict[str, Any]:
        """The values of those of `keys` that are there, all read at the same moment."""
        return self._link.request(calls.get_many(keys))

    def remove_many(self, keys: Iterable[Any]) -> int:
        """Remove `keys`; how many of them were there."""
        return self._link.request(calls.remove_many(keys))

    def batch(self) -> Batch:
        """Several writes as one: `with db.batch() as batch: batch.set(...); batch.remove(...)`.

        They are sent at the end of the block, as one request: all of them happen at once, or, if
        one of them is refused, none. An exception in the block means none. Then `batch.results`
        has what each of them returned.
        """
        return Batch(self._link.request)

    # About itself

    def info(self, *, reset: bool = False) -> dict[str, Any]:
        """What the daemon tells of itself (SPEC.md, info): its pid, endpoints, last save, ...

        `reset`: `longest_slice_ms` begins anew after this answer.
        """
        return self._link.request(calls.info(reset=reset))

    def ping(self) -> bool:
        """True if the daemon answers."""
        return self._link.request(calls.ping())

    def close(self) -> None:
        """Drop the connections; the object cannot be used any more. Nothing is saved by it."""
        self._link.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location!r})"


class _Items(ItemsView[str, Any]):
    _mapping: PickleDB

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self._mapping._link.request(calls.dump()).items())  # noqa: SLF001 - the same room


class _Values(ValuesView[Any]):
    _mapping: PickleDB

    def __iter__(self) -> Iterator[Any]:
        return iter(self._mapping._link.request(calls.dump()).values())  # noqa: SLF001 - the same room

    def __contains__(self, value: object) -> bool:
        return value in list(self)
