"""batch(): several writes as one, of PickleDB and of AsyncPickleDB; all of them or none."""

from __future__ import annotations

import contextlib
import sys
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batching import both
from looped import stopped
from pickledbd_client import InvalidKey, InvalidValue

DEEP = [[]]
for _ in range(200):
    DEEP = [DEEP]  # which only the daemon refuses


@both
def test_what_it_collects_happens_in_its_order_at_the_end(db, block):
    db.update({"old": 0, "older": 1})
    with block(db) as batch:
        batch.set("a", 1)
        batch.remove("a")
        batch["a"] = b"2"
        del batch["nobody"]
        batch.set_many({"b": 1, "c": 2})
        batch.remove_many(["b", "old", "nobody"])
        batch.update({"d": 4}, e=5)
        batch.set(1, None)
        batch.set("older", "new")
        assert batch.results == []
        assert db.db == {"old": 0, "older": 1}, "it is sent at the end"
    assert batch.results == [True, True, True, False, True, 2, True, True, True]
    expected = {"older": "new", "a": b"2", "c": 2, "d": 4, "e": 5, "1": None}
    assert list(db.items()) == list(expected.items())


@both
def test_one_that_has_begun_does_not_begin_again(db, block):
    with block(db) as batch:
        batch.set("a", 1)
        with pytest.raises(ValueError, match="has begun already"):
            batch._begin()  # as by a further `with batch:`
        batch.incr("n")
    with pytest.raises(ValueError, match="has ended"):
        batch._begin()
    assert batch._end(None) is None, "whoever leaves it once more does nothing"
    assert db.db == {"a": 1, "n": 1}


def test_a_block_within_the_same_block_is_refused_and_nothing_happens(db):
    batch = db.batch()
    with pytest.raises(ValueError, match="has begun already"), batch:  # noqa: PT012
        batch.incr("orders")
        with batch:
            batch.incr("sold")
    assert db.db == {}


