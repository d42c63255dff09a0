"""PickleDB: pickleDB's class, whose content lives in a daemon that everybody shares."""

from __future__ import annotations

import contextlib
import time
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    MutableMapping,
    ValuesView,
)
from types import TracebackType
from typing import Any, Self

from pickledbd_client import calls, modify
from pickledbd_client.batch import Batch
from pickledbd_client.cache import ABSENT, UNKNOWN
from pickledbd_client.calls import ALL, Some, Version
from pickledbd_client.content import Content
from pickledbd_client.handle import Handle
from pickledbd_client.link import Link
from pickledbd_client.locks import Lock
from pickledbd_client.watching import Watch
from pickledbd_protocol import PickleDBError


class PickleDB(Handle, MutableMapping[str, Any]):
    """A key-value store with pickleDB's methods, and a mapping, shared by threads and processes.

    `location` is the path of a database file, whose owner is reached, or started if there is
    none; or the endpoint of a running daemon (`ipc:///path`, `tcp://address:port`); or None
    for $PICKLEDBD_URL, else the system service. One object serves all threads of a process, and
    parent and child after a fork. It can be pickled: the copy is another handle on the same data.

    Keys go through `str()`. Values are what orjson writes, and bytes; what is read is a copy.

    Args:
        location: path, endpoint or None.
        timeout: seconds until a request without an answer raises RequestTimeout; None waits on.
        cache_bytes: room for values that were read and are current still (over ipc, on Linux): to
            read them again asks nobody. 0 keeps none.
        autostart: start a daemon for a path that nobody owns.
        curve: for tcp, the files of one's own secret key and of the daemon's public key, as
            `("ann.key_secret", "daemon.key")`, which `pickledbctl keygen` makes. They are read at
            each connection. None: $PICKLEDBD_CURVE (`ann.key_secret:daemon.key`), else no keys.

    Every method raises, beside what it names: Unavailable when no daemon can be reached,
    RequestTimeout, InvalidKey for a key with a lone surrogate, TooLarge, ProtocolError; NotAllowed
    where the daemon does not let this client in, or lets it only read. All are PickleDBError.
    """

    def _open(self) -> None:
        self._link = Link(self._route)
        self._link.connect()
        self._kept = self._cache.young
        self.location: str = self._route.location
        """The database file, as pickleDB tells it."""

    # As in pickleDB

    def set(
        self, key: Any, value: Any, *, ttl: float | None = None, token: int | None = None
    ) -> bool:
        """Store `value` under `key`; True. InvalidValue if it is not JSON, nor bytes.

        `ttl`: the key is gone after so many seconds; without it, a key that was to expire does so
        no more. `token`, here and elsewhere: only if the lock that has it is held; else LockLost.
        """
        return self._link.request(calls.set_(str(key), value, ttl=ttl, token=token))

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

    def all(self, prefix: str = "", *, glob: str | None = None) -> list[str]:
        """All keys that begin with `prefix` and match `glob`, in the order of their insertion.

        A glob is a shell's: `*` any characters, `?` any one, `[a-z]` and `[!a-z]` one of a set or
        none of it; it matches whole keys.
        """
        return self._link.request(calls.all_(Some(prefix, glob)))

    def remove(self, key: Any, *, token: int | None = None) -> bool:
        """Remove `key`; True if it was there."""
        return self._link.request(calls.remove(str(key), token=token))

    def purge(self, *, token: int | None = None) -> bool:
        """Remove everything; True."""
        return self._link.request(calls.purge(token=token))

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
        if exc_type is None and not self._route.read_only:
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

    def keys(self, prefix: str = "", *, glob: str | None = None) -> KeysView[str]:
        """A view of the keys; each walk through it sees them as they are at its start.

        Of some of them (see `all`): as they are now. The same holds for `items` and `values`.
        """
        some = Some(prefix, glob)
        return KeysView(self) if some == ALL else dict.fromkeys(self.all(prefix, glob=glob)).keys()

    def items(self, prefix: str = "", *, glob: str | None = None) -> ItemsView[str, Any]:
        """A view of the items."""
        some = Some(prefix, glob)
        return _Items(self) if some == ALL else self._link.request(calls.dump(some)).items()

    def values(self, prefix: str = "", *, glob: str | None = None) -> ValuesView[Any]:
        """A view of the values."""
        some = Some(prefix, glob)
        return _Values(self) if some == ALL else self._link.request(calls.dump(some)).values()

    def pop(self, key: Any, default: Any = calls.MISSING, *, token: int | None = None) -> Any:
        """Remove `key` and return its value, or `default`; KeyError without one. Atomic."""
        return self._link.request(calls.pop(str(key), default, token=token))

    def popitem(self, *, token: int | None = None) -> tuple[str, Any]:
        """Remove the item that was inserted last and return it; KeyError if empty. Atomic."""
        return self._link.request(calls.popitem(token=token))

    def setdefault(self, key: Any, default: Any = None, *, token: int | None = None) -> Any:
        """The value of `key`, which is set to `default` first if there is none. Atomic."""
        return self._link.request(calls.setdefault(str(key), default, token=token))

    def update(self, /, *args: Any, **kwargs: Any) -> None:
        """Set all items of a mapping or of pairs, and of keywords, at once or not at all."""
        self.set_many(dict(*args, **kwargs))

    def clear(self) -> None:
        """Remove everything."""
        self.purge()

    # Many at once: each is one request, and happens whole or not at all

    def set_many(
        self, items: Mapping[Any, Any], *, ttl: float | None = None, token: int | None = None
    ) -> bool:
        """Set all `items`; True. InvalidValue names the key at fault, and nothing is set.

        `ttl`, `token`: see `set`.
        """
        return self._link.request(calls.set_many(items, ttl=ttl, token=token))

    def get_many(self, keys: Iterable[Any]) -> dict[str, Any]:
        """The values of those of `keys` that are there, all read at the same moment."""
        return self._link.request(calls.get_many(keys))

    def remove_many(self, keys: Iterable[Any], *, token: int | None = None) -> int:
        """Remove `keys`; how many of them were there."""
        return self._link.request(calls.remove_many(keys, token=token))

    def batch(self, *, token: int | None = None) -> Batch:
        """Several writes as one: `with db.batch() as batch: batch.set(...); batch.remove(...)`.

        They are sent at the end of the block, as one request: all of them happen at once, or, if
        one of them is refused, none. An exception in the block means none. Then `batch.results`
        has what each of them returned. `batch.if_version(key, version)` makes it conditional: if
        somebody has changed that key meanwhile, nothing happens and Conflict is raised.
        """
        return Batch(self._link.request, token)

    # Together with others

    def incr(self, key: Any, by: float = 1, default: float = 0, *, token: int | None = None) -> Any:
        """Add `by` to the number at `key`, or to `default` if there is none; the sum. Atomic.

        The time at which the key expires is kept. InvalidValue if the value is no number, or an
        integer would be over 64 bits.
        """
        return self._link.request(calls.incr(str(key), by, default, token=token))

    def get_versioned(self, key: Any) -> tuple[Any, Version]:
        """A copy of the value of `key`, and its version; (None, 0) if there is none.

        Values of equal versions are equal; a version says nothing else.
        """
        return self._link.request(calls.get_versioned(str(key)))

    def cas(
        self,
        key: Any,
        version: Version,
        value: Any,
        *,
        ttl: float | None = None,
        token: int | None = None,
    ) -> bool:
        """Compare and set: store `value` if the version of `key` is still this; whether it was.

        Version 0: if there is no such key.
        """
        return self._link.request(calls.cas(str(key), version, value, ttl=ttl, token=token))

    def modify(
        self,
        key: Any,
        fn: Callable[[Any], Any],
        default: Any = None,
        *,
        tries: int = 100,
        token: int | None = None,
    ) -> Any:
        """Store `fn(value)` for the value of `key`, or for `default`; what was stored.

        If others have changed the key meanwhile, `fn` is called again with what is there then,
        after a pause that grows; Conflict after so many `tries`. When the key expires stays as it
        is.
        """
        steps = modify.modify(str(key), fn, default, tries, token)
        return modify.drive(steps, self._link.request, time.sleep)

    def lock(self, name: Any, ttl: float = 30.0, timeout: float | None = None) -> Lock:
        """A lock that all clients share: `with db.lock("name") as held: ...`.

        First come, first served; it is granted when its holder before has released it, at once when
        that process has died, and `ttl` seconds after it was last heard of. While this process
        lives, a lock that it holds is renewed by itself. The thread that holds it may take it
        again. RequestTimeout if it was not free within `timeout` seconds, None waits on; LockLost
        at the end of the block if it was lost meanwhile. `held.token` makes sure:
        `db.set(key, value, token=held.token)` is refused then.
        """
        return Lock(self._link.request, self._locks, name, ttl, timeout)

    def watch(self, prefix: str = "", since: int | None = None) -> Watch:
        """An iterator of what is changed from now on, in keys that begin with `prefix`.

        Of Change: `key`, `value` (None if removed), `removed`, `seq`; and of Resync (`items`,
        `seq`) where changes were missed. `since`: those after the one of this `seq`. It waits for
        the next change as long as it takes; Ctrl+C ends that, as does its `close`.
        """
        watch = Watch(self._link.request, prefix, since)
        self._watches[id(watch)] = watch
        return watch

    # How long a key lives

    def ttl(self, key: Any) -> float | None:
        """Seconds until `key` is gone; None if it does not expire, or is not there."""
        return self._link.request(calls.ttl(str(key)))

    def expire(self, key: Any, seconds: float, *, token: int | None = None) -> bool:
        """Have `key` be gone after so many seconds; True if it is there."""
        return self._link.request(calls.expire(str(key), seconds, token=token))

    def persist(self, key: Any, *, token: int | None = None) -> bool:
        """Have `key` not expire; True if it was to."""
        return self._link.request(calls.persist(str(key), token=token))

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
        """Drop the connections; the object cannot be used any more. Nothing is saved by it.

        Its locks are let go of, and its watches end.
        """
        ended = self._end_watches()
        with contextlib.suppress(PickleDBError):  # of the daemon that does not answer one, ask none
            for call in ended:
                self._link.request(call)
        self._locks.close()
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
