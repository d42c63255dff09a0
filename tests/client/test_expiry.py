"""Keys that expire, as users meet them: PickleDB and AsyncPickleDB, real daemons and real time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from decimal import Decimal

import pytest

from looped import async_client
from pickledbd_client import Conflict, InvalidValue
from pickledbd_protocol import TTL_MS_MAX
from support import PATIENCE, Daemon, wait_until

LATE = 0.05
"""Seconds that the end of a key may be late. However busy the machine is, no request that begins
later than that may find the key."""

BETWEEN = 20.0
"""Seconds that may pass between two requests on a machine that does other things."""


class Blocking:
    """AsyncPickleDB, each call of which is waited for."""

    def __init__(self, runner, db):
        self._runner = runner
        self._db = db

    def __getattr__(self, name):
        called = getattr(self._db, name)
        return lambda *args, **kwargs: self._runner.run(_awaited(called, *args, **kwargs))

    @contextlib.contextmanager
    def batch(self):
        batch = self._runner.run(self._db.batch().__aenter__())
        try:
            yield batch
        except BaseException as error:
            self._runner.run(batch.__aexit__(type(error), error, None))
            raise
        self._runner.run(batch.__aexit__(None, None, None))


async def _awaited(called, *args, **kwargs):
    return await called(*args, **kwargs)


@pytest.fixture(params=["sync", "async"])
def any_db(request, daemon):
    """A client of `daemon`, of either kind."""
    if request.param == "sync":
        with contextlib.closing(daemon.client()) as client:
            yield client
        return
    with asyncio.Runner() as runner:
        theirs = async_client(daemon)
        try:
            yield Blocking(runner, theirs)
        finally:
            runner.run(theirs.close())


def is_about(left, seconds):
    """Whether of a time to live of `seconds`, given just now, so much may be left."""
    return seconds - BETWEEN < left <= seconds


def wait_for_the_end_of(db, key):
    """Wait until `key` is gone, by a command that the cache has nothing to do with."""
    wait_until(lambda: key not in db.get_many([key]), f"the end of {key}")


def test_how_long_a_key_lives_can_be_set_asked_changed_and_taken_back(any_db):
    db = any_db
    assert db.ttl("a") is None
    assert db.expire("a", 100) is False
    assert db.persist("a") is False
    assert db.set("a", 1, ttl=100) is True
    assert is_about(db.ttl("a"), 100)
    assert db.expire("a", 2000.5) is True
    assert is_about(db.ttl("a"), 2000.5)
    assert db.persist("a") is True
    assert db.persist("a") is False
    assert db.ttl("a") is None
    assert db.get("a") == 1
    assert db.set_many({"a": 2, "b": 3, 4: None}, ttl=300) is True
    assert all(is_about(db.ttl(key), 300) for key in ("a", "b", 4))
    assert db.all() == ["a", "b", "4"]
    with db.batch() as batch:
        batch.set("a", 5)
        batch.set("c", 6, ttl=400)
        batch.set_many({"d": 7, "e": 8}, ttl=500)
        batch.expire("b", 600)
        batch.persist(4)
        batch.expire("nobody", 1)
        batch.set("e", 9)
        batch.set("f", 0, ttl=700)
        batch.incr("f")
    assert batch.results == [True, True, True, True, True, False, True, True, 1]
    left = {key: db.ttl(key) for key in db.all()}
    expected = {"a": None, "b": 600, "4": None, "c": 400, "d": 500, "e": None, "f": 700}
    assert list(left) == list(expected)
    for key, seconds in expected.items():
        assert left[key] is None if seconds is None else is_about(left[key], seconds), key


def test_what_sets_a_key_anew_clears_it_and_what_changes_it_does_not(any_db):
    db = any_db
    clearing = {
        "set": lambda key: db.set(key, 2),
        "set_many": lambda key: db.set_many({key: 2}),
        "large set_many": lambda key: db.set_many({f"{key}{n}": n for n in range(2500)} | {key: 2}),
        "cas": lambda key: db.cas(key, db.get_versioned(key)[1], 2),
    }
    keeping = {
        "incr": lambda key: db.incr(key),
        "modify": lambda key: db.modify(key, lambda value: value + 1),
        "setdefault": lambda key: db.setdefault(key, 5),
        "get": lambda key: db.get(key),
        "save": lambda _key: db.save(),
    }
    db.set_many(dict.fromkeys([*clearing, *keeping], 1), ttl=1000)
    for name, change in clearing.items():
        change(name)
        assert (name, db.get(name), db.ttl(name)) == (name, 2, None)
    for name, change in keeping.items():
        change(name)
        assert is_about(db.ttl(name), 1000), name
    assert [db.get(name) for name in keeping] == [2, 2, 1, 1, 1]
    assert db.cas("incr", db.get_versioned("incr")[1], 3, ttl=50)
    assert is_about(db.ttl("incr"), 50)


WRONG = [
    0,
    -1,
    -0.001,
    0.0,
    math.nan,
    math.inf,
    -math.inf,
    True,
    False,
    "1",
    "",
    b"1",
    [1],
    Decimal(1),
    1j,
    TTL_MS_MAX / 1000 + 1,
    1e300,
    10**400,
]


def test_a_key_does_not_expire_in_no_time_at_all(any_db):
    any_db.set("k", 1)
    with pytest.raises(InvalidValue, match=r"'k'.*time to live"):
        any_db.expire("k", None)
    assert any_db.ttl("k") is None


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_a_time_to_live_that_is_none_is_refused_and_changes_nothing(any_db, wrong):
    db = any_db
    db.set("there", "before", ttl=1000)
    db.set("stays", "before")
    version = db.get_versioned("there")[1]
    calls = {
        "set": lambda: db.set("there", 1, ttl=wrong),
        "set of a new key": lambda: db.set("newcomer", 1, ttl=wrong),
        "expire": lambda: db.expire("there", wrong),
        "cas": lambda: db.cas("there", version, 1, ttl=wrong),
        "set_many": lambda: db.set_many({"there": 1, "stays": 1, "newcomer": 1}, ttl=wrong),
    }
    named = {"set of a new key": "'newcomer'", "set_many": "these keys"}
    for name, call in calls.items():
        with pytest.raises(InvalidValue) as refused:
            call()
        assert isinstance(refused.value, ValueError)
        assert named.get(name, "'there'") in str(refused.value), name
        assert "time to live" in str(refused.value)
        assert repr(wrong)[:50] in str(refused.value)
    in_batch = [
        lambda batch: batch.set("there", 1, ttl=wrong),
        lambda batch: batch.set_many({"there": 1}, ttl=wrong),
        lambda batch: batch.expire("there", wrong),
    ]
    for call in in_batch:
        with pytest.raises(InvalidValue), db.batch() as batch:  # noqa: PT012 - what is tested
            batch.set("stays", "after")
            call(batch)
    assert db.get_many(["there", "stays", "newcomer"]) == {"there": "before", "stays": "before"}
    assert is_about(db.ttl("there"), 1000)
    assert db.ttl("stays") is None


def test_the_shortest_and_the_longest_time_to_live_are_accepted(any_db):
    db = any_db
    db.set("long", 1, ttl=TTL_MS_MAX / 1000)
    db.set("longer", 1, ttl=TTL_MS_MAX // 1000)
    assert is_about(db.ttl("long"), TTL_MS_MAX / 1000)
    assert is_about(db.ttl("longer"), TTL_MS_MAX / 1000)
    db.set("short", 1, ttl=1e-9)
    db.set("shorter", 1, ttl=5e-324)
    wait_until(lambda: db.get_many(["short", "shorter", "long"]) == {"long": 1}, "their end")


def test_a_key_whose_time_is_over_is_gone_for_every_command(any_db):
    """Also where the cache was warm for it, as it was before it was to expire and after."""
    db = any_db
    blocking = isinstance(db, Blocking)
    asked = {
        "get": (lambda key: db.get(key, "none"), "none"),
        "exists": (lambda key: db.exists(key) if blocking else key in db, False),
        "get_many": (lambda key: db.get_many([key]), {}),
        "pop": (lambda key: db.pop(key, "none"), "none"),
        "remove": (lambda key: db.remove(key), False),
        "remove_many": (lambda key: db.remove_many([key]), 0),
        "get_versioned": (lambda key: db.get_versioned(key), (None, 0)),
        "ttl": (lambda key: db.ttl(key), None),
        "expire": (lambda key: db.expire(key, 100), False),
        "persist": (lambda key: db.persist(key), False),
        "all": (lambda key: db.all(key), []),
        "incr": (lambda key: db.incr(key, 5), 5),
        "setdefault": (lambda key: db.setdefault(key, "new"), "new"),
        "cas": (lambda key: db.cas(key, 0, "new"), True),
        "modify": (lambda key: db.modify(key, lambda value: value, "new"), "new"),
    }
    creating = ["incr", "setdefault", "cas", "modify"]
    db.set("before", 0)
    for name in asked:
        db.set(name, 1)
    for name in asked:
        assert [db.get(name) for _ in range(3)] == [1, 1, 1]
    for name in asked:
        db.expire(name, 0.3)
        db.get(name)
    db.set("after", 0)
    db.get("after")
    time.sleep(0.3)  # no command tells that time has passed without being one that is tested
    # each of the first commands that are asked after that moment, with no time to reap them all
    for name, (ask, gone) in asked.items():
        assert ask(name) == gone, name
    assert (db.len() if blocking else len(db)) == 2 + len(creating)
    assert db.all() == ["before", "after", *creating], "what is set again comes last"
    assert [db.ttl(name) for name in creating] == [None] * len(creating)


def test_the_whole_content_is_without_what_is_gone(daemon, db):
    db.update({"a": 1, "b": 2})
    assert db["a"] == 1
    db.set_many({f"t{n}": n for n in range(1000)}, ttl=0.4)
    db.set("last", 1, ttl=0.4)
    time.sleep(0.4)
    assert db.popitem() == ("b", 2)
    assert len(db) == 1
    assert list(db) == db.all() == list(db.keys()) == ["a"]
    assert db.db == dict(db.items()) == {"a": 1}
    assert list(db.values()) == [1]
    assert db.info()["keys"] == 1
    assert db.all(glob="t*") == []
    assert db.popitem() == ("a", 1)
    with pytest.raises(KeyError):
        db.popitem()
    db.save()
    assert json.loads(daemon.location.read_bytes()) == {}


def test_a_condition_on_a_key_that_is_gone_is_that_there_is_none(db):
    db.set("a", 1, ttl=0.2)
    version = db.get_versioned("a")[1]
    wait_for_the_end_of(db, "a")
    with pytest.raises(Conflict), db.batch() as batch:  # noqa: PT012 - the block is what is tested
        batch.if_version("a", version)
        batch.set("b", 1)
    with db.batch() as batch:
        batch.if_version("a", 0)
        batch.set("b", 2)
    assert db.db == {"b": 2}
    assert not db.cas("a", version, 3)


BUSY = """
import sys
from pickledbd_client import PickleDB
db = PickleDB(sys.argv[1], autostart=False, timeout=60)
print("ready", flush=True)
number = 0
while not __import__("select").select([sys.stdin], [], [], 0)[0]:
    for _ in range(50):
        number += 1
        db.set(f"busy:{sys.argv[2]}:{number % 1000}", number, ttl=0.05 if number % 3 else None)