@both
def test_threads_that_share_one_lose_nothing(db, block):
    names = [f"t{n}" for n in range(4)]
    every = 3000
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def add(batch, name):
        for number in range(every):
            batch.set(f"{name}:{number}", number)
            if number % 100 == 0:
                batch.incr(name)

    try:
        with block(db) as batch:
            threads = [threading.Thread(target=add, args=(batch, name)) for name in names]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)
    expected = {f"{name}:{number}": number for name in names for number in range(every)}
    assert db.db == expected | dict.fromkeys(names, every // 100)
    assert len(batch.results) == len(names) * (every + every // 100)


@both
def test_a_purge_in_the_midst_takes_what_came_before(db, block):
    db["old"] = 1
    with block(db) as batch:
        batch.set("before", 1)
        batch.purge()
        batch.set("after", 2)
        batch.remove("before")
    assert batch.results == [True, True, True, False]
    assert db.db == {"after": 2}


class Model(dict):
    """What a batch does, as a dict does it; each returns what the batch is to tell of it."""

    def set(self, key, value):
        self[key] = value
        return True

    def remove(self, key):
        return self.pop(key, self) is not self

    def set_many(self, items):
        self.update(items)
        return True

    def remove_many(self, keys):
        return sum([self.remove(key) for key in keys])

    def purge(self):
        self.clear()
        return True


keys = st.sampled_from("abc")
values = st.integers(0, 9) | st.binary(max_size=2) | st.just({"$binary": 1})
step = st.one_of(
    st.tuples(st.just("set"), keys, values),
    st.tuples(st.just("remove"), keys),
    st.tuples(st.just("set_many"), st.dictionaries(keys, values)),
    st.tuples(st.just("remove_many"), st.lists(keys, max_size=4)),
    st.tuples(st.just("purge")),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.lists(step, max_size=8), max_size=4), st.integers(0, 8))
def test_it_is_as_if_all_were_asked_one_after_the_other(db, batches, bad):
    db.clear()
    model = Model()
    for steps in batches:
        with db.batch() as batch:
            for name, *args in steps:
                getattr(batch, name)(*args)
        assert batch.results == [getattr(model, name)(*args) for name, *args in steps]
        assert list(db.items()) == list(model.items())
        with pytest.raises(InvalidValue, match="'bad'"), db.batch() as batch:  # noqa: PT012
            for number, (name, *args) in enumerate(steps):
                if number == bad:
                    batch.set("bad", DEEP)
                getattr(batch, name)(*args)
            batch.set("bad", DEEP)
        assert list(db.items()) == list(model.items()), "what it did is undone"


@both
def test_an_exception_in_the_block_means_that_nothing_is_sent(db, block):
    with pytest.raises(RuntimeError), block(db) as batch:  # noqa: PT012 - the block is what is tested
        batch.set("a", 1)
        raise RuntimeError
    assert batch.results == []
    assert db.db == {}


@both
def test_a_wrong_value_is_refused_where_it_is_given(db, block):
    wrong = [
        (InvalidValue, lambda batch: batch.set("bad", {1})),
        (InvalidValue, lambda batch: batch.__setitem__("bad", float("nan"))),
        (InvalidValue, lambda batch: batch.set_many({"good": 1, "bad": 2**70})),
        (InvalidValue, lambda batch: batch.set_many([("good", 1)])),
        (InvalidValue, lambda batch: batch.update(bad=object())),
        (InvalidKey, lambda batch: batch.remove("\ud800")),
        (InvalidKey, lambda batch: batch.remove_many(["a", "\ud800"])),
    ]
    for error, call in wrong:
        with pytest.raises(error), block(db) as batch:  # noqa: PT012 - the block is what is tested
            batch.set("a", 1)
            call(batch)
            pytest.fail("it went on")
        assert db.db == {}
    with block(db) as batch:  # who catches it goes on without what was wrong
        batch.set("a", 1)
        for error, call in wrong:
            with pytest.raises(error):
                call(batch)
        batch.remove("nobody")
    assert batch.results == [True, False]
    assert db.db == {"a": 1}


@both
def test_values_count_as_they_were_when_they_were_given(db, block):
    value, items, names = [1], {"b": [1]}, ["c"]
    db["c"] = db["d"] = 0
    with block(db) as batch:
        batch.set("a", value)
        batch.set_many(items)
        batch.remove_many(names)
        value.append(2)
        items["b"].append(2)
        items["x"] = 1
        names.append("d")
    assert db.db == {"d": 0, "a": [1], "b": [1]}


@both
def test_an_empty_one_asks_nothing(daemon, block):
    with contextlib.closing(daemon.client(timeout=0.5)) as db, stopped(daemon):
        with block(db) as batch:
            pass
        assert batch.results == []


@both
def test_after_its_end_it_takes_no_more(db, block):
    with block(db) as batch:
        batch.set("a", 1)
    for call in (
        lambda: batch.set("b", 1),
        lambda: batch.remove("a"),
        lambda: batch.set_many({}),
        lambda: batch.remove_many([]),
        batch.purge,
        lambda: batch.update(b=1),
        lambda: batch.__delitem__("a"),
    ):
        with pytest.raises(ValueError, match="has ended"):
            call()
    assert db.db == {"a": 1}


def test_it_is_not_sent_again_by_a_second_with(db):
    with db.batch() as batch:
        batch.set("a", 1)
    db.remove("a")
    with pytest.raises(ValueError, match="has ended"), batch:
        pass
    assert db.db == {}
    with contextlib.suppress(RuntimeError), db.batch() as batch:
        batch.set("a", 1)
        raise RuntimeError
    with pytest.raises(ValueError, match="has ended"), batch:
        pass
    assert db.db == {}


def test_what_the_daemon_refuses_is_refused_also_if_the_same_key_is_set_again(db):
    with pytest.raises(InvalidValue, match="'a'"), db.batch() as batch:  # noqa: PT012
        batch.set("a", DEEP)
        batch.set("a", 1)
    assert db.db == {}


def test_one_within_the_other_is_sent_first(db):
    with db.batch() as outer:
        outer.set("a", "outer")
        with db.batch() as inner:
            inner.set("a", "inner")
            inner.set("b", "inner")
        assert db.db == {"a": "inner", "b": "inner"}
    assert db.db == {"a": "outer", "b": "inner"}
