"""`.db`: a dict for whoever wants one; a change made through it reaches the daemon or raises."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
from collections import UserDict

import orjson
import pytest

from pickledbd_client import InvalidValue

CONTENT = {"a": {"x": [1, {"y": None}], "z": "text"}, "list": [[1], 2], "n": 1}


@pytest.fixture(autouse=True)
def _content(db):
    db.db = CONTENT


def test_it_is_a_dict_for_all_that_want_one(db):
    content = db.db
    assert isinstance(content, dict)
    assert content == CONTENT
    assert orjson.loads(orjson.dumps(content)) == CONTENT
    assert json.loads(json.dumps(content)) == CONTENT
    assert repr(content) == repr(CONTENT)
    assert list(content.items()) == list(CONTENT.items())
    assert list(content.values()) == list(CONTENT.values())
    assert [str(value) for value in content.values()] == [str(v) for v in CONTENT.values()]
    assert dict(filter(lambda item: "a" in item[0], content.items())) == {"a": CONTENT["a"]}
    assert content.get("a")["x"][1]["y"] is None
    assert content.get("missing", 5) == 5
    assert sorted(content["list"][0:1]) == [[1]]


def test_each_change_of_a_key_reaches_the_daemon(db):
    content = db.db
    model = copy.deepcopy(CONTENT)
    for change in (
        lambda d: d.__setitem__("new", (1, [2])),
        lambda d: d.__delitem__("n"),
        lambda d: d.update({"u": 1}, v=[2]),
        lambda d: d.update([("w", 3)]),
        lambda d: d.setdefault("s", [1]),
        lambda d: d.setdefault("u", "not this"),
        lambda d: d.pop("u"),
        lambda d: d.pop("missing", 7),
        lambda d: d.popitem(),
        lambda d: d.__ior__({"i": 1}),
        lambda d: d.clear(),
    ):
        wanted, found = change(model), change(content)
        assert json.loads(json.dumps(found)) == json.loads(json.dumps(wanted))
        assert db.get_many(db.all()) == json.loads(json.dumps(model)) == content


def test_keys_go_through_str_here_too(db):
    content = db.db
    content[1] = "one"
    content.update({2: "two"})
    assert db.get_many([1, 2]) == {"1": "one", "2": "two"}
    assert content["1"] == "one"
    del content[1]
    assert content.pop(2) == "two"
    assert content == db.db == CONTENT


def test_a_missing_key_raises(db):
    for change in (lambda d: d["missing"], lambda d: d.pop("missing")):
        with pytest.raises(KeyError):
            change(db.db)
    with pytest.raises(KeyError):
        del db.db["missing"]


def test_a_refused_change_changes_neither_side(db):
    content = db.db
    for change in (
        lambda: content.__setitem__("bad", {1}),
        lambda: content.update(good=1, bad=float("nan")),
        lambda: content.setdefault("bad", 2**70),
    ):
        with pytest.raises(InvalidValue, match="bad"):
            change()
        assert content == db.db == CONTENT


def test_a_change_inside_a_value_raises_and_says_what_to_do(db):
    content = db.db
    inner = content["a"]
    values = list(content.values())
    items = dict(content.items())
    for change in (
        lambda: inner.__setitem__("x", 1),
        lambda: inner.__delitem__("x"),
        lambda: inner.update(x=1),
        lambda: inner.__ior__({"x": 1}),
        lambda: inner.pop("x"),
        lambda: inner.popitem(),
        lambda: inner.setdefault("new", 1),
        lambda: inner.clear(),
        lambda: inner["x"].append(2),
        lambda: inner.get("x")[1].update(y=1),
        lambda: next(iter(inner.values())).append(2),
        lambda: dict(inner.items())["x"].append(2),
        lambda: values[1].insert(0, 1),
        lambda: items["list"][0].extend([1]),
        lambda: next(iter(content["list"])).pop(),
        lambda: content["list"].__setitem__(0, 1),
        lambda: content["list"].__delitem__(0),
        lambda: content["list"].__iadd__([1]),
        lambda: content["list"].__imul__(2),
        lambda: content["list"].remove(2),
        lambda: content["list"].clear(),
        lambda: content["list"].sort(),
        lambda: content["list"].reverse(),
        lambda: content.setdefault("list", None).append(1),
        lambda: content["list"][0:1][0].append(1),
        lambda: list(reversed(content["list"]))[1].append(1),
    ):
        with pytest.raises(TypeError, match=r"set\(key, value\)"):
            change()
        assert content == db.db == CONTENT


def test_what_was_taken_out_is_the_caller_s(db):
    value = db.db.pop("list")
    value.append(3)
    assert value == [[1], 2, 3]


def test_copies_are_plain_and_free(db):
    for copied in (
        copy.deepcopy(db.db),
        pickle.loads(pickle.dumps(db.db)),
        copy.deepcopy(dict(db.db)),
    ):
        assert type(copied) is dict
        assert copied == CONTENT
        copied["a"]["x"].append(5)
        copied["new"] = 1
    assert db.db == CONTENT


def test_merging_into_it_undoes_nothing_of_what_others_do(daemon, db):
    with contextlib.closing(daemon.client()) as other:

        class Meanwhile(UserDict):
            def keys(self):
                other.set("theirs", 1)
                return super().keys()

        db.db |= Meanwhile(ours=2)
    assert db.get_many(["theirs", "ours"]) == {"theirs": 1, "ours": 2}
    for merged in (False, True):
        snapshot = db.db
        if merged:
            snapshot |= {"more": 3}
        db.purge()
        db.db = snapshot
        assert db.db == snapshot == CONTENT | {"theirs": 1, "ours": 2} | snapshot
        assert ("more" in db) is merged


def test_assigning_it_replaces_everything(db):
    db.db = {"only": 1}
    assert db.db == {"only": 1}
    db.db = db.db
    assert db.db == {"only": 1}
    db.db |= {"more": 2}
    assert db.db == {"only": 1, "more": 2}
    for wrong in ([1], "text", None):
        with pytest.raises(TypeError, match="mapping"):
            db.db = wrong
    assert db.db == {"only": 1, "more": 2}
