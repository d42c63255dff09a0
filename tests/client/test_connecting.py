"""A client that connects while nobody answers: the daemon is not there, or not ready yet."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
import time

import pytest
import zmq

from managed import activated, listening
from pickledbd_client import AsyncPickleDB, PickleDB, Unavailable, channel, route
from support import PATIENCE, Daemon, in_fork


@pytest.fixture
def daemon_by_tcp(location):
    daemon = Daemon(location, "--bind", "tcp://127.0.0.1:*")
    yield daemon.endpoint
    daemon.stop()


# Loads for two seconds longer than it would, and gets on meanwhile, or not
SLOW = """
import sys, time
from pickledbd import cli, snapshot
load = snapshot.DataFile.load
def slow(self, progress):
    for done in range(20):
        progress(self.path.name, {done})
        time.sleep(0.1)
    return load(self, progress)
snapshot.DataFile.load = slow
sys.exit(cli.main(sys.argv[1:]))
"""
GETS_ON = (sys.executable, "-c", SLOW.format(done="done"))
IS_STUCK = (sys.executable, "-c", SLOW.format(done="0"))


@pytest.fixture
def path(tmp_path):
    return os.fspath(tmp_path / "some.sock")


def with_timeout(path, seconds):
    return contextlib.closing(PickleDB(f"ipc://{path}", timeout=seconds))


async def asynchronous(path, seconds):
    async with AsyncPickleDB(f"ipc://{path}", timeout=seconds) as db:
        return await db.set("a", 1)


@pytest.mark.parametrize("kind", ["passed", "bound"])
def test_a_daemon_that_gets_on_with_loading_is_waited_for_the_first_time(kind, location, path):
    with contextlib.ExitStack() as stack:
        if kind == "passed":
            unix = stack.enter_context(listening(path))
            daemon = activated(location, unix, program=GETS_ON, wait=False)
        else:
            options = ("--bind", f"ipc://{path}")
            daemon = Daemon(location, *options, program=GETS_ON, wait=False)
        while not os.path.exists(f"{path}.lock"):
            time.sleep(0.01)
        with with_timeout(path, 0.3) as db:
            assert db.set("a", 1)
        daemon.wait_ready()
        daemon.check_and_stop()


def test_so_it_is_by_asyncio(location, path):
    with listening(path) as unix:
        daemon = activated(location, unix, program=GETS_ON, wait=False)
        while not os.path.exists(f"{path}.lock"):
            time.sleep(0.01)
        assert asyncio.run(asynchronous(path, 0.3))
        daemon.wait_ready()
        daemon.check_and_stop()


def test_a_daemon_that_does_not_get_on_is_not_waited_for(location, path, monkeypatch):
    monkeypatch.setattr(route, "STARTING_SECONDS", 0.3)
    with listening(path) as unix:
        daemon = activated(location, unix, program=IS_STUCK, wait=False)
        while not os.path.exists(f"{path}.lock"):
            time.sleep(0.01)
        with pytest.raises(Unavailable, match="accepts connections but did not answer"):
            PickleDB(f"ipc://{path}", timeout=0.1)
        daemon.wait_ready()
        daemon.check_and_stop()


def test_nor_is_one_that_was_killed_while_it_loaded(location, path):
    with listening(path) as unix:
        daemon = activated(location, unix, program=GETS_ON, wait=False)
        while not os.path.exists(f"{path}.lock"):
            time.sleep(0.01)
        daemon.kill()
        assert os.path.exists(f"{path}.lock")
        began = time.monotonic()
        with pytest.raises(Unavailable, match="accepts connections but did not answer"):
            PickleDB(f"ipc://{path}", timeout=0.2)
        assert time.monotonic() - began < 30


def test_where_as_many_wait_as_may_a_further_one_waits_for_its_place(location, path):
    """connect(2) refuses it at once, though somebody may come and accept."""
    with contextlib.ExitStack() as stack:
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(path)
        unix.listen(2)
        crowd = []
        with contextlib.suppress(BlockingIOError):
            while True:
                crowd.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
                crowd[-1].setblocking(False)
                crowd[-1].connect(path)
        began = time.monotonic()
        with pytest.raises(Unavailable, match="accepts connections but did not answer"):
            PickleDB(f"ipc://{path}", timeout=0.5)
        assert time.monotonic() - began >= 0.5
        started = []
        late = threading.Timer(0.3, lambda: started.append(activated(location, unix, wait=False)))
        late.start()
        with with_timeout(path, PATIENCE) as db:
            assert db.set("a", 1)
        late.join()
        started[0].wait_ready()
        started[0].check_and_stop()


def test_who_is_sent_away_by_a_daemon_that_ends_goes_to_the_next_one(location, path):
    """It was greeted, and what it then said met nobody: the first time too it tries again."""
    with listening(path) as unix, zmq.Context() as context:
        ending = context.socket(zmq.ROUTER)
        ending.linger = 0
        ending.use_fd = os.dup(unix.fileno())
        ending.bind(f"ipc://{path}")
        got = []

        def connect():
            with with_timeout(path, PATIENCE) as db:
                got.append(db.set("a", 1))

        client = threading.Thread(target=connect)
        client.start()
        assert ending.poll(PATIENCE * 1000)
        ending.unbind(f"ipc://{path}")
        ending.close()
        daemon = activated(location, unix)
        client.join(PATIENCE)
        assert got == [True]
        daemon.check_and_stop()


def test_where_nobody_is_the_first_one_is_told_so_at_once(path):
    listening(path).close()
    began = time.monotonic()
    with pytest.raises(Unavailable, match="Connection refused"):
        PickleDB(f"ipc://{path}", timeout=PATIENCE)
    assert time.monotonic() - began < PATIENCE / 2


def test_where_nobody_accepts_by_tcp_it_is_not_said_that_somebody_does():
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(socket.socket())
        there.bind(("127.0.0.1", 0))
        there.listen(0)
        address = there.getsockname()
        with contextlib.suppress(TimeoutError):
            while True:  # until the queue is full, and the system drops what comes
                stack.enter_context(socket.create_connection(address, 0.5))
        with pytest.raises(Unavailable, match="or out of reach: no answer within"):
            PickleDB(f"tcp://127.0.0.1:{address[1]}", timeout=0.3)


@pytest.mark.parametrize("most", [1, 2])
def test_where_a_process_has_no_further_socket_it_is_told(daemon_by_tcp, monkeypatch, most):
    monkeypatch.setattr(channel, "MAX_SOCKETS", most)

    def connect():
        with pytest.raises(Unavailable, match="Too many open files in this process"):
            PickleDB(daemon_by_tcp)

    assert in_fork(connect)  # where it has a context of its own
