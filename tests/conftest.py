"""Fixtures for all tests: each test has a daemon and a directory of its own."""

from __future__ import annotations

import contextlib
import os
import signal

import hypothesis
import pytest
import zmq

from support import PATIENCE, Daemon, is_alive, owner_pid, wait_until
from wired import Wired

# Speed is the benchmarks' business: a busy machine makes no example wrong.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a shell's background job, and so would it be in all that the tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)


# A thousand daemons are started; as on a user's machine, not each is to compile its modules anew
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(autouse=True)
def _no_inherited_settings(monkeypatch):
    monkeypatch.delenv("PICKLEDBD_CURVE", raising=False)
    monkeypatch.delenv("PICKLEDBD_URL", raising=False)
    monkeypatch.setenv("PICKLEDBD_IDLE_EXIT", "5")


@pytest.fixture
def location(tmp_path):
    """A path for a database. A daemon that a client started there is ended after the test."""
    path = tmp_path / "my.db"
    yield path
    pid = owner_pid(path)
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not is_alive(pid), f"the daemon {pid} to end")


@pytest.fixture(autouse=True)
def _no_daemon_is_left():
    """However the test ended, none of its daemons runs on."""
    yield
    while Daemon.running:
        left = Daemon.running.pop()
        if left.process.poll() is None:
            left.kill()
        left.process.stdout.close()
        left.process.stderr.close()


@pytest.fixture
def daemon(location):
    """A daemon, whose file is compared with what it held when the test is over."""
    running = Daemon(location)
    yield running
    if running.process.poll() is None:
        running.check_and_stop()


@pytest.fixture
def db(daemon):
    """A client of `daemon`."""
    with contextlib.closing(daemon.client()) as client:
        yield client


@pytest.fixture
def other(daemon):
    """Another client of `daemon`."""
    with contextlib.closing(daemon.client()) as client:
        yield client


@pytest.fixture
def dealer(daemon):
    """A bare ZeroMQ socket connected to `daemon`, for what no client of ours would send."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.rcvtimeo = int(PATIENCE * 1000)
        dealer.connect(daemon.endpoint)
        yield dealer


@pytest.fixture
def wire(tmp_path):
    """Makes engines without sockets, one after the other, each from what the one before left."""
    made = []

    def wire(*options):
        if made:
            made.pop().close()
        made.append(Wired(tmp_path / "my.db", *options))
        return made[-1]

    yield wire
    for wired in made:
        wired.close()


@pytest.fixture
def wired(wire):
    """An engine without sockets."""
    return wire()
