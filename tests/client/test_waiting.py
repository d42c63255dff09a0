"""Waiting: deadlines are kept, Ctrl+C ends it, and the error says what is known."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from pickledbd_client import PickleDB, ProtocolError, RequestTimeout, Unavailable
from support import PATIENCE, Daemon, answering, wait_until


@contextlib.contextmanager
def stopped(pid):
    """SIGSTOP for a while: a daemon that is there and says nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_read_without_an_answer_times_out_and_changed_nothing(daemon):
    with contextlib.closing(daemon.client(timeout=0.2)) as db:
        with (
            stopped(daemon.pid),
            pytest.raises(TimeoutError, match=r"did not answer a get") as caught,
        ):
            db.get("a")
        assert caught.value.outcome_known
        assert db.get("a") is None


def test_a_write_without_an_answer_says_that_its_outcome_is_unknown(daemon):
    with contextlib.closing(daemon.client(timeout=0.2)) as db:
        with stopped(daemon.pid), pytest.raises(RequestTimeout, match="may or may not") as caught:
            db.set("a", 1)
        assert not caught.value.outcome_known
        # here it was applied, once the daemon went on
        wait_until(lambda: db.get("a") == 1, "the write to be applied")


def test_a_write_whose_answer_makes_no_sense_may_have_been_applied(tmp_path):
    endpoint = f"ipc://{tmp_path}/s"
    with (
        answering(endpoint, 4, lambda _number: ["no JSON"]),
        contextlib.closing(PickleDB(endpoint, timeout=PATIENCE)) as db,
    ):
        for call, known in ((lambda: db.set("a", 1), False), (lambda: db.get("a"), True)):
            with pytest.raises(ProtocolError, match="not a pickledbd reply") as caught:
                call()
            assert caught.value.outcome_known is known


def test_nothing_is_asked_of_a_daemon_that_does_not_even_greet(daemon):
    with stopped(daemon.pid):
        with pytest.raises(Unavailable, match="nothing was asked") as caught:
            PickleDB(daemon.endpoint, timeout=0.2)
        assert caught.value.outcome_known


def test_a_late_reply_meets_nobody(daemon):
    with contextlib.closing(daemon.client()) as setter:
        setter.set_many({"a": "A", "b": "B"})
    with contextlib.closing(daemon.client(timeout=0.2)) as db:
        with stopped(daemon.pid), pytest.raises(TimeoutError):
            db.get("a")
        for _ in range(20):
            assert db.get("b") == "B"


@pytest.mark.parametrize("seconds", [0.05, 0.001])
def test_the_deadline_is_kept_however_many_signals_come(daemon, seconds):
    before = signal.signal(signal.SIGALRM, lambda _number, _frame: None)
    with contextlib.closing(daemon.client(timeout=0.5)) as db:
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
        try:
            with stopped(daemon.pid), pytest.raises(TimeoutError):
                db.get("a")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def test_without_a_timeout_it_waits(daemon):
    with contextlib.closing(daemon.client(timeout=None)) as db:
        os.kill(daemon.pid, signal.SIGSTOP)
        timer = threading.Timer(0.5, os.kill, (daemon.pid, signal.SIGCONT))
        timer.start()
        assert db.set("a", 1)
        timer.join()


def test_a_timeout_of_many_years_is_one(daemon):
    with contextlib.closing(daemon.client(timeout=1e12)) as db:
        assert db.ping()


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_a_timeout_that_is_none_is_refused(location, timeout):
    with pytest.raises(ValueError, match="timeout"):
        PickleDB(location, timeout=timeout)


WAIT = """
import sys
from pickledbd_client import PickleDB
db = PickleDB(sys.argv[1], timeout=None)
print("ready", flush=True)
sys.stdin.readline()
try:
    print("asking", flush=True)
    db.set("a", 1)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.stdin.readline()
    print(db.get("b"), flush=True)
"""


