"""PickleDB beside a dict: the same calls, the same answers."""

from __future__ import annotations

import json
from collections.abc import MutableMapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pickledbd_client import InvalidKey, InvalidValue, PickleDBError, TooLarge, Unavailable
from support import Daemon, wait_until

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
keys = st.sampled_from(["", "a", "b", "$binary", "\n", "\u00e9"]) | texts
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | texts | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=5,
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("__setitem__"), keys, values),
        st.tuples(st.just("__delitem__"), keys),
        st.tuples(st.just("__getitem__"), keys),
        st.tuples(st.just("__contains__"), keys),
        st.tuples(st.just("get"), keys),
        st.tuples(st.just("get"), keys, values),
        st.tuples(st.just("pop"), keys),
        st.tuples(st.just("pop"), keys, values),
        st.tuples(st.just("popitem")),
        st.tuples(st.just("setdefault"), keys, values),
        st.tuples(st.just("update"), st.dictionaries(keys, values, max_size=3)),
        st.tuples(st.just("clear")),
        st.tuples(st.just("__len__")),
    ),
    max_size=20,
)


def outcome(mapping, name, *args):
    try:
        return getattr(mapping, name)(*args)
    except KeyError:
        return KeyError


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_it_answers_as_a_dict_does(db, steps):
    model = {}
    db.clear()
    for step in steps:
        assert outcome(db, *step) == outcome(model, *step), step
    assert list(db) == list(model) == db.all() == list(db.keys())
    assert list(db.items()) == list(model.items())
    assert list(db.values()) == list(model.values())
    assert db == model
    assert db.db == model


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(keys, values, max_size=4), st.lists(keys, max_size=4))
def test_many_at_once_are_as_one_after_the_other(db, items, some):
    db.db = {"a": 0, "z": 0}
    model = {"a": 0, "z": 0} | items
    assert db.set_many(items) is True
    assert db.db == model
    assert db.get_many(some) == {key: model[key] for key in some if key in model}
    assert db.remove_many(some) == len(set(some) & model.keys())
    assert db.db == {key: value for key, value in model.items() if key not in some}


def test_it_is_a_mutable_mapping(db):
    assert isinstance(db, MutableMapping)
    db.update({"a": 1}, b=2)
    db.update([("c", 3)])
    assert dict(db) == {"a": 1, "b": 2, "c": 3}
    assert dict(**db) == dict(db)
    assert (3 in db.values(), 4 in db.values()) == (True, False)
    assert ("a", 1) in db.items()
    assert db.keys() & {"a", "x"} == {"a"}
    assert len(db.items()) == 3
    assert bool(db)
    db.clear()
    assert not db


def test_update_takes_the_keywords_that_a_dict_takes(db):
    db.update(self=1, other=2)
    assert db.db == {"self": 1, "other": 2}
    db.db.update(self=3)
    assert db["self"] == 3


def test_as_in_pickledb(db):
    assert db.set("a", None) is True
    assert db.get("a", "default") is None
    assert db.remove("a") is True  # it was there, although its value was None
    assert db.remove("a") is False
    assert db.get("a") is None
    assert db.get("a", "default") == "default"
    assert db.get("a", default=5) == 5
    assert db.purge() is True
    assert db.save() is True
    assert db.save() is True
    assert db.load() is db
    assert db.set_many({}) is True
    assert (db.get_many([]), db.remove_many([])) == ({}, 0)


def test_keys_go_through_str(db):
    db.set(1, "one")
    db[None] = "none"
    db.set_many({2.5: "x", (1, 2): "y"})
    assert db.all() == ["1", "None", "2.5", "(1, 2)"]
    assert db[1] == db["1"] == "one"
    assert 1 in db
    assert db.get_many([1, None]) == {"1": "one", "None": "none"}
    assert db.pop(2.5) == "x"
    assert db.setdefault(1, "other") == "one"
    assert db.remove_many([1, None, (1, 2)]) == 3


def test_a_missing_key_raises_keyerror_with_that_key(db):
    for ask in (db.__getitem__, db.__delitem__, db.pop):
        with pytest.raises(KeyError) as caught:
            ask("missing")
        assert caught.value.args == ("missing",)
    with pytest.raises(KeyError, match="empty"):
        db.popitem()


