"""Whatever becomes of the daemon and of the counter table's file, no read is stale."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cached import asks, halted, keeps, table_of
from pickledbd_client import PickleDB
from support import PATIENCE, Daemon, on_a_small_disk, wait_until

# Daemons that end, and others in their place


def test_what_was_lost_with_a_killed_daemon_is_not_read_any_more(location):
    daemon = Daemon(location, "--durability", "save")
    with contextlib.closing(daemon.client()) as db:
        db.set("a", "saved")
        db.save()
        db.update({"a": "unsaved", "b": "unsaved"})
        assert (db.get("a"), db.get("b")) == ("unsaved", "unsaved")
        daemon.kill()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            reading = pool.submit(db.get, "a")
            assert not concurrent.futures.wait([reading], 0.1).done  # waits for the next daemon
            daemon = Daemon(location, "--durability", "save")
            assert reading.result(PATIENCE) == "saved"
        assert (db.get("a"), db.get("b")) == ("saved", None)
        assert keeps(daemon, db)
    daemon.check_and_stop()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_the_next_daemon_holds_is_read_however_the_last_one_ended(location, number):
    daemon = Daemon(location)
    with contextlib.closing(daemon.client()) as db:
        for value in range(3):
            db.set("a", value)
            assert db.get("a") == value
            daemon.process.send_signal(number)
            daemon.end()
            for left in location.parent.glob("my.db.journal.*"):
                left.unlink()
            location.write_text(f'{{"a": "between {value}"}}')
            daemon = Daemon(location)
            assert db.get("a") == f"between {value}"
            assert keeps(daemon, db)
    daemon.check_and_stop()


def test_a_client_without_a_connection_sees_what_the_daemon_loaded_again(location, monkeypatch):
    monkeypatch.setenv("PICKLEDBD_IDLE_EXIT", str(PATIENCE))
    with contextlib.closing(PickleDB(location, timeout=PATIENCE)) as db:
        db.set("a", 1)
        db.save()
        assert db.get("a") == 1
        while db._link._idle:  # as after a timeout
            db._link._idle.pop().close()
        assert db.get("a") == 1
        location.write_text('{"a": "another program\'s"}')

        def loaded():
            with contextlib.closing(PickleDB(location, timeout=PATIENCE)) as fresh:
                return fresh.get("a") != 1

        wait_until(loaded, "the daemon to see that nobody was connected")
        assert db.get("a") == "another program's"


# The table's file

REPLACING = {
    "removed": lambda path, _: path.unlink(),
    "junk": lambda path, _: replace(path, b"junk"),
    "junk of its length": lambda path, _: replace(path, bytes(path.stat().st_size)),
    "its own copy": lambda path, _: replace(path, path.read_bytes()),
    "a directory": lambda path, _: (path.unlink(), path.mkdir()),
    "a fifo": lambda path, _: (path.unlink(), os.mkfifo(path)),
    "a link to nowhere": lambda path, _: (path.unlink(), path.symlink_to("nowhere")),
    "a copy of another daemon's": lambda path, others: replace(path, others.read_bytes()),
}


def replace(path, content):
    beside = path.with_name("new")
    beside.write_bytes(content)
    beside.replace(path)


def bound_in(folder, location, *options):
    """A daemon whose socket and table lie in a directory of its own."""
    folder.mkdir(exist_ok=True)
    return Daemon(location, "--bind", f"ipc://{folder}/s", *options)


@pytest.mark.parametrize("happens", REPLACING.values(), ids=REPLACING)
def test_whatever_is_done_to_the_table_s_file_no_read_is_stale(tmp_path, location, happens):
    daemon = bound_in(tmp_path / "run", location)
    others = bound_in(tmp_path / "others", tmp_path / "other.db")
    with contextlib.ExitStack() as stack:
        db, other, mapped = (
            stack.enter_context(contextlib.closing(daemon.client())) for _ in "abc"
        )
        of_others = stack.enter_context(contextlib.closing(others.client()))
        of_others.set("a", "others'")
        path = table_of(db)
        before = path.lstat()
        other.set("a", 0)
        assert mapped.get("a") == 0
        happens(path, table_of(of_others))
        late = stack.enter_context(contextlib.closing(daemon.client()))
        if path.is_file():
            assert not os.path.samestat(path.lstat(), before)
        # Who has it mapped goes on with it; for the others it is not the table
        assert keeps(daemon, mapped)
        assert late.get("a") == 0

        number = 0

        def there_again():
            nonlocal number
            number += 1
            other.set("a", number)
            assert mapped.get("a") == late.get("a") == db.get("a") == number
            with contextlib.closing(daemon.client()) as fresh:
                fresh.get("a")
                return len(fresh._cache.young) > 0 or path.is_dir()

        wait_until(there_again, "the table to be made again", 20.0)
        if not path.is_dir():  # which is in the way for good, and costs only speed
            # the first read after that is the one that tells
            assert [mapped.get("a") for _ in range(2)] == [number] * 2
            assert keeps(daemon, mapped)
        assert of_others.get("a") == "others'"
    daemon.check_and_stop()
    others.check_and_stop()


def test_who_came_while_the_table_was_missing_keeps_values_once_it_is_there(tmp_path, location):
    daemon = bound_in(tmp_path / "run", location)
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(contextlib.closing(daemon.client()))
        other.set("a", 1)
        path = table_of(other)
        path.unlink()
        late = stack.enter_context(contextlib.closing(daemon.client()))
        assert late.get("a") == 1
        wait_until(path.exists, "the table to be made again")
        # it does not look for it at every read
        wait_until(lambda: late.get("a") == 1 and late._cache.young, "the table to be found")
        assert keeps(daemon, late)
    daemon.check_and_stop()


def test_a_table_that_was_moved_to_another_daemon_s_place_harms_neither(tmp_path, location):
    """The file of the one that lives on is then what the other finds in the place of its own."""
    daemon = bound_in(tmp_path / "run", location)
    others = bound_in(tmp_path / "others", tmp_path / "other.db")
    with contextlib.ExitStack() as stack:
        db, other = (stack.enter_context(contextlib.closing(daemon.client())) for _ in "ab")
        of_others = stack.enter_context(contextlib.closing(others.client()))
        of_others.set("a", "others'")
        assert (db.get("a"), of_others.get("a")) == (None, "others'")
        path, theirs = table_of(db), table_of(of_others)
        moved = theirs.lstat()
        theirs.replace(path)
        number = 0

        def both_made_again():
            nonlocal number
            number += 1
            other.set("a", number)
            of_others.set("a", number)
            assert db.get("a") == of_others.get("a") == number
            assert daemon.process.poll() is others.process.poll() is None
            return theirs.exists() and not os.path.samestat(path.lstat(), moved)

        wait_until(both_made_again, "the tables to be made again")
        assert db.get("a") == of_others.get("a") == number
        assert keeps(daemon, db)
        assert keeps(others, of_others)
    daemon.check_and_stop()
    others.check_and_stop()


@pytest.mark.parametrize("killed", [False, True], ids=["it lives on", "it is killed too"])
def test_a_directory_that_was_wiped_makes_no_read_stale(tmp_path, location, killed):
    folder = tmp_path / "run"
    daemon = bound_in(folder, location, "--durability", "save")
    with contextlib.closing(daemon.client()) as db, contextlib.closing(daemon.client()) as other:
        other.set("a", 0)
        other.save()
        assert db.get("a") == 0
        shutil.rmtree(folder)
        for number in range(3):
            other.set("a", number)
            assert db.get("a") == number
            assert keeps(daemon, db)
        if killed:
            daemon.kill()
            daemon = bound_in(folder, location)
            assert db.get("a") == 0
        else:
            folder.mkdir()
            wait_until((folder / "s").exists, "the socket to be bound again")
            assert db.get("a") == other.get("a") == 2
    daemon.check_and_stop()


def test_the_private_table_s_directory_may_be_wiped(tmp_path):
    """In /dev/shm of its own: what all tests share is not to be removed for one of them."""
    folder = Path("/dev/shm")

    def work():
        daemon = Daemon(tmp_path / "private.db")
        try:
            with (
                contextlib.closing(daemon.client()) as db,
                contextlib.closing(daemon.client()) as other,
            ):
                other.set("a", 0)
                assert db.get("a") == 0
                assert table_of(db).parent.parent == folder
                path = table_of(db)
                shutil.rmtree(path.parent)
                number = 0

                def there_again():
                    nonlocal number
                    number += 1
                    other.set("a", number)
                    assert db.get("a") == number
                    return path.exists()

                wait_until(there_again, "the table to be made again", 20)
                assert db.get("a") == number
                assert keeps(daemon, db)
            daemon.check_and_stop()
        finally:
            if daemon.process.poll() is None:
                daemon.kill()

    on_a_small_disk(folder, "16m", work)


def test_the_private_tables_of_killed_daemons_do_not_pile_up(tmp_path):
    def work():
        living, *killed = [Daemon(tmp_path / f"{number}.db") for number in range(3)]
        daemons = [living, *killed]
        try:
            tables = []
            for daemon in daemons:
                with contextlib.closing(daemon.client()) as db:
                    db.set("a", 1)
                    assert db.get("a") == 1
                    tables.append(table_of(db))
            others = tables[0].with_name("note"), tables[0].with_name("0")
            others[0].write_bytes(bytes(200))
            others[1].mkdir()
            for daemon in killed:
                daemon.kill()
            assert all(table.exists() for table in tables)
            daemons.append(Daemon(tmp_path / "another.db"))
            assert [table.exists() for table in tables] == [True, False, False]
            assert all(other.exists() for other in others)
            with contextlib.closing(living.client()) as db:
                assert db.get("a") == 1
                assert keeps(living, db)
        finally:
            for daemon in daemons:
                if daemon.process.poll() is None:
                    daemon.kill()

    on_a_small_disk(Path("/dev/shm"), "16m", work)


# Who has no table


def test_by_tcp_nothing_is_kept(location):
    daemon = Daemon(location, "--bind", f"ipc://{location}.s", "--bind", "tcp://127.0.0.1:*")
    tcp = daemon.ready.split(" and ")[-1].strip()
    with contextlib.closing(PickleDB(tcp, timeout=PATIENCE)) as db:
        db.set("a", 1)
        assert (db.get("a"), db.get("missing")) == (1, None)
        assert asks(daemon, db)
        assert asks(daemon, db, "missing")
    with contextlib.closing(daemon.client()) as db:  # while by ipc it is
        assert db.get("a") == 1
        assert keeps(daemon, db)
    daemon.check_and_stop()


AS_ANOTHER_USER = """
import sys
from pickledbd_client import PickleDB, RequestTimeout, Unavailable
try:
    open(sys.argv[2], "rb")