def test_ctrl_c_ends_a_wait_and_the_object_is_of_use_after_it(daemon, db):
    db.set("b", 2)
    client = subprocess.Popen(
        [sys.executable, "-c", WAIT, str(daemon.location)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout.readline() == "ready\n"
    with stopped(daemon.pid):
        client.stdin.write("go\n")
        client.stdin.flush()
        assert client.stdout.readline() == "asking\n"
        # in the poll that waits for the reply, or on its way there: both have to end
        client.send_signal(signal.SIGINT)
        assert client.stdout.readline() == "interrupted\n"
    out, _ = client.communicate("go\n", timeout=PATIENCE)
    assert (client.returncode, out) == (0, "2\n")


OPEN = """
import sys
from pickledbd_client import PickleDB
print("asking", flush=True)
PickleDB(sys.argv[1])
"""


def test_ctrl_c_ends_the_wait_for_a_daemon_that_is_loading(location):
    with open(f"{location}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write('{"pid": 1, "state": "loading", "bytes": 5}')
        lock.flush()
        client = subprocess.Popen(
            [sys.executable, "-c", OPEN, str(location)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert client.stdout.readline() == "asking\n"
        client.send_signal(signal.SIGINT)
        _, err = client.communicate(timeout=PATIENCE)
    assert "KeyboardInterrupt" in err
    os.unlink(f"{location}.lock")


@contextlib.contextmanager
def killed(daemon):
    """What is asked within reaches a daemon that does not answer any more, and is killed then."""
    os.kill(daemon.pid, signal.SIGSTOP)
    timer = threading.Timer(0.2, daemon.process.kill)
    timer.start()
    yield
    timer.join()
    daemon.end()


def test_a_write_whose_daemon_was_killed_and_has_no_successor_may_have_been_applied(location):
    daemon = Daemon(location)
    db = daemon.client(timeout=1)
    with (
        killed(daemon),
        pytest.raises(Unavailable, match="may or may not have been applied") as caught,
    ):
        db.set("a", 1)
    assert isinstance(caught.value, ConnectionError)
    assert not caught.value.outcome_known
    for call in (lambda: db.get("a"), lambda: db.set("a", 1), db.save):
        with pytest.raises(Unavailable, match=r"nobody serves it|does not answer") as caught:
            call()
        assert caught.value.outcome_known  # nothing of it was sent
    os.unlink(f"{location}.lock")


def test_a_read_whose_daemon_was_killed_and_has_no_successor_changed_nothing(location):
    daemon = Daemon(location)
    db = daemon.client(timeout=1)
    with killed(daemon), pytest.raises(Unavailable, match="did not answer a get") as caught:
        db.get("a")
    assert caught.value.outcome_known
    os.unlink(f"{location}.lock")


WRITES = {
    "set": lambda db: db.set("a", 2),
    "pop": lambda db: db.pop("a"),
    "popitem": lambda db: db.popitem(),
    "setdefault": lambda db: db.setdefault("b", 5),
    "remove": lambda db: db.remove("a"),
    "remove_many": lambda db: db.remove_many(["a", "b"]),
    "set_many": lambda db: db.set_many(dict.fromkeys(range(3000), "x" * 100)),
    "replace": lambda db: setattr(db, "db", dict.fromkeys(range(3000), "x" * 100)),
    "purge": lambda db: db.purge(),
    "save": lambda db: db.save(),
}


@pytest.mark.parametrize("name", WRITES)
def test_who_asks_while_the_daemon_is_killed_is_answered_by_the_next(location, name):
    first = Daemon(location)
    with contextlib.closing(first.client(autostart=True)) as db:
        db["a"] = 1
        with killed(first):
            answer = WRITES[name](db)
        assert db.info()["pid"] != first.pid
        after = dict(db.db)
        WRITES["purge"](db)  # the session is of use after it
        db["a"] = 1
        assert WRITES[name](db) == answer
        assert db.db == after


def test_a_save_that_its_daemon_did_not_survive_is_not_taken_for_done(location):
    daemon = Daemon(location, "--durability", "save")
    db = daemon.client(autostart=True)
    db.set("a", 1)
    with killed(daemon), pytest.raises(Unavailable, match="did not answer a save") as caught:
        db.save()
    assert not caught.value.outcome_known
    assert not location.exists()


def test_a_save_is_asked_again_where_the_journal_kept_what_it_was_to_save(location):
    daemon = Daemon(location)
    with contextlib.closing(daemon.client(autostart=True)) as db:
        db.set("a", 1)
        with killed(daemon):
            assert db.save()
        assert json.loads(location.read_bytes()) == {"a": 1}


def test_a_daemon_that_dies_just_as_it_is_connected_to_is_noticed_at_once(tmp_path):
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def die():
            listener.accept()[0].close()
            listener.close()

        thread = threading.Thread(target=die)
        thread.start()
        started = time.monotonic()
        with pytest.raises(Unavailable, match="no daemon at"):
            PickleDB(f"ipc://{path}", timeout=PATIENCE)
        assert time.monotonic() - started < PATIENCE / 2
        thread.join()


def test_a_read_rides_through_a_restart(location):
    endpoint = f"ipc://{location.parent}/s.sock"
    first = Daemon(location, "--bind", endpoint)
    with contextlib.closing(PickleDB(endpoint, timeout=PATIENCE)) as db:
        db.set("a", 1)
        first.stop()
        starter = threading.Timer(0.3, lambda: started.append(Daemon(location, "--bind", endpoint)))
        started = []
        starter.start()
        assert db.get("a") == 1
        starter.join()
        # nothing had been sent when the connection was found lost, so a write rides through too
        started[0].stop()
        second = Daemon(location, "--bind", endpoint)
        assert db.set("b", 2)
    second.check_and_stop()
