"""A cache has one end and many users: threads, forks, signal handlers, copies."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import os
import pickle
import select
import signal
import threading

import pytest

from cached import asks, halted, keeps
from pickledbd_client import Unavailable
from support import PATIENCE, in_fork


def test_a_closed_client_tells_nothing_any_more(daemon):
    db = daemon.client()
    db.set("a", 1)
    assert db.get("a") == 1
    assert "a" in db
    assert kept_by(db)
    db.close()
    for read in (db.get, db.__getitem__, db.__contains__):
        with pytest.raises(Unavailable, match="closed"):
            read("a")
    assert not kept_by(db)


def kept_by(db):
    return {**db._cache._old, **db._cache.young}


def test_a_fork_reads_what_its_parent_has_read(daemon, db):
    db.update({"a": 1, "b": [1]})
    assert (db.get("a"), db.get("b")) == (1, [1])

    def child():
        assert (db.get("a"), db.get("b")) == (1, [1])

    with halted(daemon):
        assert in_fork(child)


def test_each_side_of_a_fork_reads_what_the_other_writes(daemon, db):
    db.set("a", 0)
    assert db.get("a") == 0
    (to_child, at_child), (to_parent, at_parent) = os.pipe()[::-1], os.pipe()[::-1]

    def wait_for_it(reader):
        assert select.select([reader], [], [], PATIENCE)[0]
        assert os.read(reader, 1) == b"."

    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(int(PATIENCE))
            for number in range(0, 100, 2):
                assert db.get("a") == number
                os.write(to_parent, b".")
                wait_for_it(at_child)
                assert db.get("a") == number + 1
                db.set("a", number + 2)
                os.write(to_parent, b".")
            os._exit(0)
        finally:
            os._exit(1)
    try:
        for number in range(0, 100, 2):
            wait_for_it(at_parent)
            assert db.get("a") == number
            db.set("a", number + 1)
            os.write(to_child, b".")
            wait_for_it(at_parent)
            assert db.get("a") == number + 2
    finally:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        for end in (to_child, at_child, to_parent, at_parent):
            os.close(end)
    assert keeps(daemon, db)


def test_threads_that_share_it_never_see_less_than_was_acknowledged(daemon, db, other):
    keys = [f"key {n}" for n in range(5)]
    acknowledged = dict.fromkeys(keys, 0)
    other.update(acknowledged)
    over = threading.Event()
    reads = [0] * 8

    def reader(number):
        while not over.is_set():
            for key in keys:
                least = acknowledged[key]
                assert db.get(key) >= least
            reads[number] += 1

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        reading = [pool.submit(reader, number) for number in range(8)]
        try:
            for value in range(1, 101):
                for key in keys:
                    other.set(key, value)
                    acknowledged[key] = value
        finally:
            over.set()
        for one in reading:
            one.result(PATIENCE)
    assert all(reads)
    assert [db.get(key) for key in keys] == [100] * 5
    with halted(daemon):
        assert [db.get(key) for key in keys] == [100] * 5


def test_threads_whose_first_reads_meet_all_use_it_afterwards(daemon, other):
    other.set("a", 1)
    for _ in range(20):
        with contextlib.closing(daemon.client()) as db:
            together = threading.Barrier(8, timeout=PATIENCE)

            def first(db=db, together=together):
                together.wait()
                return db.get("a")

            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                assert [one.result(PATIENCE) for one in [pool.submit(first) for _ in range(8)]] == [
                    1
                ] * 8
            before = db._link.mark()
            assert db.get("a") == 1
            assert db._link.mark() == before


def test_a_signal_handler_reads_it_in_the_midst_of_a_read(db, other):
    other.update({"a": 1, "b": [1, [2]]})
    handled = 0

    def handler(_number, _frame):
        nonlocal handled
        handled += 1
        assert (db.get("a"), db.get("b"), db.get("missing")) == (1, [1, [2]], None)
        signal.setitimer(signal.ITIMER_REAL, 0.0005)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005)
    try:
        while handled < 100:
            assert (db.get("a"), db.get("b"), db.get("missing")) == (1, [1, [2]], None)
            other.set("c", handled)
            assert db.get("c") == other.get("c")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_copy_of_a_client_has_a_cache_of_its_own_and_as_much_room(daemon, db, other):
    db.set("a", 1)
    assert db.get("a") == 1
    for copied in (pickle.loads(pickle.dumps(db)), copy.copy(db), copy.deepcopy(db)):
        with contextlib.closing(copied):
            assert asks(daemon, copied)
            assert copied.get("a") == db.get("a") == 1
            assert keeps(daemon, copied)
            other.set("a", 2)
            assert copied.get("a") == db.get("a") == 2
            other.set("a", 1)
        assert db.get("a") == 1
    with (
        contextlib.closing(daemon.client(cache_bytes=0)) as none,
        contextlib.closing(pickle.loads(pickle.dumps(none))) as copied,
    ):
        assert copied.get("a") == 1
        assert asks(daemon, copied)
