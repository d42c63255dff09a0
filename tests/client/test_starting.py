"""From a path to its daemon: found, or started once however many ask, or told why not."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from pickledbd_client import NotAllowed, PickleDB, PickleDBError, Unavailable
from support import PATIENCE, Daemon, in_fork, is_alive, left_by, owner_pid, wait_until

OPEN = """
import sys
from pickledbd_client import PickleDB
sys.stdin.readline()
db = PickleDB(sys.argv[1], timeout=60)
print(db.info()["pid"], flush=True)
sys.stdin.readline()
"""


def opener(location, script=OPEN):
    return subprocess.Popen(
        [sys.executable, "-c", script, str(location)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_twenty_processes_in_the_same_instant_share_one_daemon(location):
    processes = [opener(location) for _ in range(20)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    pids = {process.stdout.readline() for process in processes}
    for process in processes:
        process.communicate("end\n", timeout=PATIENCE)
        assert process.returncode == 0
    assert pids == {f"{owner_pid(location)}\n"}


def test_twenty_threads_in_the_same_instant_share_one_daemon(location):
    def work(n):
        with contextlib.closing(PickleDB(location, timeout=PATIENCE)) as db:
            db.set(n, n)
            return db.info()["pid"]

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        pids = set(pool.map(work, range(20)))
    assert pids == {owner_pid(location)}
    assert len(PickleDB(location)) == 20


def test_it_outlives_its_starter_and_ends_saved_when_nobody_is_left(location, monkeypatch):
    monkeypatch.setenv("PICKLEDBD_IDLE_EXIT", "1")
    first = opener(location)
    first.stdin.write("go\n")
    first.stdin.flush()
    pid = int(first.stdout.readline())
    with contextlib.closing(PickleDB(location)) as db:
        first.kill()
        first.communicate(timeout=PATIENCE)
        db.set("a", 1)
        assert db.info()["pid"] == pid
    assert is_alive(pid)
    wait_until(lambda: not is_alive(pid), "the daemon to end")
    assert json.loads(location.read_bytes()) == {"a": 1}
    assert left_by(location) == ["my.db"]
    with contextlib.closing(PickleDB(location)) as db:
        assert db.get("a") == 1
        assert db.info()["pid"] != pid


def test_it_has_no_terminal_no_parent_and_no_signals_of_its_starter(location):
    with contextlib.closing(PickleDB(location)) as db:
        pid = db.info()["pid"]
    assert os.getsid(pid) != os.getsid(0)
    assert os.getpgid(pid) != os.getpgid(0)
    with open(f"/proc/{pid}/status") as status:
        assert f"PPid:\t{os.getpid()}\n" not in status.readlines()
    for standard in (0, 1, 2):
        assert os.readlink(f"/proc/{pid}/fd/{standard}") == os.devnull


def test_the_daemon_s_reason_for_not_starting_is_the_exception_s(location):
    location.write_bytes(b"not json")
    with pytest.raises(Unavailable, match=r"did not start: .* is not JSON: .*line 1 column 1"):
        PickleDB(location)
    assert location.read_bytes() == b"not json"
    assert os.listdir(location.parent) == ["my.db"]
    location.write_bytes(b"{}")
    PickleDB(location).close()


def test_a_daemon_that_cannot_even_run_says_so(location, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/python-is-not-here")
    with pytest.raises(Unavailable, match="cannot start a daemon"):
        PickleDB(location)
    monkeypatch.setattr(sys, "executable", "/bin/false-python")
    with pytest.raises(PickleDBError):
        PickleDB(location)


def test_an_embedding_program_s_own_executable_is_not_run(location, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/usr/sbin/uwsgi")
    with contextlib.closing(PickleDB(location)) as db:
        assert db.ping()


def test_a_missing_directory_is_told(tmp_path):
    with pytest.raises(Unavailable, match=r"No such file or directory"):
        PickleDB(tmp_path / "missing" / "my.db")


def test_without_autostart_nothing_is_started(location):
    with pytest.raises(Unavailable, match="nobody serves it, and autostart is off"):
        PickleDB(location, autostart=False)
    assert os.listdir(location.parent) == []


@pytest.mark.parametrize("state", ["starting", "loading", "serving"])
def test_without_autostart_what_a_killed_daemon_told_is_not_waited_for(location, state):
    with open(f"{location}.lock", "w") as lock:
        lock.write(json.dumps({"pid": 4194300, "state": state}))
    started = time.monotonic()
    with pytest.raises(Unavailable, match="autostart is off"):
        PickleDB(location, autostart=False)
    assert time.monotonic() - started < PATIENCE / 2
    os.unlink(f"{location}.lock")


def test_ctrl_c_for_the_starter_is_not_for_the_daemon_it_starts(location):
    script = (
        "import os, signal, sys, threading\n"
        "signal.signal(signal.SIGINT, lambda number, frame: None)\n"
        "from pickledbd_client import PickleDB\n"
        "for delay in range(1, 30):\n"
        "    threading.Timer(delay / 100, os.killpg, (0, signal.SIGINT)).start()\n"
        "PickleDB(sys.argv[1], timeout=60).set('a', 1)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(location)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        start_new_session=True,
    )
    assert ended.returncode == 0, ended.stderr
    with contextlib.closing(PickleDB(location)) as db:
        assert db.get("a") == 1


def test_a_lock_held_by_who_does_not_serve_is_told_within_the_timeout(location):
    with open(f"{location}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="cannot reach"):
            PickleDB(location, timeout=0.3)
    os.unlink(f"{location}.lock")


@pytest.mark.parametrize(
    "told",
    [
        "",
        "\0" * 9,
        '{"pi',
        '{"pid":1,"endpoints":["ipc:///no/such"]}',
        '{"pid":1,"state":"loading"}',
    ],
)
def test_what_a_killed_owner_left_in_the_lock_file_does_not_mislead(location, told):
    with open(f"{location}.lock", "w") as lock:
        lock.write(told)
    with contextlib.closing(PickleDB(location)) as db:
        assert db.ping()


@pytest.mark.parametrize("whole", [b'{"_meta": {}}', b"text"])
def test_another_program_s_lock_file_is_not_touched(location, whole):
    lock = location.with_name("my.db.lock")
    lock.write_bytes(whole)
    with pytest.raises(Unavailable, match=r"another program's file, and was not touched"):
        PickleDB(location)
    assert lock.read_bytes() == whole
    lock.unlink()
    precious = location.with_name("precious")
    precious.write_bytes(b"")
    lock.symlink_to(precious)
    with pytest.raises(Unavailable, match="symbolic links"):
        PickleDB(location)
    assert lock.is_symlink()


def test_a_copy_of_a_database_in_use_is_a_database_of_its_own(location):
    with contextlib.closing(PickleDB(location)) as db:
        db.set("who", "the first")
        db.save()
        copied = location.parent / "copy"
        copied.mkdir()
        for name in ("my.db", "my.db.lock"):
            shutil.copy(location.with_name(name), copied)
        with contextlib.closing(PickleDB(copied / "my.db")) as other:
            other.set("who", "the second")
            other.save()
            pid = other.info()["pid"]
        assert db.get("who") == "the first"
        assert json.loads((copied / "my.db").read_bytes()) == {"who": "the second"}
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not is_alive(pid), "the copy's daemon to end")


def test_an_endpoint_that_is_another_daemon_s_by_now_does_not_mislead(location):
    endpoint = f"ipc://{location.parent}/s.sock"
    Daemon(location, "--bind", endpoint).kill()
    other = Daemon(location.with_name("other.db"), "--bind", endpoint)
    with contextlib.closing(PickleDB(location)) as db:
        db.set("a", 1)
        assert db.info()["location"] == str(location)
    other.check_and_stop()
    assert not other.location.exists()


@pytest.mark.parametrize("idle_exit", ["0", "0.001"])
def test_a_daemon_that_ends_at_once_when_idle_still_serves_who_started_it(
    location, monkeypatch, idle_exit
):
    monkeypatch.setenv("PICKLEDBD_IDLE_EXIT", idle_exit)
    for number in range(3):
        with contextlib.closing(PickleDB(location)) as db:
            assert db.get("n", 0) == number
            db.set("n", number + 1)


# What was just made, and is in nobody's hands yet, nobody can close
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_ctrl_c_in_the_midst_of_a_start_leaves_the_path_free(location):
    def interrupt(_number, _frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    moments = random.Random(1)
    try:
        for _ in range(30):
            with contextlib.suppress(KeyboardInterrupt):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0001 + moments.random() * 0.01)
                    PickleDB(location).close()
                finally:  # also here it may come
                    signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    with contextlib.closing(PickleDB(location, timeout=PATIENCE)) as db:
        assert db.ping()


HELD = """
import fcntl, os, sys
if "pickledbd" in sys.orig_argv:
    def hold():
        with open(os.environ["HELD"]) as held:
            fcntl.flock(held, fcntl.LOCK_SH)
    os.register_at_fork(after_in_child=hold)
