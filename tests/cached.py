"""Whether a read asks the daemon: told by halting that, as what is kept is told all the same."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import threading
from pathlib import Path

from pickledbd_protocol.counters import COUNTERS_SUFFIX
from support import PATIENCE


@contextlib.contextmanager
def halted(daemon):
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        # not reaped: to Popen it has not ended
        os.waitid(os.P_PID, daemon.pid, os.WSTOPPED | os.WNOWAIT)
        yield
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def is_told_meanwhile(daemon, read, patience):
    """Whether `read` tells something within `patience` while `daemon` is halted."""
    begun = threading.Event()

    def reading():
        begun.set()
        return read()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with halted(daemon):
            future = pool.submit(reading)
            assert begun.wait(PATIENCE)
            told = bool(concurrent.futures.wait([future], patience).done)
        future.result(PATIENCE)
    return told


def asks(daemon, db, key="a"):
    """Whether `db` has to ask `daemon` for `key`."""
    return not is_told_meanwhile(daemon, lambda: db.get(key), 0.1)


def keeps(daemon, db, key="a"):
    """Whether `db` has `key` at hand. Not `not asks`: on a busy machine it may be slow."""
    return is_told_meanwhile(daemon, lambda: db.get(key), 10.0)


def table_of(db):
    """The file of the counter table that `db` was told of."""
    endpoint = db.info()["endpoints"][0].removeprefix("ipc://")
    beside = Path(endpoint + COUNTERS_SUFFIX)
    return beside if beside.exists() else Path("/dev/shm", beside.parent.name, beside.name)
