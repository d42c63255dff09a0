"""What was read is kept at hand, and is never told when it is not current any more."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import enum
import json
import resource
import threading

import pytest

from cached import asks, halted, keeps
from pickledbd_client import WritesRefused
from support import PATIENCE, wait_until

ABSENT = object()


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


# What it writes itself


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_what_it_writes_where_it_had_read_is_kept_too(daemon, db, other, value):
    db.get("a")
    db.set("a", value)
    assert keeps(daemon, db)
    assert db.get("a") == other.get("a") == value
    spoil(db.get("a"))
    assert db.get("a") == value
    other.set("a", "another's")
    assert db.get("a") == "another's"


def test_what_it_writes_without_having_read_it_is_not_kept(daemon, db):
    db.set("a", 1)
    assert asks(daemon, db)


def test_what_it_writes_is_kept_as_it_is_read_not_as_it_was_given(daemon, db):
    db.get("a")
    given = [(1, 2), {"b": [3]}]
    db.set("a", given)
    given.append("changed later")
    assert keeps(daemon, db)
    assert db.get("a") == [[1, 2], {"b": [3]}]
