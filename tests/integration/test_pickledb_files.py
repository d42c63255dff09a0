"""One file for both: what this project saves pickleDB loads, and the other way round.

The real pickleDB, 1.0 and 1.6, runs in processes of its own, from directories of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pickledbd_client import PickleDB
from reference import pickledb_install
from support import PATIENCE, owner_pid, wait_until

VERSIONS = ["1.0", "1.6"]

# Prints what pickleDB holds of each file, in its order; the last line, since 1.0 prints too.
LOADS = """
import json, sys
from importlib.metadata import version
from pickledb import PickleDB

def load(path):
    db = PickleDB(path)
    if hasattr(db, "load"):  # 1.0 loads by itself
        db.load()
    return db.db

print(json.dumps([version("pickledb"), [load(path) for path in sys.argv[1:]]]))
"""

# Sets what it is told on stdin, in that order, and saves.
SAVES = """
import json, sys
from importlib.metadata import version
from pickledb import PickleDB

db = PickleDB(sys.argv[1])
if hasattr(db, "load"):
    db.load()
for key, value in json.load(sys.stdin).items():
    db.set(key, value)
print(json.dumps([version("pickledb"), db.save()]))
"""

CONTENT = {
    "zebra": "the order is that of insertion, not of the alphabet",
    "apple": [1, 1.0, True, None, "1", [], {}],
    "": "every string is a key",
    'quotes " and \\ and \n and \u2028': '\x00\x1f\x7f\u2029"\\/',
    "ünïcödé ключ 键 🗝": "Grüße, привет, 你好, שלום, 👩\u200d🚀, e\u0301, \ufeff, \uffff",
    "floats": [0.1, -0.0, 1e16, 1e-7, 5e-324, 1.7976931348623157e308, 1 / 3, 123456789.0],
    "integers": [0, -1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1],
    "nested": {"a": [{"b": {"c": [[[{"d": None}]]]}}], "": {"": ""}, "b": {"2": 1, "1": 2}},
    "none": None,
    "false": False,
}


def in_pickledb(version, program, *paths, told=None):
    """Run `program` where `pickledb` is pickleDB `version`, and return what it printed last."""
    ran = subprocess.run(
        [sys.executable, "-P", "-c", program, *map(str, paths)],
        env={**os.environ, "PYTHONPATH": str(pickledb_install(version))},
        input=json.dumps(told),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    *_, last = ran.stdout.splitlines()
    which, result = json.loads(last)
    assert which == version
    return result


def loaded_by_pickledb(version, path):
    (content,) = in_pickledb(version, LOADS, path)
    return content


def save_with_pickledb(version, path, content):
    assert in_pickledb(version, SAVES, path, told=content) is True


def same(found, expected):
    """Equal with the same order, and with 1, 1.0 and True told apart, as == does not."""
    return json.dumps(found) == json.dumps(expected)


def opened(location, **options):
    return contextlib.closing(PickleDB(location, **options))


def end_owner(location):
    owner = owner_pid(location)
    os.kill(owner, signal.SIGTERM)
    wait_until(lambda: owner_pid(location) != owner, f"the owner {owner} to end")


@pytest.mark.parametrize("version", VERSIONS)
def test_pickledb_loads_what_save_wrote(location, version):
    with opened(location) as db:
        for key, value in CONTENT.items():
            db.set(key, value)
        assert db.save() is True
        assert same(loaded_by_pickledb(version, location), CONTENT)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_pickledb_saved_is_served_with_equal_content_and_order(location, version):
    save_with_pickledb(version, location, CONTENT)
    with opened(location) as db:
        assert db.all() == list(CONTENT)
        assert same(dict(db.items()), CONTENT)
        assert same({key: db.get(key) for key in db.all()}, CONTENT)


def test_a_file_can_go_to_and_fro_between_all_three(location):
    expected = {}
    for turn in range(2):
        for version in VERSIONS:
            with opened(location) as db:
                changes = {f"ours {turn} before {version}": turn, "last": "ours"}
                db.set_many(changes)
                expected |= changes
                assert db.save() is True
            end_owner(location)
            changes = {f"pickleDB {version}'s {turn}": CONTENT, "last": version}
            save_with_pickledb(version, location, changes)
            expected |= changes
    with opened(location) as db:
        assert same(dict(db.items()), expected)


def test_a_value_that_pickledb_does_not_know_is_one_it_keeps(location):
    """Bytes are an object to pickleDB, which keeps it, so that they are bytes again here."""
    with opened(location) as db:
        db.set("bytes", b"\x00\xff")
        db.save()
    end_owner(location)
    for version in VERSIONS:
        save_with_pickledb(version, location, {"also": version})
    with opened(location) as db:
        assert dict(db.items()) == {"bytes": b"\x00\xff", "also": "1.6"}


def test_an_empty_file_is_an_empty_database(location):
    location.touch()
    with opened(location) as db:
        assert db.all() == []
        assert db.get("anything") is None
        db.set("first", 1)
        assert db.save() is True
    for version in VERSIONS:
        assert loaded_by_pickledb(version, location) == {"first": 1}


def test_an_emptied_database_is_an_empty_one_to_pickledb(location):
    with opened(location) as db:
        db.set("key", 1)
        db.purge()
        assert db.save() is True
        assert location.stat().st_size > 0
    for version in VERSIONS:
        assert loaded_by_pickledb(version, location) == {}


@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_a_file_made_readable_by_hand_is_served(location, ensure_ascii):
    text = json.dumps(CONTENT, indent=2, ensure_ascii=ensure_ascii)
    location.write_text(text, encoding="utf-8")
    with opened(location) as db:
        assert same(dict(db.items()), CONTENT)
        assert location.read_text(encoding="utf-8") == text  # serving alone changes no file
        db.set("changed", True)
        assert db.save() is True
    expected = {**CONTENT, "changed": True}
    for version in VERSIONS:
        assert same(loaded_by_pickledb(version, location), expected)


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def test_any_content_is_in_the_file_what_it_was_in_the_dict(location):
    saved = {}

    with opened(location, timeout=PATIENCE) as db:

        @settings(max_examples=30, deadline=None)
        @given(st.dictionaries(st.text(), VALUES, max_size=8))
        def round_trip(content):
            db.db = content
            assert db.save() is True
            assert same(json.loads(location.read_bytes()), content)
            assert same(dict(db.items()), content)
            copy = location.with_name(f"{len(saved)}.json")
            shutil.copy(location, copy)
            saved[copy] = content

        round_trip()

    assert len(saved) >= 10
    for version in VERSIONS:
        assert same(in_pickledb(version, LOADS, *saved), list(saved.values()))


PROCESSES, THREADS, SETS = 4, 8, 1_000

# Its threads share one PickleDB, as those of a server's worker do.
WORKER = """
import sys
from threading import Thread
from pickledbd_client import PickleDB

