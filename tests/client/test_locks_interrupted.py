"""Locks that are taken and given back while signals, other threads and forks come between."""

from __future__ import annotations

import linecache
import os
import sys
import threading

import pytest

from pickledbd_client import locks
from support import PATIENCE, in_fork, wait_until

LONG = 600.0
ROOMS = ("locks.py", "held.py", "keeper.py", "leases.py")


class Alarm(BaseException):
    """What a signal's handler raises."""


class Interrupting:
    """Raises Alarm at one of the steps that this thread does in the rooms of the locks.

    Not before the `try` of `__exit__`, where nothing can be made good.
    """

    def __init__(self, number):
        self.left = number

    def __call__(self, frame, event, _arg):
        code = frame.f_code
        if os.path.basename(code.co_filename) not in ROOMS:
            return None
        line = linecache.getline(code.co_filename, frame.f_lineno).strip()
        starts = code.co_name == "__exit__" and line in ("held: Held | None = None", "try:")
        if event == "line" and not starts:
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise Alarm
        return self


def interrupted(db, number, where):
    """Whether a block was, at that step of its beginning or its end."""
    before = sys.gettrace()
    try:
        if where == "acquire":
            sys.settrace(Interrupting(number))
        with db.lock(f"{where}{number}", ttl=LONG):
            sys.settrace(Interrupting(number) if where == "release" else None)
    except Alarm:
        return True
    finally:
        sys.settrace(before)
    return False


# Interrupted between a socket's or a file's making and its keeping, one is left to the collector
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("where", ["acquire", "release"])
def test_at_whatever_step_it_is_interrupted_nothing_stays_held(db, other, where):
    with db.lock("first"):
        pass
    number = 1
    while interrupted(db, number, where):
        assert not db._locks.here().of_thread(), number
        number += 1
    assert number > 15
    wait_until(lambda: not db._locks.keeper()._leases, "all to be told")
    assert other.info()["locks"] == 0


def test_a_signal_handler_may_take_its_first_lock_in_the_midst_of_another_handles(
    daemon, monkeypatch
):
    start = threading.Thread.start
    handles = [daemon.client() for _ in range(3)]
    within = []

    def interrupted_start(self):
        if self.name == "pickledbd-keeper" and len(within) < 2:
            within.append(self)
            with handles[len(within)].lock("handler's"):
                pass
        start(self)

    def work():
        with handles[0].lock("x"):
            pass

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(PATIENCE)
    handles[0].close()
    handles[0] = daemon.client()
    worker = threading.Thread(target=work, daemon=True)
    monkeypatch.setattr(threading.Thread, "start", interrupted_start)
    start(worker)
    worker.join(PATIENCE / 4)
    assert not worker.is_alive()
    assert len(within) == 2
    for each in handles:
        each.close()


def test_it_may_be_the_same_handle(daemon, other, monkeypatch):
    """Of the two threads that are begun then, one goes on."""
    start = threading.Thread.start
    within = []

    def interrupted_start(self):
        if self.name == "pickledbd-keeper" and not within:
            within.append(self)
            with db.lock("handler's", ttl=LONG):
                pass
        start(self)

    monkeypatch.setattr(threading.Thread, "start", interrupted_start)
    db = daemon.client()
    with db.lock("x", ttl=1) as held:
        before = held.lease.since
        wait_until(lambda: held.lease.since > before, "a renewal")
        keepers = [each for each in threading.enumerate() if each is db._locks.keeper()._thread]
        assert len(keepers) == 1
    assert len(within) == 1
    assert other.info()["locks"] == 0
    db.close()


def test_threads_of_a_child_that_take_their_first_locks_at_once_have_one_keeper(db, other):
    def child():
        entered, go_on = threading.Event(), threading.Event()
        leave = locks.leave

        def leave_slowly(connections):
            if threading.current_thread().name == "slow":
                entered.set()
                assert go_on.wait(PATIENCE)
            leave(connections)

        locks.leave = leave_slowly

        def take():
            with db.lock("slow"):
                pass

        slow = threading.Thread(target=take, name="slow")
        slow.start()
        assert entered.wait(PATIENCE)
        with db.lock("x", ttl=1) as held:
            go_on.set()
            slow.join(PATIENCE)
            before = held.lease.since
            wait_until(lambda: held.lease.since > before, "a renewal")
        assert other.info()["locks"] == 0

    with db.lock("before"):
        pass
    assert in_fork(child)


def test_a_child_that_leaves_its_parents_block_does_not_end_it(db, other):
    lock = db.lock("x", ttl=LONG)

    def child():
        lock.__exit__(ValueError, ValueError(), None)
        assert other.info()["locks"] == 1

    with lock:
        assert in_fork(child)
        assert other.info()["locks"] == 1
