"""The daemon as a process: how it starts, refuses, serves, saves and ends."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pickledbd_client import PickleDB, Unavailable
from support import PATIENCE, Daemon, left_by, owner_pid, run, wait_until, written


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_ends_it_with_status_0(location, number):
    daemon = Daemon(location)
    with contextlib.closing(daemon.client()) as db:
        db.set("a", 1)
    daemon.stop(number)
    assert json.loads(location.read_bytes()) == {"a": 1}
    assert left_by(location) == ["my.db"]


def test_a_stop_leaves_no_journal_when_nobody_can_ask_again(location):
    daemon = Daemon(location)
    with contextlib.closing(daemon.client(timeout=0.5)) as db:
        db.set("a", 1)
        db.save()
    # The client said that it would wait for its write so long, and repeat it meanwhile
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.process.wait(1)
    daemon.stop()
    assert os.listdir(location.parent) == ["my.db"]


def test_a_stop_with_nothing_to_save_writes_nothing(location):
    Daemon(location).stop()
    assert not location.exists()
    location.write_bytes(b'{"a": 1}')
    before = written(location)
    Daemon(location).stop()
    assert written(location) == before


def test_it_says_one_line_with_its_endpoint_when_it_is_ready(daemon):
    assert daemon.ready == f"pickledbd: serving {daemon.location} (0 keys) at {daemon.endpoint}\n"
    with contextlib.closing(PickleDB(daemon.endpoint)) as db:
        assert db.ping()
        assert db.location == str(daemon.location)


def test_a_stop_that_cannot_save_says_so_with_status_1(location):
    location = location.parent / "folder" / "my.db"
    location.parent.mkdir()
    daemon = Daemon(location)
    with contextlib.closing(daemon.client()) as db:
        db.set("a", 1)
    moved = location.parent.rename(location.parent.with_name("moved"))
    daemon.process.send_signal(signal.SIGTERM)
    status, err = daemon.end()
    assert status == 1
    assert "cannot save" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert moved.is_dir()


# Who else is there


def test_a_second_daemon_on_the_same_file_is_refused_naming_the_first(daemon, db):
    db.set("a", 1)
    link = daemon.location.with_name("link.db")
    link.symlink_to(daemon.location)
    for location in (daemon.location, link, os.path.relpath(daemon.location)):
        status, _, err = run(location, "--bind", "tcp://127.0.0.1:*")
        assert status == 1
        assert len(err.splitlines()) == 1
        assert f"pid {daemon.pid}" in err
        assert daemon.endpoint in err
    assert db.get("a") == 1


def test_a_second_daemon_on_the_same_endpoint_is_refused(daemon, db):
    other = daemon.location.with_name("other.db")
    status, _, err = run(other, "--bind", daemon.endpoint)
    assert status == 1
    assert f"{daemon.endpoint} is served by another daemon, pid {daemon.pid}" in err
    assert not other.exists()
    assert db.ping()
    with contextlib.closing(daemon.client()) as new:
        assert new.ping()


def test_another_program_s_socket_at_the_endpoint_is_not_taken(location):
    path = location.with_name("other.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        status, _, err = run(location, "--bind", f"ipc://{path}")
        assert status == 1
        assert "another program listens there" in err
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(os.fspath(path))
    assert sorted(os.listdir(location.parent)) == ["other.sock"]


def test_a_regular_file_at_the_endpoint_is_not_touched(location):
    path = location.with_name("precious.sock")
    path.write_bytes(b"precious")
    status, _, err = run(location, "--bind", f"ipc://{path}")
    assert status == 1
    assert "not a socket" in err
    assert path.read_bytes() == b"precious"


def test_a_symbolic_link_at_the_endpoint_is_not_touched(location):
    precious = location.with_name("precious")
    precious.write_bytes(b"precious")
    path = location.with_name("link.sock")
    path.symlink_to(precious)
    status, _, err = run(location, "--bind", f"ipc://{path}")
    assert status == 1
    assert "not a socket" in err
    assert path.is_symlink()
    assert precious.read_bytes() == b"precious"


def test_the_socket_of_a_killed_daemon_is_taken_over(location):
    path = location.with_name("my.sock")
    first = Daemon(location, "--bind", f"ipc://{path}")
    first.kill()
    assert path.is_socket()
    second = Daemon(location, "--bind", f"ipc://{path}")
    second.stop()
    assert os.listdir(location.parent) == []


def test_only_user_and_group_may_use_a_socket(location):
    path = location.with_name("my.sock")
    daemon = Daemon(location, "--bind", f"ipc://{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    daemon.stop()
    daemon = Daemon(location)
    directory = os.path.dirname(daemon.endpoint.removeprefix("ipc://"))
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    daemon.stop()


def test_a_directory_for_sockets_that_others_can_enter_is_refused(location, tmp_path):
    shared = tmp_path / f"pickledbd-{os.geteuid()}"
    shared.mkdir(mode=0o755)
    shared.chmod(0o755)
    status, _, err = run(location, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert status == 1
    assert f"{shared} is not a directory that only uid" in err


def test_a_long_temporary_directory_is_no_hindrance(location, tmp_path):
    long = tmp_path / ("d" * 100)
    long.mkdir()
    daemon = Daemon(location, env={**os.environ, "TMPDIR": str(long)})
    daemon.check_and_stop()


# What it does not accept


@pytest.mark.parametrize(
    ("endpoint", "why"),
    [
        ("ipc://relative.sock", "absolute path"),
        ("ipc://@abstract", "absolute path"),
        ("ipc:///" + "x" * 120, "ends at"),
        ("ipc:///no/such/directory/a.sock", "No such file"),
        ("tcp://0.0.0.0:7431", "loopback only"),
        ("tcp://10.0.0.5:7431", "loopback only"),
        ("tcp://[::]:7431", "loopback only"),
        ("tcp://127.0.0.1", "tcp://ADDRESS:PORT"),
        ("tcp://eth0:7431", "tcp://ADDRESS:PORT"),
        ("tcp://999.0.0.1:7431", "not an IP address"),
        ("tcp://127.0.0.1:99999", "tcp://ADDRESS:PORT"),
        ("inproc://x", "an endpoint is"),
        ("/a/path", "an endpoint is"),
    ],
)
def test_an_unfit_endpoint_is_refused_in_one_line(location, endpoint, why):
    status, out, err = run(location, "--bind", endpoint)
    assert (status, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert endpoint.split("//")[-1].split(":")[0] in err
    assert why in err
    assert os.listdir(location.parent) == []


def test_a_file_that_does_not_parse_is_refused_in_one_line_and_not_touched(location):
    location.write_bytes(b'{"a": 1,\n "b": oops}')
    before = written(location)
    status, out, err = run(location)
    assert (status, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert f"{location} is not JSON" in err
    assert "line 2 column 7" in err
    assert written(location) == before
    assert os.listdir(location.parent) == ["my.db"]


def test_a_missing_directory_and_an_endpoint_as_location_are_refused(location):
    status, _, err = run(location.parent / "missing" / "my.db")
    assert (status, "does not exist" in err) == (1, True)
    status, _, err = run("ipc:///run/x.sock")
    assert (status, "is an endpoint" in err) == (1, True)


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ([], "required: LOCATION"),
        (["a", "b"], "arguments: b"),
        (["a", "--idle-exit", "soon"], "--idle-exit: 'soon' is no number of seconds, 0 or more"),
        (["a", "--idle-exit", "inf"], "'inf' is no number of seconds"),
        (["a", "--backups", "-1"], "--backups: '-1' is no number of files, 0 or more"),
        (["a", "--max-request", "0"], "--max-request: '0' is no number of MiB, 1 to 1024"),
        (["a", "--max-request", "1025"], "'1025' is no number of MiB"),
        (["a", "--durability", "never"], "'journal'"),
        (["a", "--replay-journal", "--discard-journal"], "not allowed with"),
        (["a", "--x"], "arguments: --x"),
    ],
)
def test_wrong_usage_is_status_2_and_says_what_is_wrong(args, why):
    status, _, err = run(*args)
    assert status == 2
    assert "usage: pickledbd" in err
    assert why in err
    assert "Traceback" not in err


def test_help_and_version():
    assert "LOCATION" in run("--help")[1]
    assert run("--version")[1].startswith("pickledbd 0.")


# How it lives on


def test_it_serves_several_endpoints_at_once(location):
    path = location.with_name("my.sock")
    daemon = Daemon(location, "--bind", f"ipc://{path}", "--bind", "tcp://127.0.0.1:*")
    with contextlib.closing(daemon.client()) as db:
        db.set("a", 1)
        endpoints = db.info()["endpoints"]
    assert [endpoint.partition(":")[0] for endpoint in endpoints] == ["ipc", "tcp"]
    for endpoint in endpoints:
        with contextlib.closing(PickleDB(endpoint)) as db:
            assert db.get("a") == 1
    daemon.check_and_stop()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_its_starter_ignores_does_not_end_it(location, number):
    daemon = Daemon(location, preexec_fn=lambda: signal.signal(number, signal.SIG_IGN))
    daemon.process.send_signal(number)
    daemon.check_and_stop()


def test_it_does_not_end_by_itself_with_what_it_cannot_save(location):
    folder = location.parent / "folder"
    folder.mkdir()
    daemon = Daemon(folder / "my.db", "--idle-exit", "0.2")
    with contextlib.closing(daemon.client()) as db:
        db.set("a", 1)
        folder.rename(location.parent / "moved")  # every save fails
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.process.wait(4)
    (location.parent / "moved").rename(folder)
    status, err = daemon.end()
    assert status == 0, err
    assert json.loads((folder / "my.db").read_bytes()) == {"a": 1}
    assert err.count("cannot save") == 1


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux")
def test_it_rests_between_its_attempts_to_end_with_what_it_cannot_save(location):
    directory = location.parent / "gone"
    directory.mkdir()
    daemon = Daemon(directory / location.name, "--idle-exit", 0)
    with contextlib.closing(daemon.client()) as db:
        db.set("a", 1)
        directory.rename(location.parent / "away")

    def rests():
        before = processor_time(daemon.pid)
        time.sleep(0.2)
        return processor_time(daemon.pid) == before

    wait_until(lambda: "cannot save" in daemon.process.stderr.readline(), "a first attempt")
    wait_until(rests, "a pause")
    (location.parent / "away").rename(directory)
    assert daemon.end()[0] == 0
    assert json.loads(daemon.location.read_bytes()) == {"a": 1}


def processor_time(pid):
    """In the system's ticks, of all threads."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return int(user) + int(system)


