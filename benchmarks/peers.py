"""The peers of pickledbd, by name: what serves each, and how it is opened."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import _needed
import servers
import stores
from stores import CACHE_BYTES, CACHE_ITEMS, Store

Server = Callable[[Path], contextlib.AbstractContextManager[object]]


@dataclass(frozen=True)
class Peer:
    """How to have one: `server` once for all, `open` in each process that measures."""

    name: str
    open: Callable[[Path], Store]
    server: Server = lambda _: contextlib.nullcontext()
    alone: bool = False
    """It cannot be shared by processes."""


CACHED, UNCACHED, ECHO = "pickledbd", "pickledbd, cache_bytes=0", "bare zmq echo"
PICKLEDB, REDIS, MEMCACHED = "pickleDB 1.0", "redis-py", "pymemcache"
REDIS_PIPELINE, MEMCACHED_NOREPLY = "redis-py pipeline", "pymemcache, noreply"
REDIS_CACHED, REDIS_CACHED_ALL = "redis-py, its cache", "redis-py, its cache for all"

PEERS = {
    peer.name: peer
    for peer in (
        Peer(CACHED, stores.open_pickledbd(CACHE_BYTES), servers.pickledbd),
        Peer(UNCACHED, stores.open_pickledbd(0), servers.pickledbd),
        Peer(ECHO, stores.open_echo, servers.echo),
        Peer(PICKLEDB, stores.open_pickledb_1_0, alone=True),
        Peer("pickleDB 1.6", stores.open_pickledb_1_6, alone=True),
        Peer(REDIS, stores.open_redis(), servers.redis),
        Peer(REDIS_PIPELINE, stores.open_redis(pipeline=True), servers.redis),
        Peer(REDIS_CACHED, stores.open_redis(10_000), servers.redis_tcp),  # its default size
        Peer(REDIS_CACHED_ALL, stores.open_redis(CACHE_ITEMS), servers.redis_tcp),
        Peer(MEMCACHED, stores.open_memcached(), servers.memcached),
        Peer(MEMCACHED_NOREPLY, stores.open_memcached(noreply=True), servers.memcached),
        Peer("multiprocessing.Manager", stores.open_manager, servers.manager),
        Peer("diskcache", stores.open_diskcache),
        Peer("LMDB", stores.open_lmdb),
        Peer("sqlitedict", stores.open_sqlitedict),
        Peer("UltraDict", stores.open_ultra, servers.ultra),
    )
}
ULTRA_OF_PROCESSES = Peer("UltraDict", stores.open_ultra, servers.ultra_of_processes)
MEMCACHED_OF_THREADS = Peer(MEMCACHED, stores.open_memcached(threads=True), servers.memcached)


def home(folder: Path, peer: Peer) -> Path:
    """The folder of a peer, in that of the comparison; short, for the sockets in it."""
    return folder / "".join(filter(str.isalnum, peer.name))


@contextlib.contextmanager
def serving(folder: Path, peers: list[Peer]) -> Iterator[None]:
    """All their servers."""
    with contextlib.ExitStack() as stack:
        for peer in peers:
            home(folder, peer).mkdir()
            stack.enter_context(peer.server(home(folder, peer)))
        yield


@contextlib.contextmanager
def opened(folder: Path, peers: list[Peer]) -> Iterator[dict[str, Store]]:
    """All of them, open in this process."""
    with serving(folder, peers), contextlib.ExitStack() as stack:
        stores = {}
        for peer in peers:
            stores[peer.name] = peer.open(home(folder, peer))
            stack.callback(stores[peer.name].close)
        yield stores


def versions() -> str:
    """What was compared, in one line."""
    asked = subprocess.run(
        [_needed.program("redis-server"), "--version"], capture_output=True, text=True, check=True
    )
    server = next(word for word in asked.stdout.split() if word.startswith("v="))[2:]
    told = subprocess.run(
        [_needed.program("memcached"), "--version"], capture_output=True, text=True, check=True
    ).stdout.strip()
    installed = [name for name in _needed.PACKAGES if name != "matplotlib"]
    packages = ", ".join(f"{name} {version(name)}" for name in installed)
    return f"redis-server {server}, {told}, {packages}"