except PermissionError:
    print("may not read it", flush=True)
db = PickleDB(sys.argv[1], timeout=60)
impatient = PickleDB(sys.argv[1], timeout=0.3)
for _ in sys.stdin:
    print(db.get("a"), flush=True)
    input()
    try:
        print(impatient.get("a"), flush=True)
    except (RequestTimeout, Unavailable):
        print("asked", flush=True)
"""


def test_who_may_not_read_the_table_asks_each_time(location):
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    nobody = {"user": 65534, "group": 65534, "extra_groups": [], "cwd": "/"}
    nobody["env"] = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            can_import = [python, "-c", "import pickledbd_client"]
            subprocess.run(can_import, check=True, capture_output=True, **nobody)
            break
    else:
        pytest.skip("another user may not run what is installed here")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's are root's alone
        os.chmod(folder, 0o755)
        daemon = bound_in(Path(folder), location)
        os.chmod(f"{folder}/s", 0o666)
        with contextlib.closing(daemon.client()) as db:
            db.set("a", "first")
            process = subprocess.Popen(
                [python, "-c", AS_ANOTHER_USER, daemon.endpoint, str(table_of(db))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                **nobody,
            )

            def said():
                assert select.select([process.stdout], [], [], PATIENCE)[0]
                return process.stdout.readline().strip()

            def say():
                process.stdin.write("\n")
                process.stdin.flush()

            with process:
                try:
                    assert said() == "may not read it"
                    for value in ("second", "third"):
                        db.set("a", value)
                        say()
                        assert said() == value
                        with halted(daemon):
                            say()
                            assert said() == "asked"
                finally:
                    process.kill()
        daemon.check_and_stop()
