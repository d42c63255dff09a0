"""Fixtures for all tests: each test has a daemon and a directory of its own."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from support import Daemon, is_alive, owner_pid, wait_until


@pytest.fixture(autouse=True)
def _no_inherited_settings(monkeypatch):
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


@pytest.fixture
def daemon(location):
    """A daemon, whose file is compared with what it held when the test is over."""
    running = Daemon(location)
    try:
        yield running
        if running.process.poll() is None:
            running.check_and_stop()
    finally:
        if running.process.poll() is None:
            running.kill()
        running.process.stdout.close()
        running.process.stderr.close()


@pytest.fixture
def db(daemon):
    """A client of `daemon`."""
    with contextlib.closing(daemon.client()) as client:
        yield client