def test_a_fault_of_the_loop_s_does_not_lose_what_was_acknowledged(location):
    script = (
        "import sys\n"
        "from pickledbd import cli, loop\n"
        "def fail(self): raise MemoryError\n"
        "loop.UPKEEP_SECONDS = 0.5\n"
        "upkeep = loop.Loop._upkeep\n"
        "loop.Loop._upkeep = lambda self: upkeep(self) if self._engine.dirty == 0 else fail(self)\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(location)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().startswith("pickledbd: serving")
    with contextlib.closing(PickleDB(location, autostart=False)) as db:
        db.set("a", 1)
        _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "pickledbd: ended by a fault: MemoryError()" in err) == (1, True)
    assert "Traceback" in err
    assert json.loads(location.read_bytes()) == {"a": 1}
    assert left_by(location) == ["my.db"]


def test_it_takes_as_many_connections_as_its_user_may_have(location):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    daemon = Daemon(
        location, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    )
    clients = [daemon.client() for _ in range(100)]
    for client in clients:
        assert client.ping()
        client.close()
    daemon.check_and_stop()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("x" * 240, "its name is over"),
        ("\udcff.db", "named in UTF-8"),
        ("folder", "not a regular file"),
    ],
)
def test_a_location_that_could_not_be_saved_or_told_is_refused(location, name, why):
    location.with_name("folder").mkdir()
    status, out, err = run(location.with_name(name))
    assert (status, out, len(err.splitlines())) == (1, "", 1)
    assert why in err