"""


@contextlib.contextmanager
def busy_writers(location, count):
    """So many processes that write without pause, also keys that expire."""
    command = [sys.executable, "-c", BUSY, str(location)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen([*command, str(n)], **pipes) for n in range(count)]
    try:
        for process in processes:
            assert process.stdout.readline() == b"ready\n"
        yield
    finally:
        for process in processes:
            process.stdin.close()
        ended = [process.wait(PATIENCE) for process in processes]
        for process in processes:
            process.stdout.close()
    assert ended == [0] * count


def test_under_load_no_key_is_gone_before_its_time_and_all_are_soon_after(daemon, db, other):
    with busy_writers(daemon.location, 4):
        for number in range(20):
            key, ttl = f"precise:{number}", 0.03 + 0.01 * number
            ways = [lambda key=key: other.get(key) is None, lambda key=key: key not in other]
            assert other.get(key) is None  # so the cache is warm for what was there before
            asked = time.monotonic()
            db.set(key, number, ttl=ttl)
            answered = time.monotonic()
            while True:
                began = time.monotonic()
                gone = ways[number % 2]()
                ended = time.monotonic()
                if gone:
                    break
                # It was there at some moment after this began
                assert began - answered < ttl + LATE
            assert ended - asked >= ttl, "it is gone before its time"
    db.purge()  # of what the writers left nothing is to end just when the file is looked at


def test_a_reader_with_a_cache_never_sees_a_key_after_its_time(db, other):
    """As an other client sees it: who has seen its end is never followed by who sees the key."""
    for number in range(25):
        key = f"k{number % 3}"
        db.set(key, "before")
        assert [db.get(key), other.get(key)] == ["before", "before"]
        db.expire(key, 0.02)
        readers = [db, other]
        seen_end = False
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            found = [reader.get(key) for reader in readers] + [
                reader.get(key) for reader in readers
            ]
            first = found.index(None) if None in found else len(found)
            assert found == ["before"] * first + [None] * (len(found) - first), "it came back"
            if seen_end:
                assert first == 0
                break
            seen_end = first < len(found)
        assert seen_end
        db.set(key, "after")
        assert [db.get(key), other.get(key), other.get(key)] == ["after"] * 3


def test_a_large_batch_in_parts_lives_as_long_as_it_was_told_to(any_db):
    db = any_db
    many = {f"key{n}": "x" * 30 for n in range(9000)}  # some 400 KB: a dozen parts
    db.set("key5", "old", ttl=1000)
    db.set("key6", "old")
    began = time.monotonic()
    db.set_many(many, ttl=100)
    for key in ("key0", "key5", "key6", "key8999"):
        assert is_about(db.ttl(key), 100)
        assert db.get(key) == many[key]
    db.set_many(dict.fromkeys(many, 1), ttl=1.5)
    while (left := len(db.get_many(many))) == len(many):
        assert time.monotonic() - began < PATIENCE
    assert left == 0, "all of them at the same moment"
    db.set_many(many)
    assert db.ttl("key8999") is None


@pytest.mark.parametrize("ended", ["killed", "stopped", "killed and stopped"])
def test_deadlines_survive_the_daemon(location, ended):
    daemon = Daemon(location)
    with contextlib.closing(daemon.client()) as db:
        db.set_many({"saved": 1, "changed": 2, "kept": 3}, ttl=1000)
        db.set("soon", 1, ttl=0.5)
        set_at = time.monotonic()
        db.save()
        db.set("journaled", 4, ttl=2000)
        db.set("soon too", 1, ttl=0.5)
        db.expire("changed", 3000)
        db.persist("kept")
        db.set_many({f"m{n}": n for n in range(3000)}, ttl=4000)
    for end in ended.split(" and "):
        daemon.kill() if end == "killed" else daemon.stop()
        daemon = Daemon(location)
    with contextlib.closing(daemon.client()) as db:
        expected = {"saved": 1000, "journaled": 2000, "changed": 3000, "kept": None, "m2999": 4000}
        for key, seconds in expected.items():
            left = db.ttl(key)
            assert left is None if seconds is None else is_about(left, seconds), key
        wait_until(lambda: db.get_many(["soon", "soon too"]) == {}, "their end")
        assert time.monotonic() - set_at >= 0.5
        assert len(db) == 4 + 3000
    daemon.check_and_stop()
    assert len(json.loads(location.read_bytes())) == 4 + 3000


def test_what_expires_while_no_daemon_runs_is_gone_when_one_does(location):
    daemon = Daemon(location)
    with contextlib.closing(daemon.client()) as db:
        db.set("stays", 1)
        db.set("goes", 2, ttl=0.3)
        set_at = time.monotonic()
    daemon.stop()
    time.sleep(max(0.0, set_at + 0.3 - time.monotonic()))  # nobody is there to be asked
    daemon = Daemon(location)
    with contextlib.closing(daemon.client()) as db:
        assert (len(db), db.get("goes"), "goes" in db, db.db) == (1, None, False, {"stays": 1})
        assert db.popitem() == ("stays", 1)
    daemon.stop()
    assert json.loads(location.read_bytes()) == {}


def test_what_expires_while_the_daemon_is_stopped_is_gone_when_it_goes_on(daemon, db):
    db.set("a", 1, ttl=0.2)
    db.get("a")
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        time.sleep(0.2)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert db.get("a") is None
    assert len(db) == 0