def test_what_get_returns_is_a_copy(db):
    value = {"list": [1]}
    db.set("a", value)
    value["list"].append(2)
    db.get("a")["list"].append(3)
    assert db["a"] == {"list": [1]}


def test_a_refused_value_names_the_key_and_changes_nothing(db):
    db.db = {"a": 1}
    for call in (
        lambda: db.set("bad", {1, 2}),
        lambda: db.__setitem__("bad", float("nan")),
        lambda: db.set_many({"good": 1, "bad": 2**70}),
        lambda: db.update(good=1, bad=object()),
        lambda: setattr(db, "db", {"good": 1, "bad": {1: 2}}),
        lambda: db.setdefault("bad", "\ud800"),
    ):
        with pytest.raises(InvalidValue, match="'bad'"):
            call()
        assert db.db == {"a": 1}
    for built_in in (ValueError, TypeError, PickleDBError):
        with pytest.raises(built_in):
            db.set("bad", {1, 2})
    with pytest.raises(InvalidKey, match="surrogate"):
        db.get("\ud800")


def test_too_deep_is_refused_by_the_daemon_too(db):
    deep = json.loads("[" * 201 + "]" * 201)
    for call in (db.set, db.setdefault):
        with pytest.raises(InvalidValue, match=r"'bad'.*200 levels"):
            call("bad", deep)
    assert db.set("good", deep[0])
    assert db.get("good") == deep[0]
    assert db.all() == ["good"]


@pytest.mark.parametrize(
    ("limit", "mib"),
    [
        (1, 2),
        pytest.param(256, 257, marks=pytest.mark.long),
        pytest.param(256, 2048, marks=pytest.mark.long),
    ],
)
def test_a_value_over_the_limit_is_refused_and_changes_nothing(location, limit, mib):
    db = Daemon(location, "--max-request", limit).client()
    db.set("a", 1)
    for large in ("x" * (mib * 2**20), b"x" * (mib * 2**20)):
        for call in (lambda: db.set("large", large), lambda: db.set_many({"large": large})):  # noqa: B023 - called at once
            with pytest.raises(TooLarge, match=f"{limit * 2**20:,}|536,870,912"):
                call()
    assert db.db == {"a": 1}
    db.close()


def test_with_saves_unless_there_was_an_exception(daemon, location):
    with daemon.client() as db:
        db["a"] = 1
    assert json.loads(location.read_bytes()) == {"a": 1}
    with pytest.raises(RuntimeError), daemon.client() as db:  # noqa: PT012 - the with is what is tested
        db["a"] = 2
        raise RuntimeError
    assert json.loads(location.read_bytes()) == {"a": 1}
    assert db["a"] == 2  # it can be used on, as pickleDB can


def test_a_closed_one_says_so(db):
    db.close()
    db.close()
    with pytest.raises(Unavailable, match="closed"):
        db.get("a")


def test_info_tells_about_the_daemon(daemon, db):
    db.set_many({"a": 1, "b": 2})
    # a client looks whether anybody listens before it connects for good
    wait_until(lambda: db.info()["clients"] == 1, "the first look to be over")
    told = db.info()
    assert told["pid"] == daemon.pid
    assert told["location"] == str(daemon.location)
    assert told["endpoints"] == [daemon.endpoint]
    assert (told["keys"], told["dirty"], told["clients"]) == (2, 2, 1)
    assert told["durability"] == "journal"
    assert told["last_save_time"] is told["last_save_status"] is None
    assert told["journal_bytes"] > 0
    assert told["writes_refused"] is None
    assert told["saving"] is False
    assert told["longest_slice_ms"] > 0
    db.save()
    told = db.info()
    assert told["dirty"] == 0
    assert told["journal_bytes"] == 0
    assert told["last_save_status"] == "ok"
    assert told["last_save_time"] > 0
    assert told["last_save_duration_ms"] > 0
    longest = db.info(reset=True)["longest_slice_ms"]
    assert 0 < db.info()["longest_slice_ms"] < longest + told["uptime"] * 1000
    assert db.ping() is True


def test_large_content_comes_whole(db):
    content = {f"key {n}": "x" * 1000 for n in range(10_000)}  # more than two parts
    db.db = content
    assert db.db == content
    assert db.all() == list(content)
