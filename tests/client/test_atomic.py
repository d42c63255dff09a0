"""Atomic changes: incr, compare-and-set, modify, and batches with conditions, by both clients."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections import Counter
from decimal import Decimal
from itertools import chain
from pathlib import Path

import pytest

from either import KINDS
from looped import async_client, run
from pickledbd_client import Conflict, InvalidKey, InvalidValue, LockLost
from support import PATIENCE, Daemon, wait_until

INT_MIN, INT_MAX = -(2**63), 2**64 - 1


@pytest.fixture(**KINDS)
def either(request, daemon):
    """A client of each kind."""
    with contextlib.closing(request.param(daemon)) as client:
        yield client


@contextlib.contextmanager
def nothing_changes(db):
    """Neither what is there, nor its order, nor when it expires; nor is anything to be saved."""
    before, dirty = list(db.items()), db.info()["dirty"]
    lives = {key: db.ttl(key) for key, _ in before}
    yield
    assert list(db.items()) == before
    assert db.info()["dirty"] == dirty
    for key, left in lives.items():
        now = db.ttl(key)
        assert (now is None) == (left is None), key
        assert now is None or left - PATIENCE < now <= left, key


# incr


SUMS = [
    (None, {}, 1),
    (None, {"by": -5}, -5),
    (None, {"default": 10}, 11),
    (None, {"by": 0.5, "default": 1}, 1.5),
    (None, {"by": 0}, 0),
    (7, {"by": 3, "default": 100}, 10),
    (7, {"by": 0}, 7),
    (7, {"by": 1.0}, 8.0),
    (0.1, {"by": 0.2}, 0.1 + 0.2),
    (2.5, {"by": -3}, -0.5),
    (INT_MAX - 1, {}, INT_MAX),
    (INT_MIN + 1, {"by": -1}, INT_MIN),
    (INT_MIN, {"by": INT_MAX}, INT_MIN + INT_MAX),
    (INT_MAX, {"by": INT_MIN}, INT_MIN + INT_MAX),
    (INT_MAX, {"by": 1.0}, float(2**64)),
    (1.7e308, {"by": -1.7e308}, 0.0),
]

TOO_LARGE = [
    (INT_MAX, 1),
    (INT_MIN, -1),
    (1, INT_MAX),
    (INT_MAX, INT_MAX),
    (1.7e308, 1.7e308),
    (-1.7e308, -1.7e308),
]

NO_NUMBERS = [
    ("1", "a string"),
    (True, "true or false"),
    (None, "null"),
    ([1], "an array"),
    ({"n": 1}, "an object"),
    (b"1", "an object"),
]


def test_incr_adds_as_python_does(either):
    for number, (before, args, after) in enumerate(SUMS):
        key = f"n{number}"
        if before is not None:
            either.set(key, before)
        assert [repr(either.incr(key, **args)), repr(either.get(key))] == [repr(after)] * 2


def test_what_is_no_number_or_would_be_too_large_is_refused_and_changes_nothing(either, db):
    for before, by in TOO_LARGE:
        limit = "beyond the floats" if type(by) is float else "over 64 bits"
        db.update({"first": 1, "n": before, "last": 2})
        db.expire("n", 1000)
        with nothing_changes(db), pytest.raises(InvalidValue, match=f"'n'.*{limit}"):
            either.incr("n", by)
        with nothing_changes(db), pytest.raises(InvalidValue, match=f"'new'.*{limit}"):
            either.incr("new", by, default=before)
    for value, kind in NO_NUMBERS:
        db.set("n", value, ttl=1000)
        with nothing_changes(db), pytest.raises(InvalidValue, match=f"'n'.* {kind}, not a number"):
            either.incr("n")


def test_nor_is_anything_counted_up_by_what_is_no_number(either, db):
    wrong = [True, False, "1", None, [1], Decimal(1), 1j, float("nan"), float("inf"), INT_MAX + 1]
    with nothing_changes(db):
        for number in wrong:
            with pytest.raises(InvalidValue, match="'n'"):
                either.incr("n", number)
            with pytest.raises(InvalidValue, match="'n'"):
                either.incr("n", 1, default=number)
        with pytest.raises(InvalidKey):
            either.incr("\ud800")


def test_nor_by_what_another_client_sends(wired):
    for number in (True, None, "1", [1]):
        for name in ("by", "default"):
            assert wired.ask("incr", key="n", **{name: number})["code"] == "protocol"
    assert wired.ask("exists", key="n") == {"exists": False}


def test_incr_leaves_the_key_in_its_place_and_its_time_as_it_is(either, db):
    db.update({"a": 1, "n": 1, "z": 1})
    db.expire("n", 1000)
    assert either.incr("n") == 2
    assert 900 < db.ttl("n") <= 1000
    assert list(db) == ["a", "n", "z"]
    assert either.incr("new") == 1
    assert db.ttl("new") is None
    db.set("n", 5, ttl=0.001)
    wait_until(lambda: "n" not in db, "its end")
    assert either.incr("n", default=100) == 101, "what is gone does not count"
    assert db.ttl("n") is None
    assert list(db) == ["a", "z", "new", "n"], "it is a new one"


def resident_kb(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells it so")
def test_a_counter_takes_no_more_memory_than_a_value_that_was_set(daemon, db):
    number = 20_000
    db.set("warm", 1)
    with db.batch() as batch:
        for n in range(number):
            batch.set(f"set:{n:06}", n, ttl=1000)
    after_set = resident_kb(daemon.pid)
    with db.batch() as batch:
        for n in range(number):
            batch.incr(f"inc:{n:06}", n)
    after_incr = resident_kb(daemon.pid)
    assert after_incr - after_set < number, "over 1 KB each"


# What names a token happens only while its lock is held

TOKEN = [
    lambda db, token: db.set("a", 0, token=token),
    lambda db, token: db.set("a", 0, ttl=5, token=token),
    lambda db, token: db.set_many({"a": 0, "new": 0}, token=token),
    lambda db, token: db.setdefault("new", 0, token=token),
    lambda db, token: db.remove("a", token=token),
    lambda db, token: db.remove_many(["a", "b"], token=token),
    lambda db, token: db.pop("a", token=token),
    lambda db, token: db.incr("a", token=token),
    lambda db, token: db.cas("a", db.get_versioned("a")[1], 0, token=token),
    lambda db, token: db.expire("a", 5, token=token),
    lambda db, token: db.persist("b", token=token),
    lambda db, token: db.modify("a", lambda n: n + 1, 1, token=token),
    lambda db, token: db.popitem(token=token),
    lambda db, token: db.purge(token=token),
]


def batched(db, token):
    with db.block(token=token) as batch:
        batch.set("a", 0)
        batch.remove("b")
    return batch.results


def batched_once(db, token):
    with db.block(token=token) as batch:
        batch.set_many({"a": 0})
    return batch.results


def test_an_older_token_is_refused_whatever_is_to_be_changed(either, db):
    db.update({"a": 1, "b": 2})
    db.expire("b", 1000)
    with db.lock("x") as first:
        pass
    with db.lock("x") as second, db.lock("y") as third:
        assert first.token < second.token < third.token
        for call in [*TOKEN, batched, batched_once]:
            for token in (first.token, 0, third.token + 1):
                with nothing_changes(db), pytest.raises(LockLost, match=str(token)):
                    call(either, token)
        for call in [*TOKEN, batched, batched_once]:
            db.purge()
            db.update({"a": 1, "b": 2})
            db.expire("b", 1000)
            call(either, third.token)
            assert (db.db, db.ttl("a"), db.ttl("b") is None) != ({"a": 1, "b": 2}, None, False)
    for call in [*TOKEN, batched, batched_once]:
        for token in ("1", -1, 2**53, 1.0, True):
            with pytest.raises(InvalidValue, match="token"):
                call(either, token)


def test_atomic_calls_of_a_mapping(either, db):
    assert either.setdefault("a", [1]) == [1]
    assert either.setdefault("a", [2]) == [1]
    assert either.setdefault("none") is None
    assert either.setdefault("none", 1) is None, "a key whose value is None is there"
    assert either.pop("none", 5) is None
    assert either.pop("none", 5) == 5
    with pytest.raises(KeyError, match="none"):
        either.pop("none")
    either.update({"b": 2}, c=3)
    either.update([("b", 4), (5, 6)])
    assert db.db == {"a": [1], "b": 4, "c": 3, "5": 6}
    with nothing_changes(db), pytest.raises(InvalidValue, match="'bad'"):
        either.update({"a": 0, "bad": {1}, "z": 0})
    assert [either.popitem() for _ in range(4)] == [("5", 6), ("c", 3), ("b", 4), ("a", [1])]
    with pytest.raises(KeyError):
        either.popitem()
    db.set("short", 1, ttl=1000)
    assert either.setdefault("short", 2) == 1
    assert db.ttl("short") > 900, "what was there lives as long as before"


def in_threads(number, work):
    """`work(n)` in so many threads; what each returned."""
    found, failures = {}, []
    begin = threading.Barrier(number)

    def each(n):
        try:
            begin.wait(PATIENCE)
            found[n] = work(n)
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            failures.append(error)

    threads = [threading.Thread(target=each, args=(n,)) for n in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == []
    return [found[n] for n in range(number)]


def test_what_many_take_each_gets_once(db, other):
    db.update({f"item:{n}": n for n in range(400)})
    clients = [db, other]

    def take(n):
        taken = []
        with contextlib.suppress(KeyError):
            while True:
                taken.append(clients[n % 2].popitem()[1])
        return taken

    taken = in_threads(6, take)
    assert sorted(each for some in taken for each in some) == list(range(400))
    assert in_threads(6, lambda n: clients[n % 2].setdefault("who", n)) == [db["who"]] * 6
    popped = in_threads(6, lambda n: clients[n % 2].pop("who", None))
    assert sum(each is not None for each in popped) == 1
    swapped = in_threads(6, lambda n: clients[n % 2].cas("one", 0, n))
    assert swapped == [n == db["one"] for n in range(6)]


# Versions


def test_a_version_is_of_the_value_alone(either, db, daemon, location):
    assert either.get_versioned("a") == (None, 0)
    values = [None, 0, 1, 1.0, "1", "", [], {}, b"", b"1", [1], {"a": 1}, True, INT_MAX, 0.5]
    versions = {}
    for value in values:
        db.set("a", value)
        found, versions[repr(value)] = either.get_versioned("a")
        assert (type(found), found) == (type(value), value)
        assert versions[repr(value)], "never that of a key that is not there"
        db.set("b", value, ttl=1000)
        assert either.get_versioned("b") == (found, versions[repr(value)])
    assert len(set(versions.values())) == len(values)
    daemon.kill()
    again = Daemon(location)
    assert either.get_versioned("b") == (0.5, versions["0.5"])
    db.remove("b")
    assert either.get_versioned("b") == (None, 0)
    again.check_and_stop()


def test_cas_sets_what_was_not_changed_and_else_nothing(either, db):
    assert either.cas("a", 0, {"n": 1}) is True
    with nothing_changes(db):
        assert either.cas("a", 0, {"n": 2}) is False, "there is such a key now"
        assert either.cas("a", "0", 1) is False
        assert either.cas("nobody", "0", 1) is False
    value, version = either.get_versioned("a")
    db.set("a", "meanwhile")
    with nothing_changes(db):
        assert either.cas("a", version, 2) is False
    db.set("a", value)
    assert either.cas("a", version, b"2") is True, "it is as it was"
    assert either.get("a") == b"2"
    db.remove("a")
    with nothing_changes(db):
        assert either.cas("a", version, 3) is False
    assert either.cas("a", 0, 3, ttl=1000) is True
    assert 900 < db.ttl("a") <= 1000
    _, version = either.get_versioned("a")
    with nothing_changes(db):
        assert either.cas("a", 0, 4, ttl=1) is False
        with pytest.raises(InvalidValue, match="'a'"):
            either.cas("a", version, {4})
        for wrong in (1, -1, None, 1.0, True, False, b"", ["x"]):
            with pytest.raises(InvalidValue, match="version"):
                either.cas("a", wrong, 4)
    assert either.cas("a", version, 4) is True
    assert db.ttl("a") is None, "a plain set clears it, and so does this"


# modify


def test_modify_stores_what_the_function_makes_of_it(either, db):
    assert either.modify("n", lambda value: value + 1, 10) == 11
    assert either.modify("n", lambda value: value + 1, 10) == 12
    assert either.modify("new", lambda value: value) is None
    assert db.db == {"n": 12, "new": None}
    assert either.modify("new", lambda value: [value], "default") == [None], "it is there"
    assert either.modify("raw", lambda value: value + b"!", b"x") == b"x!"
    assert either.modify(1, lambda _: "a key as any other") == db["1"]
    with pytest.raises(InvalidKey):
        either.modify("\ud800", lambda value: value)


def test_an_exception_in_the_function_changes_nothing(either, db):
    db.set("a", [1], ttl=1000)

    def fail(error):
        def work(value):
            if value is not None:
                value.append(2)
            raise error

        return work

    for error in (ZeroDivisionError(), KeyError("a"), Conflict("mine"), SystemExit(3)):
        for key in ("a", "new"):
            with nothing_changes(db), pytest.raises(type(error)) as caught:
                either.modify(key, fail(error))
            assert caught.value is error
    with nothing_changes(db):
        with pytest.raises(RuntimeError):  # as of a generator: it must not pass for an end
            either.modify("a", fail(StopIteration(5)))
        with pytest.raises(InvalidValue, match="'a'"):
            either.modify("a", set)
    assert either.modify("a", len) == 1, "it goes on well after that"


def test_the_default_of_modify_is_as_new_each_time(either, db):
    default = {"seen": []}

    def see(value):
        value["seen"].append(len(value["seen"]))
        return value

    for key in ("a", "b"):
        assert either.modify(key, see, default) == {"seen": [0]}
    assert default == {"seen": []}
    tries = []

    def interfered(value):
        """Others set the key and remove it again, before the first two tries are over."""
        tries.append(value["seen"].copy())
        if len(tries) == 1:
            db.set("c", {"seen": [5]})
        if len(tries) == 2:
            db.remove("c")
        return see(value)

    assert either.modify("c", interfered, default) == {"seen": [0]}
    assert tries == [[], [5], []]
    assert db["c"] == {"seen": [0]}


@pytest.mark.parametrize("wrong", [0, -1, "3", None, 1.5, True])
def test_how_many_tries_is_a_number_of_them(either, db, wrong):
    with nothing_changes(db), pytest.raises(InvalidValue, match=r"'a'.*tries"):
        either.modify("a", list, tries=wrong)


@pytest.mark.parametrize("wrong", ["\ud800", 1, None, b"1", True])
def test_a_version_is_what_was_told(either, db, wrong):
    with nothing_changes(db):
        with pytest.raises(InvalidValue, match="version"):
            either.cas("a", wrong, 1)
        with pytest.raises(InvalidValue, match="version"), either.block() as batch:
            batch.if_version("a", wrong)


def test_it_tells_after_how_many_tries_it_gave_up(either, db):
    calls = []

    def work(value):
        calls.append(value)
        db.set("a", len(calls))  # each time somebody is quicker
        return "mine"

    for tries in (1, 4):
        calls.clear()
        db.set("a", 0)
        with pytest.raises(Conflict, match=rf"'a'.*\b{tries} tr"):
            either.modify("a", work, tries=tries)
        assert calls == list(range(tries)), "each time with what is there then"
        assert db["a"] == tries
    calls.clear()

    def twice(value):
        return work(value) if len(calls) < 2 else "mine"

    assert either.modify("a", twice, tries=3) == "mine"
    assert db["a"] == "mine"


def test_modify_leaves_the_time_of_the_key_as_it_is(either, db):
    db.update({"a": 0, "short": 1, "z": 0})
    db.expire("short", 1000)
    either.modify("short", lambda value: value + 1)
    assert 900 < db.ttl("short") <= 1000
    assert db.cas("short", db.get_versioned("short")[1], 3)
    assert db.ttl("short") is None
    either.modify("short", lambda value: value + 1)
    assert db.ttl("short") is None

    def while_it_expires(value):
        if value == 4:
            db.expire("short", 0.001)
            wait_until(lambda: "short" not in db, "its end")
        return [value]

    assert either.modify("short", while_it_expires, "default") == ["default"]
    assert db.ttl("short") is None, "a new one"
    assert list(db) == ["a", "z", "short"]

    def while_it_is_to_live_longer(value):
        db.expire("short", 500)
        return value

    either.modify("short", while_it_is_to_live_longer)
    assert 400 < db.ttl("short") <= 500, "that others changed only this is no conflict"


def test_many_threads_and_tasks_modify_one_key_and_each_counts(daemon, db, other):
    """More than one list in one value, so that a lost change would be seen in each."""
    threads, tasks, each = 6, 12, 25

    def note(name, n):
        def work(value):
            value["sum"] += 1
            value["by"].setdefault(name, []).append(n)
            return value

        return work

    default = {"sum": 0, "by": {}}

    def in_a_thread(number):
        client = (db, other)[number % 2]
        name = f"thread {number}"
        return [
            client.modify("all", note(name, n), default, tries=10**6)["sum"] for n in range(each)
        ]

    async def as_tasks():
        theirs = async_client(daemon)

        async def task(number):
            name = f"task {number}"
            return [
                (await theirs.modify("all", note(name, n), default, tries=10**6))["sum"]
                for n in range(each)
            ]

        try:
            return await asyncio.gather(*map(task, range(tasks)))
        finally:
            await theirs.close()

    sums = in_threads(threads + 1, lambda n: in_a_thread(n) if n < threads else run(as_tasks()))
    sums = [*sums[:-1], *sums[-1]]
    everything = each * (threads + tasks)
    assert sorted(one for some in sums for one in some) == list(range(1, everything + 1))
    assert all(some == sorted(some) for some in sums)
    assert db["all"]["sum"] == everything
    assert len(db["all"]["by"]) == threads + tasks
    assert list(db["all"]["by"].values()) == [list(range(each))] * (threads + tasks)


# Batches


def test_a_batch_does_what_changes_numbers_and_times_too(either, db):
    db.update({"n": 5, "a": 1, "b": 2, "f": 0.5})
    db.expire("b", 1000)
    _, version = either.get_versioned("a")
    with either.block() as batch:
        batch.if_version("a", version)
        batch.if_version("new", 0)
        batch.incr("n")
        batch.incr("n", by=10)
        batch.incr("new", by=2, default=40)
        batch.incr("f", 0.25)
        batch.expire("a", 1000)
        batch.expire("nobody", 1000)
        batch.persist("b")
        batch.persist("n")
        batch.set("short", b"1", ttl=1000)
        batch.set("plain", 1, ttl=1000)
        batch.set("plain", 2)
        batch.set_many({"s1": 1, "s2": 2}, ttl=500)
        batch.set("s2", 3)
        batch.remove("f")
        batch.incr("f", 7)
        batch.expire(1, 5)
    assert batch.results == [
        *[True, True, 6, 16, 42, 0.75, True, False, True, False],
        *[True, True, True, True, True, True, 7, False],
    ]
    assert list(db.items()) == [
        *[("n", 16), ("a", 1), ("b", 2), ("new", 42)],
        *[("short", b"1"), ("plain", 2), ("s1", 1), ("s2", 3), ("f", 7)],
    ]
    lives = {key: db.ttl(key) for key in db}
    assert [key for key in lives if lives[key]] == ["a", "short", "s1"]
    assert 900 < lives["a"] <= 1000
    assert 900 < lives["short"] <= 1000
    assert 400 < lives["s1"] <= 500


REFUSED = [
    (Conflict, "'a'", lambda batch: batch.if_version("a", 0)),
    (Conflict, "'nobody'", lambda batch: batch.if_version("nobody", "x")),
    (InvalidValue, "'text'", lambda batch: batch.incr("text")),
    (InvalidValue, "'n'", lambda batch: batch.incr("n", INT_MAX)),
]


@pytest.mark.parametrize("purge", [False, True])
def test_if_one_step_is_refused_none_has_happened(either, db, purge):
    db.update({"n": 5, "a": 1, "short": 2, "text": "x", "z": 3})
    db.expire("short", 1000)
    for error, named, step in REFUSED:
        with nothing_changes(db), pytest.raises(error, match=named), either.block() as batch:  # noqa: PT012
            batch.set("n", 6)
            batch.incr("n")
            batch.set("a", 2, ttl=500)
            batch.expire("z", 500)
            batch.persist("short")
            batch.expire("short", 100)
            batch.remove("z")
            batch.set("z", 4)
            batch.set_many({"new": 1, "newer": 2}, ttl=1)
            batch.remove_many(["a", "new"])
            batch.set("a", 5)
            if purge:
                batch.purge()
                batch.set_many({"text": "y", "a": 0, "n": 1})
                batch.expire("a", 1)
            step(batch)
            batch.set("last", 1)
        assert batch.results == []
        with nothing_changes(db), pytest.raises(error, match=named), either.block() as batch:
            step(batch)  # alone, which is sent in another way
    db.set("brief", 1, ttl=0.3)
    with pytest.raises(Conflict), either.block() as batch:  # noqa: PT012
        batch.remove("brief")
        batch.set("brief", 2)
        if purge:
            batch.purge()
        batch.if_version("text", "x")
    wait_until(lambda: "brief" not in db, "its end")
    assert len(db) == len(db.all()) == 5, "its end is known of as before"


def test_wrong_arguments_are_refused_where_they_are_given(either, db):
    wrong = [
        (InvalidValue, lambda batch: batch.incr("a", "1")),
        (InvalidValue, lambda batch: batch.incr("a", True)),
        (InvalidValue, lambda batch: batch.expire("a", 0)),
        (InvalidValue, lambda batch: batch.expire("a", -1)),
        (InvalidValue, lambda batch: batch.set("a", 1, ttl=0)),
        (InvalidValue, lambda batch: batch.set("a", 1, ttl="5")),
        (InvalidValue, lambda batch: batch.set_many({"a": 1}, ttl=float("nan"))),
        (InvalidValue, lambda batch: batch.if_version("a", None)),
        (InvalidValue, lambda batch: batch.if_version("a", 1)),
        (InvalidKey, lambda batch: batch.persist("\ud800")),
        (InvalidKey, lambda batch: batch.if_version("\ud800", 0)),
    ]
    with either.block() as batch:
        batch.set("first", 1)
        for error, call in wrong:
            with pytest.raises(error):
                call(batch)
        batch.incr("last")
    assert batch.results == [True, 1]
    assert db.db == {"first": 1, "last": 1}
    for call in (
        lambda: batch.incr("a"),
        lambda: batch.expire("a", 1),
        lambda: batch.persist("a"),
        lambda: batch.if_version("a", 0),
        lambda: batch.set("a", 1, ttl=5),
    ):
        with pytest.raises(ValueError, match="has ended"):
            call()


ACCOUNTS = [f"account:{n}" for n in range(4)]

# Of four movers, from where to where, and how much
MOVES = [
    [(ACCOUNTS[(mover + n) % 4], ACCOUNTS[(mover + n * n + 1) % 4], mover + 1) for n in range(24)]
    for mover in range(4)
]


def fill(batch, move, found):
    """Move an amount, if both accounts are as they were `found`."""
    source, goal, amount = move
    (there, version), (here, another) = found
    batch.if_version(source, version)
    batch.if_version(goal, another)
    batch.set(source, there - amount)
    batch.incr("moves")
    batch.set(goal, here + amount)


def move_all(client, moves):
    """The numbers of the moves that were made."""
    for source, goal, amount in moves:
        done = source == goal
        while not done:
            with contextlib.suppress(Conflict):
                found = client.get_versioned(source), client.get_versioned(goal)
                with client.batch() as batch:
                    fill(batch, (source, goal, amount), found)
                yield batch.results[3]
                done = True


async def move_all_as_a_task(client, moves):
    made = []
    for source, goal, amount in moves:
        done = source == goal
        while not done:
            with contextlib.suppress(Conflict):
                found = await client.get_versioned(source), await client.get_versioned(goal)
                async with client.batch() as batch:
                    fill(batch, (source, goal, amount), found)
                made.append(batch.results[3])
                done = True
    return made


def test_conditional_batches_of_many_are_as_if_one_came_after_the_other(daemon, db, other):
    """They move amounts between accounts. Who looks finds the same sum at each moment."""
    db.update(dict.fromkeys(ACCOUNTS, 100))
    at_work = [0, 1, 2]

    async def as_tasks(movers):
        theirs = async_client(daemon)
        try:
            made = await asyncio.gather(*(move_all_as_a_task(theirs, m) for m in movers))
            return list(chain(*made))
        finally:
            await theirs.close()

    def look():
        looks = 0
        while at_work or not looks:
            assert sum(other.get_many(ACCOUNTS).values()) == 400
            assert sum(dict(other.items("account:")).values()) == 400
            looks += 1
        return []

    def work(number):
        if number == 3:
            return look()
        try:
            if number == 2:
                return run(as_tasks(MOVES[2:]))
            return list(move_all((db, other)[number], MOVES[number]))
        finally:
            at_work.remove(number)

    made = list(chain(*in_threads(4, work)))
    expected = Counter(dict.fromkeys(ACCOUNTS, 100))
    moves = [move for moves in MOVES for move in moves if move[0] != move[1]]
    for source, goal, amount in moves:
        expected[source] -= amount
        expected[goal] += amount
    assert db.get_many(ACCOUNTS) == dict(expected)
    assert sorted(made) == list(range(1, len(moves) + 1))
    assert db["moves"] == len(moves)