"""


@pytest.mark.parametrize("autostart", [True, False])
def test_a_daemon_that_is_slow_to_start_is_waited_for(location, monkeypatch, autostart):
    """By who starts it and by who comes meanwhile, though it could not tell anything yet."""
    held = location.with_name("held")
    location.with_name("sitecustomize.py").write_text(HELD)
    monkeypatch.setenv("PYTHONPATH", str(location.parent))
    monkeypatch.setenv("HELD", str(held))

    def open_one(**options):
        PickleDB(location, timeout=0.01, **options).close()

    def is_starting():
        with contextlib.suppress(OSError, ValueError), open(f"{location}.lock") as lock:
            return json.load(lock) == {"pid": None, "state": "starting"}

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        with held.open("w") as holding:
            fcntl.flock(holding, fcntl.LOCK_EX)
            opened = [pool.submit(open_one)]
            wait_until(is_starting, "a daemon to be started")
            opened.append(pool.submit(open_one, autostart=autostart))
            done, _ = concurrent.futures.wait(opened, timeout=0.3)  # much more than their timeout
            assert not done
        for each in opened:
            each.result(timeout=PATIENCE)


def test_forks_of_other_threads_do_not_hold_a_start_up(tmp_path):
    pids = []
    over = threading.Event()

    def open_one(number):
        with contextlib.closing(PickleDB(tmp_path / f"{number}.db", timeout=PATIENCE)) as db:
            return db.info()["pid"]

    def fork():
        while not over.is_set():
            pid = os.fork()
            if pid == 0:
                signal.pause()  # a worker that lives on
            pids.append(pid)
            over.wait(0.005)

    forker = threading.Thread(target=fork)
    forker.start()
    try:
        started = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            daemons = list(pool.map(open_one, range(4)))
        assert time.monotonic() - started < PATIENCE / 2
    finally:
        over.set()
        forker.join()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    for pid in daemons:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda pid=pid: not is_alive(pid), "a daemon to end")


def test_what_was_put_in_the_place_of_the_file_between_two_uses_is_served(location):
    with contextlib.closing(PickleDB(location)) as db:
        db.set("old", 1)
        db.save()
        pid = db.info()["pid"]
    location.unlink()

    def opened_afresh():
        # a look of the client before may still be counted as a client
        with contextlib.closing(PickleDB(location)) as db:
            return db.info()["pid"] == pid and db.all() == []

    wait_until(opened_afresh, "the removed file to be noticed")


def test_after_kill_9_the_next_request_starts_another(location):
    with contextlib.closing(PickleDB(location)) as db:
        db.set("saved", 1)
        db.save()
        db.set("not saved", 1)
        pid = db.info()["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), "the daemon to die")
        assert db.all() == ["saved", "not saved"]
        assert db.set("new", 2)
        assert db.info()["pid"] != pid


def killed_at_first(tmp_path, monkeypatch, times):
    """Have the first daemons that are started die of SIGKILL before they say anything."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho >>"$0.starts"\n[ $(wc -l <"$0.starts") -gt {times} ] || kill -9 $$\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", os.fspath(python))


