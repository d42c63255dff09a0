"""How each peer is opened in the process that measures: as its own documentation says.

What is opened is a Store: five functions, the peer's own methods wherever those are what a user
would call, so that nothing of the harness is measured with them. Where a peer stores bytes,
values pass through orjson on both sides; where it pickles them, it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import io
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import diskcache
import lmdb
import orjson
import redis
import redis.cache
import redis.connection
import servers
import zmq
from pymemcache.client.base import Client, PooledClient
from sqlitedict import SqliteDict
from UltraDict import UltraDict

from pickledbd_client import PickleDB, calls
from pickledbd_protocol import encode_request

CACHE = Path(__file__).parents[1] / ".cache" / "pickledb"
"""Where the tests keep pickleDB too."""

CACHE_BYTES = 2**28
CACHE_ITEMS = 200_000
"""Rooms for all records that any comparison has, in caches that count bytes and such as do not."""

THREADS_MAX = 16


@dataclass(frozen=True)
class Store:
    """A peer that is open."""

    get: Callable[[str], Any]
    set: Callable[[str, Any], object]
    get_many: Callable[[list[str]], object]
    set_many: Callable[[dict[str, Any]], object]
    close: Callable[[], object]


def open_pickledbd(cache_bytes: int) -> Callable[[Path], Store]:
    def opened(folder: Path) -> Store:
        db = PickleDB(f"ipc://{folder}/socket", cache_bytes=cache_bytes, timeout=60)
        return Store(db.get, db.set, db.get_many, db.set_many, db.close)

    return opened


def pickledb_folder(release: str) -> Path:
    """A folder with that release of pickleDB alone, fetched once: both have the same name."""
    python = f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
    folder = CACHE / f"{release}-{python}"
    if not folder.exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target"]
        unfinished = folder.with_suffix(".unfinished")
        subprocess.run([*pip, str(unfinished), f"pickledb=={release}"], check=True)
        unfinished.rename(folder)
    return folder


def _pickledb(release: str) -> ModuleType:
    folder = pickledb_folder(release)
    name = "pickledb_" + release.replace(".", "_")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, folder / "pickledb.py")
        if spec is None or spec.loader is None:
            raise RuntimeError(f"{folder} has no pickleDB")
        sys.path.append(str(folder))  # for what it imports
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def open_pickledb_1_0(folder: Path) -> Store:
    with contextlib.redirect_stdout(io.StringIO()):  # "Database created"
        db = _pickledb("1.0").PickleDB(str(folder / "my.db"))

    def set_many(items: dict[str, Any]) -> None:
        for key, value in items.items():
            db.set(key, value)

    return Store(db.get, db.set, lambda keys: [db.get(key) for key in keys], set_many, lambda: None)


def open_pickledb_1_6(folder: Path) -> Store:
    # Called outside of asyncio, each of its methods runs an event loop of its own; many at once
    # are for one loop.
    db = _pickledb("1.6").PickleDB(str(folder / "my.db"))

    async def get_many(keys: list[str]) -> list[Any]:
        return [await db.get(key) for key in keys]

    async def set_many(items: dict[str, Any]) -> None:
        for key, value in items.items():
            await db.set(key, value)

    return Store(
        db.get,
        db.set,
        lambda keys: asyncio.run(get_many(keys)),
        lambda items: asyncio.run(set_many(items)),
        lambda: None,
    )


def open_redis(cached: int = 0, *, pipeline: bool = False) -> Callable[[Path], Store]:
    loads, dumps = orjson.loads, orjson.dumps

    def opened(folder: Path) -> Store:
        if cached:
            # Redis has had CLIENT TRACKING since 6; redis-py asks for 7.4 out of caution.
            redis.connection.CacheProxyConnection.MIN_ALLOWED_VERSION = "7.0.0"
            # By a unix socket it would have no cache, and not say so.
            db = redis.Redis(
                port=servers.port_of(folder),
                protocol=3,
                cache_config=redis.cache.CacheConfig(max_size=cached),
            )
        else:
            db = redis.Redis(unix_socket_path=str(folder / "socket"), protocol=3)

        def get_many(keys: list[str]) -> list[Any]:
            if pipeline:
                with db.pipeline(transaction=False) as pipe:
                    for key in keys:
                        pipe.get(key)
                    return [loads(text) for text in pipe.execute()]
            return [loads(text) for text in db.mget(keys)]

        def set_many(items: dict[str, Any]) -> None:
            if pipeline:
                with db.pipeline(transaction=False) as pipe:
                    for key, value in items.items():
                        pipe.set(key, dumps(value))
                    pipe.execute()
            else:
                db.mset({key: dumps(value) for key, value in items.items()})

        return Store(
            lambda key: loads(db.get(key)),
            lambda key, value: db.set(key, dumps(value)),
            get_many,
            set_many,
            db.close,
        )

    return opened


class _Orjson:
    """What pymemcache calls a serde."""

    def serialize(self, _key: str, value: Any) -> tuple[bytes, int]:
        return orjson.dumps(value), 0

    def deserialize(self, _key: str, value: bytes, _flags: int) -> Any:
        return orjson.loads(value)


def open_memcached(*, noreply: bool = False, threads: bool = False) -> Callable[[Path], Store]:
    def opened(folder: Path) -> Store:
        options: dict[str, Any] = {"serde": _Orjson(), "default_noreply": noreply}
        if threads:
            options["max_pool_size"] = THREADS_MAX
        db = (PooledClient if threads else Client)(str(folder / "socket"), **options)

        def set_many(items: dict[str, Any]) -> None:
            # It reads no answer before all is sent, so larger ones hang when both sides are full.
            pairs = iter(items.items())
            while piece := dict(islice(pairs, 1000)):
                db.set_many(piece)

        return Store(db.get, db.set, db.get_many, set_many, db.close)

    return opened


def open_manager(folder: Path) -> Store:
    manager = servers.Manager.at(folder)
    manager.connect()
    db = manager.content()
    return Store(
        db.__getitem__,
        db.__setitem__,
        lambda keys: [db[key] for key in keys],
        db.update,
        lambda: None,
    )


def open_diskcache(folder: Path) -> Store:
    db = diskcache.Cache(str(folder))

    def get_many(keys: list[str]) -> list[Any]:
        with db.transact():
            return [db.get(key) for key in keys]

    def set_many(items: dict[str, Any]) -> None:
        with db.transact():
            for key, value in items.items():
                db.set(key, value)

    return Store(db.get, db.set, get_many, set_many, db.close)


def open_lmdb(folder: Path) -> Store:
    # Without a sync at each write, in its favour: then it promises what pickledbd's journal does.
    db = lmdb.open(str(folder), map_size=2**31, sync=False, max_readers=256)
    loads, dumps = orjson.loads, orjson.dumps

    def get(key: str) -> Any:
        with db.begin(buffers=True) as transaction:
            return loads(transaction.get(key.encode()))

    def set_(key: str, value: Any) -> None:
        with db.begin(write=True) as transaction:
            transaction.put(key.encode(), dumps(value))

    def get_many(keys: list[str]) -> list[Any]:
        with db.begin(buffers=True) as transaction, transaction.cursor() as cursor:
            return [loads(value) for _, value in cursor.getmulti([key.encode() for key in keys])]

    def set_many(items: dict[str, Any]) -> None:
        with db.begin(write=True) as transaction, transaction.cursor() as cursor:
            cursor.putmulti([(key.encode(), dumps(value)) for key, value in items.items()])

    return Store(get, set_, get_many, set_many, db.close)


def open_sqlitedict(folder: Path) -> Store:
    db = SqliteDict(str(folder / "my.sqlite"), autocommit=True)
    return Store(
        db.__getitem__,
        db.__setitem__,
        lambda keys: [db[key] for key in keys],
        db.update,
        db.close,
    )


def open_ultra(folder: Path) -> Store:
    db = UltraDict(name=servers.ultra_name(folder), create=False)
    return Store(
        db.__getitem__,
        db.__setitem__,
        lambda keys: [db[key] for key in keys],
        db.update,
        db.close,
    )


def open_echo(folder: Path) -> Store:
    """Sends as many bytes as pickledbd for a small record, and gets them back."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    of_thread = threading.local()
    value = {"name": "Ann", "visits": 31, "tags": ["a", "b"], "active": True}
    asked = (calls.get("user00001234"), calls.set_("user00001234", value))
    get_body, set_body = (encode_request(c.op, 12345, "c" * 32, 5000, c.args) for c in asked)

    def exchange(body: bytes) -> bytes:
        dealer: zmq.Socket[bytes] | None = getattr(of_thread, "dealer", None)
        if dealer is None:
            dealer = of_thread.dealer = context.socket(zmq.DEALER)
            dealer.linger = 0
            dealer.connect(f"ipc://{folder}/socket")
        dealer.send(body)
        return dealer.recv()

    return Store(
        lambda _: exchange(get_body) and value,
        lambda _, __: exchange(set_body),
        lambda _: None,
        lambda _: None,
        context.destroy,
    )
