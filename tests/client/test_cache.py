"""What was read is kept at hand, and is never told when it is not current any more.

Whether a read asks the daemon is told by halting that: what is kept is told all the same.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import enum
import gc
import json
import os
import pickle
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from pathlib import Path

import pytest

from pickledbd_client import PickleDB, Unavailable, WritesRefused
from pickledbd_protocol.counters import COUNTERS_SUFFIX
from support import PATIENCE, Daemon, in_fork, on_a_small_disk, wait_until

ABSENT = object()


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


@pytest.fixture
def other(daemon):
    """Another client of `daemon`."""
    with contextlib.closing(daemon.client()) as client:
        yield client


# What is kept

VALUES = {
    "a str": "text é \N{PILE OF POO}",
    "an empty str": "",
    "an int": 2**63,
    "a float": -0.5,
    "true": True,
    "false": False,
    "null": None,
    "bytes": b"\x00\xff",
    "a flat dict": {"one": 1, "two": "2", "three": None},
    "an empty dict": {},
    "a flat list": [1, "2", None, 3.5, False],
    "an empty list": [],
    "a nested dict": {"list": [1, {"deep": []}], "dict": {"a": {}}},
    "a nested list": [[1, [2, [3]]], {"a": []}],
    "a dict with bytes": {"raw": b"\x00", "n": 1},
    "a nested list with bytes": [[b"a"], {"b": [b"\xff"]}],
    "a dict that looks like bytes": {"$binary": "AAAA", "more": 1},
    "as deep as may be": json.loads("[" * 200 + "]" * 200),
}


def spoil(value):
    """Change whatever of it can be changed."""
    if isinstance(value, dict):
        for member in value.values():
            spoil(member)
        value["spoilt"] = True
    elif isinstance(value, list):
        for member in value:
            spoil(member)
        value.append("spoilt")


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_what_was_read_is_read_again_without_asking_and_is_a_copy(daemon, db, other, value):
    other.set("a", copy.deepcopy(value))
    read = [db.get("a")]
    with halted(daemon):
        for again in (db.get, db.__getitem__, lambda key: db.get(key, "default"), db.get):
            assert read[-1] == value
            assert type(read[-1]) is type(value)
            spoil(read[-1])
            read.append(again("a"))
        assert "a" in db
    assert read[-1] == value


def test_that_there_is_no_such_key_is_kept_too(daemon, db, other):
    assert db.get("a") is None
    with halted(daemon):
        assert db.get("a") is None
        assert db.get("a", "default") == "default"
        assert "a" not in db
        with pytest.raises(KeyError, match=r"^'a'$"):
            db["a"]
    other.set("a", None)
    assert db.get("a", "default") is None
    with halted(daemon):
        assert db.get("a", "default") is None
        assert "a" in db
        assert db["a"] is None
    other.remove("a")
    assert "a" not in db


def test_in_and_brackets_keep_and_use_what_get_does(daemon, db):
    db.set("a", 1)
    db.set("b", 2)
    assert db["a"] == 1
    assert keeps(daemon, db, "a")
    assert "b" in db  # tells no value, so there is nothing to keep
    assert asks(daemon, db, "b")


class Colour(str, enum.Enum):  # noqa: UP042 - a StrEnum's str() is its value, which this is about
    RED = "a"


class Shouted(str):
    __slots__ = ()

    def __str__(self):
        return self.upper()


class Plain(str):
    __slots__ = ()


def test_a_key_is_what_str_makes_of_it_where_it_is_kept_too(daemon, db):
    db.update({"a": 1, "A": 2, "Colour.RED": 3, "1": 4, "None": 5, "1.0": 6, "True": 7})
    pairs = [(key, db.get(str(key))) for key in ["a", Colour.RED, Shouted("a"), Plain("a")]]
    pairs += [(key, db.get(str(key))) for key in (1, None, 1.0, True)]
    assert [value for _, value in pairs] == [1, 3, 2, 1, 4, 5, 6, 7]
    assert len(dict(pairs)) < len(pairs)  # to a dict some of them are the same
    with halted(daemon):
        for key, value in pairs:
            assert db.get(key) == db[key] == value
            assert key in db


# What others write


LARGE = {f"large {n}": n for n in range(100_001)}

BEFORE = {"a": 1, "b": [2], "c": {"three": 3}, "large 0": "before", "large 1001": "before"}
"""And "missing" is read too, as are `large 100000` and `d`."""

WRITES = {
    "set": lambda db: db.set("a", 2),
    "set of a new key": lambda db: db.set("missing", 2),
    "set of the same": lambda db: db.set("a", 1),
    "remove": lambda db: db.remove("a"),
    "pop": lambda db: db.pop("b"),
    "popitem": lambda db: db.popitem(),
    "setdefault": lambda db: db.setdefault("missing", 2),
    "setdefault in vain": lambda db: db.setdefault("a", 2),
    "purge": lambda db: db.purge(),
    "remove_many": lambda db: db.remove_many(["a", "no such", "c"]),
    "update": lambda db: db.update({"a": 2, "missing": 3}),
    "update of over 1,000": lambda db: db.update(dict(list(LARGE.items())[:1002])),
    "update in parts": lambda db: db.update({f"large {n}": "x" * 1000 for n in range(1002)}),
    "update of over 10,000": lambda db: db.update(dict(list(LARGE.items())[:10_001])),
    "update of over 100,000": lambda db: db.update(LARGE),
    "replace": lambda db: setattr(db, "db", {"a": 2}),
    "replace by nothing": lambda db: setattr(db, "db", {}),
    "replace by many": lambda db: setattr(db, "db", LARGE),
    "removed, and set again": lambda db: (db.remove("a"), db.set("a", 2)),
    "changed, and back": lambda db: (db.set("a", 2), db.set("a", 1)),
}

READ = [*BEFORE, "missing", "d", "large 100000"]


@pytest.mark.parametrize("whose", ["another's", "its own"])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_no_read_is_stale_after_a_write(daemon, db, other, write, whose):
    other.db = BEFORE
    assert {key: db.get(key) for key in READ} == {key: BEFORE.get(key) for key in READ}
    write(other if whose == "another's" else db)
    now = other.get_many(READ)  # which is never kept
    assert {key: db.get(key, ABSENT) for key in READ} == {key: now.get(key, ABSENT) for key in READ}
    assert [key in db for key in READ] == [key in now for key in READ]
    with halted(daemon):
        assert {key: db.get(key) for key in READ} == {key: now.get(key) for key in READ}


def test_a_large_update_counts_at_once_and_for_good_while_it_is_put_in_place(daemon, db, other):
    some = ["large 0", "large 50000", "large 100000"]
    other.update(LARGE)
    acknowledged = 0

    def writer():
        nonlocal acknowledged
        for number in range(1, 4):
            other.update(dict.fromkeys(LARGE, number * 10**6))
            acknowledged = number * 10**6

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        writing = pool.submit(writer)
        seen = 0
        while True:
            over = writing.done()
            for key in some:
                least = max(seen, acknowledged)
                value = db.get(key)
                # once one of them is there, all are: one read after the other sees no less
                seen = max(seen, value // 10**6 * 10**6)
                assert value >= least
            if over:
                break
        writing.result(PATIENCE)
    assert [db.get(key) for key in some] == [3 * 10**6] * 3
    assert keeps(daemon, db, some[0])


def test_a_write_that_the_disk_refused_is_never_read(daemon, db, other):
    other.update({"a": 1, "b": 1})
    assert (db.get("a"), db.get("b"), db.get("missing")) == (1, 1, None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (2**16, limits[1]))
    over = threading.Event()

    def read_on():
        while not over.is_set():
            assert (db.get("a"), db.get("b"), db.get("missing")) == (1, 1, None)

    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read_on)
            try:
                for _ in range(10):
                    for write in (
                        lambda: other.set("a", "x" * 2**17),
                        lambda: other.setdefault("missing", "x" * 2**17),
                        lambda: other.update({"a": 2, "b": "x" * 2**17}),
                        lambda: setattr(other, "db", {"b": "x" * 2**17}),
                    ):
                        with pytest.raises(WritesRefused):
                            write()
                        assert (db.get("a"), db.get("b"), db.get("missing")) == (1, 1, None)
            finally:
                over.set()
            reading.result(PATIENCE)
    finally:
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, limits)

    def accepted():
        with contextlib.suppress(WritesRefused):
            return other.set("a", 2)

    wait_until(accepted, "writes to be accepted")
    assert db.get("a") == 2
    assert keeps(daemon, db)


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
                return fresh._cache.near[0] or path.is_dir()

        wait_until(there_again, "the table to be made again", 20.0)
        if not path.is_dir():  # which is in the way for good, and costs only speed
            assert mapped.get("a") == number  # the read before may have been told of it only
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
        # the first read after that may be the one that tells
        assert [late.get("a") for _ in range(3)] == [1] * 3
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


# The room


def test_without_room_each_read_asks(daemon, other):
    other.set("a", 1)
    with contextlib.closing(daemon.client(cache_bytes=0)) as db:
        assert db.get("a") == db["a"] == 1
        assert asks(daemon, db)
        assert db.get("missing") is None
        assert asks(daemon, db, "missing")


@pytest.mark.parametrize("wrong", [-1, 1.5, "1", True, None, 2.0])
def test_room_is_a_number_of_bytes(daemon, wrong):
    with pytest.raises(ValueError, match="cache_bytes"):
        daemon.client(cache_bytes=wrong)


def kept_bytes(db, keys):
    """How much more memory there is in use once `keys` have been read."""
    gc.collect()
    tracemalloc.start()
    try:
        for key in keys:
            db.get(key)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


KINDS = {
    "small": lambda n: n,
    "a long str": lambda _: "x" * 2000,
    "not ascii": lambda _: "\N{PILE OF POO}" * 300,
    "bytes": lambda _: b"x" * 500,
    "a flat dict": lambda n: {f"member {n} {m}": n * 10**9 + m for m in range(20)},
    "a flat list": lambda n: [n * 10**9 + m for m in range(50)],
    "a nested list": lambda n: [[n, m] for m in range(30)],
    "nested, with bytes": lambda n: [[n, b"x" * 100]],
    "missing": None,
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_takes_no_more_than_its_room(daemon, other, kind):
    bounds_are_held(daemon, other, kind, 4000, 2**18)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["small", "a flat dict", "missing"])
def test_what_is_kept_of_many_takes_no_more_than_its_room(daemon, other, kind):
    bounds_are_held(daemon, other, kind, 200_000, 2**21)


def bounds_are_held(daemon, other, kind, count, room):
    keys = [f"key {n}" for n in range(count)]
    if KINDS[kind]:
        for start in range(0, count, 5000):
            other.update({keys[n]: KINDS[kind](n) for n in range(start, min(count, start + 5000))})
    with contextlib.closing(daemon.client(cache_bytes=room)) as db:
        db.get("warm")
        taken = kept_bytes(db, iter(f"key {n}" for n in range(count)))
        # what the memory of a request and of tracemalloc's own makes a little more
        assert taken < room * 1.25 + 100_000
        assert keeps(daemon, db, keys[-1])
        assert asks(daemon, db, keys[0])


def test_values_that_grow_take_no_more_than_the_room(daemon, other):
    """The keys are always the same, and each is replaced by more."""
    room = 2**20
    keys = [f"key {n}" for n in range(100)]
    with contextlib.closing(daemon.client(cache_bytes=room)) as db:
        for size in (1, 100, 10_000, 200_000):
            other.update(dict.fromkeys(keys, "x" * size))
            assert kept_bytes(db, keys) < room * 1.25 + 100_000


def test_what_is_read_often_stays_whatever_else_is_read(daemon, other):
    count = 10_000
    other.update({f"cold {n}": n for n in range(count)} | {"hot": [1]})
    with contextlib.closing(daemon.client(cache_bytes=2**18)) as db:
        requests = 0
        for n in range(count):
            assert db.get(f"cold {n}") == n
            before = db._link.mark()
            assert db.get("hot") == [1]
            requests += db._link.mark() != before
        assert requests == 1
        assert keeps(daemon, db, "hot")
        assert asks(daemon, db, "cold 0")


def test_a_value_larger_than_the_room_is_read_each_time_and_drives_nothing_out(daemon, other):
    large = "x" * 3 * 2**20
    other.update({"a": 1, "large": large})
    with contextlib.closing(daemon.client(cache_bytes=2**21)) as db:
        assert db.get("a") == 1
        assert db.get("large") == db.get("large") == large
        assert asks(daemon, db, "large")
        assert keeps(daemon, db, "a")
        other.set("large", "small by now")
        assert db.get("large") == "small by now"
        assert keeps(daemon, db, "large")


# Its end, and who shares it


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
    return {**db._cache._old[0], **db._cache.near[0]}


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