location, process, threads, sets, timeout = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
db = PickleDB(location, timeout=float(timeout))

def work(thread):
    for n in range(int(sets)):
        assert db.set(f"{process}:{thread}:{n}", [int(process), thread, n]) is True
    done.append(thread)

done = []
workers = [Thread(target=work, args=(thread,)) for thread in range(int(threads))]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
print(len(done), db.info()["pid"])
db.close()
"""


def test_nothing_is_lost_of_what_4_processes_of_8_threads_set_1000_times_each(location):
    with contextlib.ExitStack() as stack:
        workers = []
        for number in range(PROCESSES):
            arguments = (location, number, THREADS, SETS, PATIENCE)
            worker = subprocess.Popen(
                [sys.executable, "-c", WORKER, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            workers.append(stack.enter_context(worker))
            stack.callback(worker.kill)  # for when this test fails
        for worker in workers:
            assert select.select([worker.stdout], [], [], PATIENCE)[0], "a worker did not start"
            assert worker.stdout.readline() == "ready\n"
        # Now all at once, also in finding that nobody serves the path yet.
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        said = [worker.communicate(timeout=2 * PATIENCE)[0] for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * PROCESSES

    assert said == [f"{THREADS} {owner_pid(location)}\n"] * PROCESSES
    expected = {
        f"{process}:{thread}:{n}": [process, thread, n]
        for process in range(PROCESSES)
        for thread in range(THREADS)
        for n in range(SETS)
    }
    assert len(expected) == 32_000
    with opened(location, timeout=PATIENCE) as db:
        assert dict(db.items()) == expected
        keys = db.all()
        assert db.save() is True
    for version in VERSIONS:
        loaded = loaded_by_pickledb(version, location)
        assert loaded == expected
        assert list(loaded) == keys
