"""A daemon that was halted, as by SIGSTOP or with its machine: whom it did not hear is not late."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import closing

import pytest

from support import PATIENCE, wait_until

TTL = 1.0


def halt(daemon, seconds):
    """Stop it for so long, and be sure that it is served again after that."""
    os.kill(daemon.pid, signal.SIGSTOP)
    time.sleep(seconds)  # what is tested is that time passes
    os.kill(daemon.pid, signal.SIGCONT)


@pytest.mark.parametrize("ttls", [0.75, 0.9, 2.5])
def test_who_lives_keeps_its_lock_however_long_the_daemon_was_halted(daemon, db, other, ttls):
    served = threading.Event()

    def wait():
        with other.lock("x", ttl=TTL):
            served.set()

    waiter = threading.Thread(target=wait, daemon=True)
    for _ in range(2):
        with db.lock("x", ttl=TTL) as held:
            if not waiter.is_alive():
                waiter = threading.Thread(target=wait, daemon=True)
                waiter.start()
            wait_until(lambda: db.info()["waiting"], "the other to wait")
            halt(daemon, ttls * TTL)
            assert db.set("k", 1, token=held.token)
            assert not served.is_set()
        assert served.wait(PATIENCE)
        waiter.join(PATIENCE)
        served.clear()


def test_who_has_died_meanwhile_holds_it_no_longer_than_its_time(daemon, db):
    holder = daemon.client()
    with closing(holder):
        holder.lock("x", ttl=TTL).acquire()
        keeper = holder._locks.keeper()
        os.kill(daemon.pid, signal.SIGSTOP)
        keeper._leases.clear()  # it is connected, and will not renew it
        time.sleep(1.5 * TTL)
        os.kill(daemon.pid, signal.SIGCONT)
        resumed = time.monotonic()
        with db.lock("x", timeout=PATIENCE):
            assert time.monotonic() - resumed > 0.5 * TTL, "it was given its time anew"
