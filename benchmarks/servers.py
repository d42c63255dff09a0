"""The servers of the peers: each is started in a folder of its own, and ended again."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.managers import BaseManager, DictProxy
from pathlib import Path

import _needed
from harness import ECHO, started
from UltraDict import UltraDict

PATIENCE = 30.0


@contextlib.contextmanager
def listening(command: list[str], path: Path) -> Iterator[None]:
    """A server that says nothing when it is ready: its socket answers then."""
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(str(path))
                break
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command} did not start")
            time.sleep(0.02)
        yield
    finally:
        server.terminate()
        server.wait(timeout=PATIENCE)


def pickledbd(folder: Path) -> contextlib.AbstractContextManager[object]:
    """A daemon in its default durability: what was acknowledged stands in the journal."""
    endpoint = f"ipc://{folder}/socket"
    return started([sys.executable, "-m", "pickledbd", f"{folder}/my.db", "--bind", endpoint])


def echo(folder: Path) -> contextlib.AbstractContextManager[object]:
    """A ROUTER that sends back what it gets."""
    return started([sys.executable, "-c", ECHO, f"ipc://{folder}/socket"])


def redis(
    folder: Path, listen: tuple[str, ...] = ("--port", "0")
) -> contextlib.AbstractContextManager[object]:
    """Without any persistence, in its favour: what was acknowledged is lost with the server."""
    path = folder / "socket"
    here = ["--unixsocket", str(path), "--dir", str(folder), *listen]
    return listening(
        [_needed.program("redis-server"), *here, "--save", "", "--appendonly", "no"], path
    )


def redis_tcp(folder: Path) -> contextlib.AbstractContextManager[object]:
    """The same on a port too: redis-py's cache is for TCP alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "port").write_text(str(port), encoding="ascii")
    return redis(folder, ("--port", str(port), "--bind", "127.0.0.1"))


def port_of(folder: Path) -> int:
    """Where that redis listens."""
    return int((folder / "port").read_text(encoding="ascii"))


def memcached(folder: Path) -> contextlib.AbstractContextManager[object]:
    """With room for all; it keeps nothing on a disk by nature."""
    path = folder / "socket"
    options = ["-s", str(path), "-m", "1024", "-u", "root"]
    return listening([_needed.program("memcached"), *options], path)


_content: dict[str, object] = {}


def _shared() -> dict[str, object]:
    return _content


class Manager(BaseManager):
    """multiprocessing's own, by its documentation's "Using a remote manager"."""

    @classmethod
    def at(cls, folder: Path) -> Manager:
        """The manager of this folder: to be started, or to be connected to."""
        return cls(str(folder / "socket"), b"benchmark", ctx=get_context("spawn"))

    def content(self) -> DictProxy[str, object]:
        """The one dict."""
        proxy: DictProxy[str, object] = self.shared()  # type: ignore[attr-defined]
        return proxy


Manager.register("shared", _shared, DictProxy)


def manager(folder: Path) -> contextlib.AbstractContextManager[object]:
    """A process with one dict."""
    made = Manager.at(folder)
    made.start()
    return made


def ultra_name(folder: Path) -> str:
    """What its shared memory is called."""
    return f"pickledbd-bench-{folder.parent.name}-{folder.name}".replace(" ", "-")


@contextlib.contextmanager
def ultra(folder: Path, *, shared_lock: bool = False) -> Iterator[None]:
    """Its shared memory, with a stream for updates that holds some 300,000 of them."""
    made = UltraDict(
        name=ultra_name(folder), create=True, buffer_size=2**26, shared_lock=shared_lock
    )
    try:
        yield
    finally:
        made.close()
        made.unlink()


def ultra_of_processes(folder: Path) -> contextlib.AbstractContextManager[object]:
    """The same with the lock that its documentation asks for between spawned processes."""
    return ultra(folder, shared_lock=True)