def test_the_root_directory_is_no_location():
    status, _, err = run("/")
    assert (status, "a location is a file" in err, len(err.splitlines())) == (1, True, 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_it_serves_over_tcp(location, host):
    daemon = Daemon(location, "--bind", f"tcp://{host}:*")
    port = daemon.endpoint.rpartition(":")[2]
    with contextlib.closing(PickleDB(f"tcp://{host}:{port}")) as db:
        assert db.set("a", 1)
    daemon.check_and_stop()


def on_a_small_disk(location, script):
    """Run `script` where `disk` is a file system of 64 KB; what it printed."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    script = (
        "import contextlib, subprocess, sys\n"
        "from pathlib import Path\n"
        "disk = Path(sys.argv[1])\n"
        "mount = ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'none', disk]\n"
        "subprocess.run(mount, check=True)\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from support import Daemon, wait_until\n"
        "from pickledbd_client import SaveFailed, WritesRefused\n"
        "location = disk / 'my.db'\n"
        "def fill():\n"
        "    try: (disk / 'filler').open('wb', 0).write(bytes(65536))\n"
        "    except OSError: pass\n"
    ) + textwrap.dedent(script)
    folder = location.parent / "disk"
    folder.mkdir()
    ended = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", script, folder, Path(__file__).parents[1]],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stdout
    return ended.stdout


def test_a_full_disk_is_told_at_a_save_and_survived(location):
    said = on_a_small_disk(
        location,
        r"""
        daemon = Daemon(location, "--durability", "save")
        with contextlib.closing(daemon.client()) as db:
            db.set("small", 1); db.save()
            db.set("large", "x" * 100_000)
            try: db.save()
            except SaveFailed as error: print(error)
            assert location.read_bytes() == b'{\n"small":1\n}\n', location.read_bytes()
            assert len(db.get("large")) == 100_000
            assert "No space" in db.info()["last_save_error"]
            db.remove("large"); db.set("other", 2); assert db.save()
        daemon.check_and_stop()
        """,
    )
    assert "writing the temporary file failed: No space left on device" in said


def test_a_full_disk_refuses_writes_until_there_is_room_and_no_longer(location):
    said = on_a_small_disk(
        location,
        r"""
        daemon = Daemon(location)
        with contextlib.closing(daemon.client()) as db:
            db.set("small", 1); db.save()
            fill()
            for write in (
                lambda: db.set("large", "x" * 100_000),
                lambda: db.set("small", 2),
                lambda: db.set_many({n: "x" * 100 for n in range(2000)}),
                lambda: db.remove("small"),
            ):
                try: write()
                except WritesRefused as error: assert error.outcome_known; print(error)
                else: raise AssertionError("it was not refused")
                assert db.db == {"small": 1}
            assert "No space" in db.info()["writes_refused"]
            try: db.save()
            except SaveFailed as error: print(error)
            else: raise AssertionError("there was room")
            assert location.read_bytes() == b'{\n"small":1\n}\n', location.read_bytes()
            (disk / "filler").unlink()
            # nobody has to ask for it
            wait_until(lambda: db.info()["writes_refused"] is None, "writes to be accepted")
            db.set("small", 3)
            db.remove("nobody")
            assert db.db == {"small": 3}
        daemon.kill()
        daemon = Daemon(location)
        with contextlib.closing(daemon.client()) as db:
            assert db.db == {"small": 3}
        daemon.check_and_stop()
        """,
    )
    assert said.count("are refused, reads go on: ") == 4
    assert "No space left on device; they are accepted again once a save succeeds" in said


def test_a_full_disk_is_told_at_the_start(location):
    said = on_a_small_disk(
        location,
        """
        (disk / "filler").write_bytes(bytes(65536 - 4096))
        fill()
        daemon = Daemon(location, wait=False)
        print(daemon.end())
        """,
    )
    assert "(1, 'pickledbd: cannot serve" in said


def test_it_ends_saved_when_no_client_has_been_connected_for_a_while(location):
    daemon = Daemon(location, "--idle-exit", "0.3")
    db = daemon.client()
    db.set("a", 1)
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.process.wait(1)  # a connected client is enough to keep it
    db.close()
    status, err = daemon.end()
    assert (status, "no client for 0.3 s" in err) == (0, True)
    assert json.loads(location.read_bytes()) == {"a": 1}


def test_it_waits_for_a_client_that_has_only_looked_whether_it_is_there(location):
    daemon = Daemon(location, "--idle-exit", 0)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(daemon.endpoint.removeprefix("ipc://"))
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.process.wait(0.2)  # for it to see that somebody is there
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.process.wait(0.3)
    with contextlib.closing(daemon.client()) as db:
        assert db.ping()
    assert daemon.end()[0] == 0


def test_a_client_that_was_killed_does_not_keep_it_alive(location):
    daemon = Daemon(location, "--idle-exit", "0.3")
    script = (
        f"from pickledbd_client import PickleDB; import time; db = PickleDB({str(location)!r});"
    )
    script += "db.set('a', 1); print('ok', flush=True); time.sleep(600)"
    client = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert client.stdout.readline() == b"ok\n"
    client.kill()
    client.communicate()
    assert daemon.end()[0] == 0
    assert json.loads(location.read_bytes()) == {"a": 1}


def test_peers_whose_handshake_fails_are_not_taken_for_clients_that_leave(location):
    daemon = Daemon(location, "--idle-exit", "0.3")
    clients = [daemon.client() for _ in range(60)]  # descriptors up to all errno values there are
    path = daemon.endpoint.removeprefix("ipc://")
    for said in (b"GET / HTTP/1.0\r\n\r\n", b"", b"\xff" * 64) * 5:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(path)
            peer.sendall(said)
    wait_until(lambda: clients[0].info()["clients"] == 60, "the peers to be gone")
    for client in clients:
        assert client.ping()
        client.close()
    assert daemon.end()[0] == 0


def test_peers_that_never_speak_zeromq_do_not_keep_it_alive(location):
    daemon = Daemon(location, "--idle-exit", "0.5")
    path = daemon.endpoint.removeprefix("ipc://")
    for said in (b"", b"GET / HTTP/1.0\r\n\r\n", b"\xff\0\0\0\0\0\0\0\1\x7f" + bytes(200)):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(path)
            peer.sendall(said)
    assert daemon.end()[0] == 0


def test_a_removed_socket_and_lock_file_are_put_back(location):
    daemon = Daemon(location)
    old = daemon.client()
    os.unlink(daemon.endpoint.removeprefix("ipc://"))
    os.unlink(f"{location}.lock")

    def reachable():
        with contextlib.suppress(Unavailable), contextlib.closing(daemon.client()) as new:
            return new.set("a", 1)

    wait_until(reachable, "the socket to be back")
    assert owner_pid(location) == daemon.pid
    assert old.get("a") == 1
    old.close()
    daemon.check_and_stop()


def test_it_tells_systemd_when_it_is_ready_and_when_it_stops(location, tmp_path):
    address = tmp_path / "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(os.fspath(address))
        listener.settimeout(PATIENCE)
        daemon = Daemon(location, env={**os.environ, "NOTIFY_SOCKET": str(address)})
        told = listener.recv(4096).decode()
        assert "READY=1" in told.splitlines()
        daemon.process.send_signal(signal.SIGTERM)
        while "STOPPING=1" not in told.splitlines():
            told = listener.recv(4096).decode()
        assert daemon.end()[0] == 0


def test_a_request_larger_than_its_limit_is_told_to_the_client(location):
    daemon = Daemon(location, "--max-request", "1")
    with contextlib.closing(daemon.client()) as db:
        with pytest.raises(ValueError, match=r"1,048,576.*--max-request"):
            db.set("big", "x" * 2**20)
        assert db.all() == []
        assert db.set("fits", "x" * (2**20 - 200))
    daemon.check_and_stop()


@pytest.mark.parametrize("durability", ["save", "journal"])
def test_with_an_interval_it_saves_by_itself_what_is_unsaved(location, durability):
    daemon = Daemon(location, "--save-interval", 1, "--durability", durability)
    with contextlib.closing(daemon.client()) as db:
        for n in range(2):
            db.set("n", n)
            wait_until(lambda: db.info()["dirty"] == 0, "the save")
            assert json.loads(location.read_bytes()) == {"n": n}
        before = written(location), db.info()["last_save_time"]
        time.sleep(1.5)  # nothing is to happen in it
        assert (written(location), db.info()["last_save_time"]) == before
    daemon.check_and_stop()
