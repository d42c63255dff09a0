"""One database for threads, forks, spawned processes, signal handlers and pickled handles."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading

import pytest

from pickledbd_client import PickleDB
from support import PATIENCE, in_fork, store_pid


def test_one_object_serves_many_threads(db):
    def work(number):
        for n in range(50):
            assert db.set(f"{number}-{n}", n)
            assert db.get(f"{number}-{n}") == n

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert len(db) == 16 * 50


def test_it_is_used_on_both_sides_of_a_fork(db):
    db.set("before", 1)

    def child():
        assert db.get("before") == 1
        db.set("child", os.getpid())
        assert in_fork(lambda: db.set("grandchild", os.getpid()))

    assert in_fork(child)
    db.set("parent", os.getpid())
    pids = db.get_many(["child", "grandchild", "parent"])
    assert len(set(pids.values())) == 3


def test_forks_in_the_midst_of_other_threads_requests_get_their_own_replies(db):
    over = threading.Event()

    def ask(number):
        while not over.is_set():
            db.set(f"thread {number}", number)
            assert db.get(f"thread {number}") == number

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        threads = [pool.submit(ask, number) for number in range(4)]
        for number in range(20):

            def child(number=number):
                signal.alarm(int(PATIENCE))  # a hang ends
                for n in range(20):
                    db.set(f"fork {number}", n)
                    assert db.get(f"fork {number}") == n

            assert in_fork(child)
        over.set()
        for thread in threads:
            thread.result(PATIENCE)
    assert len(db) == 24


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_it_is_passed_to_other_processes(db, method):
    with concurrent.futures.ProcessPoolExecutor(
        2, mp_context=multiprocessing.get_context(method)
    ) as pool:
        pids = list(pool.map(store_pid, [db] * 4, "abcd"))
    assert pids == list(db.get_many("abcd").values())
    assert os.getpid() not in pids


def test_a_copy_is_another_handle_on_the_same_data(db):
    for copied in (pickle.loads(pickle.dumps(db)), copy.copy(db), copy.deepcopy(db)):
        with contextlib.closing(copied):
            copied.set("a", 1)
            assert copied.location == db.location
        assert db.pop("a") == 1


def test_a_signal_handler_may_use_it_in_the_midst_of_a_request(db):
    count = 0

    def handler(_number, _frame):
        nonlocal count
        count += 1
        key = f"handled {count}"
        db.set(key, key)
        assert db.get(key) == key
        signal.setitimer(signal.ITIMER_REAL, 0.0005)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005)
    try:
        for n in range(500):
            db.set("main", n)
            assert db.get("main") == n
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(db) == 1 + count > 1


# The end of a process


def run(script, location, **options):
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", script, str(location)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **options,
    )


IN_USE = """
import sys, threading
from pickledbd_client import PickleDB
db = PickleDB(sys.argv[1])
db.set("a", 1)
asked = threading.Event()
def ask():
    while True:
        db.get("a")
        asked.set()
for _ in range(4):
    threading.Thread(target=ask, daemon=True).start()
asked.wait()
"""


def test_nothing_hangs_or_warns_at_the_interpreter_s_end(daemon):
    for script in (IN_USE, IN_USE + "sys.exit(0)", IN_USE + "db.close()"):
        ended = run(script, daemon.location)
        assert (ended.returncode, ended.stdout) == (0, "")
        # a thread that is cut off by db.close() may say so; nothing else may be said
        assert "Unclosed" not in ended.stderr


def test_a_request_that_will_never_be_answered_does_not_hold_the_end_up(daemon):
    script = IN_USE + (
        "import os, signal, time\n"
        "os.kill(int(sys.stdin.readline()), signal.SIGSTOP)\n"
        "asked.clear()\n"
        "asked.wait(0.2)\n"  # the threads now wait for what a stopped daemon will not say
    )
    try:
        ended = run(script, daemon.location, input=f"{daemon.pid}\n")
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_many_handles_can_come_and_go(daemon, db):
    for _ in range(100):
        with contextlib.closing(PickleDB(daemon.endpoint)) as other:
            other.ping()
        PickleDB(daemon.endpoint)  # dropped without close()
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        PickleDB(daemon.endpoint)
    assert len(os.listdir("/proc/self/fd")) < files + 50
    assert db.ping()
