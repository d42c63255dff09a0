"""Sockets that are passed to the daemon: they are used, and left as they are."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from subprocess import PIPE

import pytest

from managed import activated, listening
from pickledbd_client import NotAllowed, PickleDB
from support import PATIENCE, Daemon, left_by


@pytest.fixture
def path(tmp_path):
    return os.fspath(tmp_path / "passed.sock")


def test_it_serves_at_the_sockets_that_were_passed_and_at_no_other(location, path):
    with listening(path) as unix, listening(("127.0.0.1", 0)) as tcp:
        port = tcp.getsockname()[1]
        before = os.lstat(path)
        daemon = activated(location, unix, tcp)
        assert daemon.ready.endswith(f" at ipc://{path} and tcp://127.0.0.1:{port}\n")
        for endpoint in (f"ipc://{path}", f"tcp://127.0.0.1:{port}"):
            with contextlib.closing(PickleDB(endpoint)) as db:
                db.incr("count")
        with contextlib.closing(daemon.client()) as db:  # the lock file tells of them
            assert db.get("count") == 2
            assert db.info()["endpoints"] == [f"ipc://{path}", f"tcp://127.0.0.1:{port}"]
        daemon.check_and_stop()
        assert os.path.samestat(os.lstat(path), before)
        assert left_by(location) == ["my.db", "passed.sock"]


def test_what_is_bound_comes_in_addition(location, path, tmp_path):
    own = f"ipc://{tmp_path}/own.sock"
    with listening(path) as unix:
        options = ("--bind", own, "--bind", f"ipc://{path}")
        daemon = activated(location, unix, options=options)
        assert daemon.ready.endswith(f" at ipc://{path} and {own}\n")
        for endpoint in (f"ipc://{path}", own):
            with contextlib.closing(PickleDB(endpoint)) as db:
                assert db.ping()
        daemon.check_and_stop()
    assert os.path.exists(path)
    assert not os.path.exists(f"{tmp_path}/own.sock")


def test_values_are_kept_at_hand_also_over_a_restart(location, path):
    with listening(path) as unix:
        daemon = activated(location, unix)
        db = PickleDB(f"ipc://{path}", timeout=PATIENCE)
        for number in range(3):
            db.set("a", number)
            assert db.get("a") == number
            asked = db._link.mark()
            assert db.get("a") == number
            assert db._link.mark() == asked
            daemon.stop() if number % 2 else daemon.kill()
            daemon = activated(location, unix)
        assert db.get("a") == 2
        db.close()
        daemon.check_and_stop()


def test_clients_that_come_while_it_is_away_wait_and_none_fails(location, path):
    failures, counted = [], [0] * 4
    going_on = threading.Event()
    enough = threading.Event()

    def count(number):
        try:
            while not enough.is_set():
                with contextlib.closing(PickleDB(f"ipc://{path}", timeout=PATIENCE)) as db:
                    counted[number] += db.incr(f"count{number}") > 0
                    counted[number] += db.incr(f"count{number}") > 0
                going_on.set()
        except BaseException as error:  # noqa: BLE001 - whatever it is
            failures.append(error)

    with listening(path) as unix:
        threads = [threading.Thread(target=count, args=(n,)) for n in range(len(counted))]
        for thread in threads:
            thread.start()
        for number in range(6):
            daemon = activated(location, unix)
            going_on.clear()
            assert going_on.wait(PATIENCE)
            daemon.kill() if number % 2 else daemon.stop()
        daemon = activated(location, unix)
        enough.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert failures == []
        with contextlib.closing(PickleDB(f"ipc://{path}")) as db:
            assert [db.get(f"count{n}") for n in range(len(counted))] == counted
        daemon.check_and_stop()


def test_a_stopping_daemon_takes_no_client_that_the_next_one_could_serve(location, path):
    """Its last save may take long; who comes then is not to wait for that to be sent away."""
    slow = "import sys, threading, time\nfrom pickledbd import cli, snapshot\n"
    slow += "publish = snapshot.Writing.publish\n"
    slow += "def wait(self):\n    print('saving', flush=True)\n    sys.stdin.read()\n"
    slow += "    publish(self)\nsnapshot.Writing.publish = wait\nsys.exit(cli.main(sys.argv[1:]))\n"
    with listening(path) as unix:
        first = activated(location, unix, program=(sys.executable, "-c", slow), stdin=PIPE)
        with contextlib.closing(PickleDB(f"ipc://{path}")) as db:
            db.set("a", 1)
        first.process.terminate()
        assert first.process.stdout.readline() == "saving\n"
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(0.3)
            probe.connect(path)
            with pytest.raises(TimeoutError):
                probe.recv(64)  # nobody greets
            first.process.stdin.close()
            assert first.process.wait(PATIENCE) == 0
            following = activated(location, unix)
            probe.settimeout(PATIENCE)
            assert probe.recv(1) == b"\xff"  # the next one does
        following.check_and_stop()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda _: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), "is no stream that listens"),
        (lambda _: socket.socket(socket.AF_UNIX), "is no stream that listens"),
        (lambda _: listening("\0pickledbd-test"), "is not a file's absolute path"),
        (lambda _: listening(("0.0.0.0", 0)), "tcp is served on loopback only"),
        (lambda tmp_path: (tmp_path / "file").open("w"), "is no socket"),
    ],
    ids=["datagrams", "not listening", "abstract", "beyond loopback", "a file"],
)
def test_what_is_unfit_is_refused_by_its_name(make, why, location, tmp_path):
    with make(tmp_path) as unfit:
        daemon = activated(location, unfit, names="some.socket", wait=False)
        status, err = daemon.end()
    assert (status, len(err.splitlines())) == (1, 1)
    assert err.startswith("pickledbd: descriptor 3 (some.socket), which was passed by the service")
    assert why in err
    assert not location.exists()


def test_what_was_passed_to_another_process_is_not_taken(location, path):
    with listening(path) as unix:
        env = {**os.environ, "LISTEN_PID": "1", "LISTEN_FDS": "1"}
        daemon = Daemon(location, env=env, pass_fds=[unix.fileno()])
        assert path not in daemon.ready
        daemon.check_and_stop()


def test_its_children_and_clients_are_told_nothing_of_it(location, path):
    script = "import os; from pickledbd import activation; claims = [*activation.passed()]; "
    script += "print([n for n in os.environ if n.startswith('LISTEN')], os.get_inheritable(3))"
    with listening(path) as unix:
        script = activated(location, unix, program=(sys.executable, "-c", script), wait=False)
        assert script.process.stdout.readline() == "[] False\n"
        script.end()


def test_a_name_says_that_clients_may_only_read_or_nothing(location, path):
    with listening(path) as unix:
        daemon = activated(location, unix, names="read-only")
        with contextlib.closing(PickleDB(f"ipc://{path}")) as db:
            assert db.info()["read_only"]
            with pytest.raises(NotAllowed):
                db.set("a", 1)
        daemon.check_and_stop()
        status, err = activated(location, unix, names="readonly", wait=False).end()
    assert status == 1
    assert "(readonly), which was passed by the service manager, does not fit: FileDesc" in err