def test_a_daemon_that_is_killed_while_it_starts_is_started_again(location, tmp_path, monkeypatch):
    with contextlib.closing(PickleDB(location)) as db:
        db.set("a", 1)
        killed_at_first(tmp_path, monkeypatch, 3)
        os.kill(db.info()["pid"], signal.SIGKILL)
        assert db.setdefault("a", 2) == 1  # the caller notices nothing


def test_daemons_that_are_killed_again_and_again_while_they_start_are_told(
    location, tmp_path, monkeypatch
):
    killed_at_first(tmp_path, monkeypatch, 10**6)
    with pytest.raises(Unavailable, match=r"was killed 10 times while it started"):
        PickleDB(location, timeout=None)


def test_a_symbolic_link_leads_to_the_same_owner(location):
    link = location.with_name("link.db")
    link.symlink_to(location)
    with contextlib.closing(PickleDB(location)) as db, contextlib.closing(PickleDB(link)) as other:
        assert db.info()["pid"] == other.info()["pid"]
        other.set("a", 1)
        other.save()
        assert other.location == str(link)
    assert link.is_symlink()
    assert json.loads(location.read_bytes()) == {"a": 1}


def test_a_path_with_a_tilde_is_expanded_and_told_as_pickledb_does(location, monkeypatch):
    monkeypatch.setenv("HOME", str(location.parent))
    with contextlib.closing(PickleDB("~/my.db")) as db:
        assert db.location == str(location)
    monkeypatch.chdir(location.parent)
    with contextlib.closing(PickleDB("my.db")) as db:
        assert db.location == "my.db"


def test_a_manually_started_daemon_is_found_by_path(location):
    path = location.with_name("s.sock")
    daemon = Daemon(location, "--bind", f"ipc://{path}")
    with contextlib.closing(PickleDB(location)) as db:
        assert db.info()["pid"] == daemon.pid
    daemon.check_and_stop()


# Without a path


def test_the_environment_names_the_default(location, monkeypatch):
    monkeypatch.setenv("PICKLEDBD_URL", str(location))
    with contextlib.closing(PickleDB()) as db:
        db.set("a", 1)
        (endpoint,) = db.info()["endpoints"]
    monkeypatch.setenv("PICKLEDBD_URL", endpoint)
    with contextlib.closing(PickleDB()) as db:
        assert db.get("a") == 1
        assert db.location == str(location)


def test_an_endpoint_where_nobody_listens_is_told_at_once(tmp_path):
    for endpoint in (f"ipc://{tmp_path}/no.sock", "tcp://127.0.0.1:1"):
        with pytest.raises(ConnectionError, match=rf"no daemon at {endpoint}.*pickledbd LOCATION"):
            PickleDB(endpoint, timeout=PATIENCE)


@pytest.mark.parametrize(
    "location",
    ["http://x", "inproc://x", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "tcp://:1", "ipc://x"],
)
def test_an_endpoint_of_no_known_form_is_told(location):
    with pytest.raises(Unavailable, match=r"ipc:///PATH or tcp://ADDRESS:PORT"):
        PickleDB(location)


def test_another_user_s_daemon_is_not_allowed():
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")

    def as_nobody():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        for target in (daemon.endpoint, daemon.location):
            with pytest.raises(PermissionError, match="not allowed to connect") as caught:
                PickleDB(target)
            assert caught.type is NotAllowed

    # not in pytest's directory, which others cannot enter
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        daemon = Daemon(os.path.join(directory, "my.db"))
        assert in_fork(as_nobody)
        daemon.check_and_stop()
