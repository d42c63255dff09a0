"""Scanning: keys, items and values by prefix and glob, of PickleDB and of AsyncPickleDB."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from fnmatch import fnmatchcase

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from either import KINDS, Waited
from pickledbd import clock
from pickledbd_client import InvalidKey, InvalidValue, PickleDBError, ProtocolError, calls
from support import PATIENCE, wait_until

texts = st.text("ab:*\u00e9\U0001f600", max_size=4)
globs = st.lists(st.sampled_from([*"ab:*?\u00e9", "[ab]", "[!a]", "[*]"]), max_size=4).map("".join)


@pytest.fixture(**KINDS)
def either(request, daemon):
    with contextlib.closing(request.param(daemon)) as client:
        yield client


@pytest.fixture
def waited(daemon):
    with contextlib.closing(Waited(daemon)) as client:
        yield client


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(texts, max_size=12), texts, st.none() | globs)
@example(["ab", "b", "a", "abb"], "a", "*b")
def test_it_is_as_if_all_were_read_and_looked_through(db, waited, names, prefix, glob):
    db.clear()
    content = {}
    for number, name in enumerate(names):  # some are set again, and keep their places
        content[name] = db[name] = number
    some = {
        key: value
        for key, value in content.items()
        if key.startswith(prefix) and (glob is None or fnmatchcase(key, glob))
    }
    for client in (db, waited):
        assert client.all(prefix, glob=glob) == list(some)
        assert client.all(prefix=prefix, glob=glob) == list(some)
        assert list(client.keys(prefix, glob=glob)) == list(some)
        assert list(client.items(prefix, glob=glob)) == list(some.items())
        assert list(client.values(prefix, glob=glob)) == list(some.values())


def test_values_come_back_as_they_were_set(either):
    either.update({"x:1": b"\0\xff", "y": b"other", "x:2": {"$binary": [b"1"]}, "x:3": [None]})
    expected = {"x:1": b"\0\xff", "x:2": {"$binary": [b"1"]}, "x:3": [None]}
    assert dict(either.items("x:")) == expected
    assert list(either.values(glob="x*")) == list(expected.values())


def test_some_keys_are_a_set_of_their_moment(db):
    db.update({"a1": 1, "a2": 2, "b1": 3})
    some, every = db.keys("a"), db.keys()
    items, values = db.items("a"), db.values("a")
    db["a3"] = 4
    assert some == {"a1", "a2"}
    assert some - {"a1"} == {"a2"}
    assert "a3" not in some
    assert (len(items), ("a1", 1) in items, list(values)) == (2, True, [1, 2])
    assert "a3" in every, "and all of them are as they are now"
    assert 1 in db.keys(prefix="") ^ {1}


def test_what_is_no_str_is_made_one_as_a_key_is(either):
    either.update({15: "a", 1: "b", 2: "c", None: "d", "": "e"})
    assert either.all(1) == ["15", "1"]
    assert list(either.keys(glob=15)) == ["15"]
    assert dict(either.items(prefix=2)) == {"2": "c"}
    assert either.all("None") == ["None"]
    assert either.all(glob="") == [""]
    assert len(either.all("")) == 5


def test_what_cannot_be_a_key_is_refused_with_a_clear_error(either):
    either.set("a", 1)
    for ask in (either.all, either.keys, either.items, either.values):
        for some in ({"prefix": "a\ud800"}, {"glob": "\udfff*"}):
            with pytest.raises(InvalidKey, match="surrogate") as caught:
                list(ask(**some))
            assert ascii(next(iter(some.values())))[1:-1] in str(caught.value)
    assert either.all("a") == ["a"]


def test_a_prefix_to_watch_that_cannot_be_one_is_refused_too(db):
    with pytest.raises(InvalidKey, match="surrogate"), db.watch("\ud800") as changes:
        next(changes)


def test_a_glob_that_is_too_long_is_refused_and_the_longest_is_not(either, db):
    either.set("a" * 999, 1)
    assert either.all(glob="a" * 998 + "?*") == ["a" * 999]
    with pytest.raises(InvalidValue, match="at most 1,000 characters"):
        either.all(glob="a" * 1001)
    with pytest.raises(ProtocolError, match="at most 1000 characters"):  # what another may send
        db._link.request(calls.Call("all", b'{"glob":"%b"}' % (b"a" * 1001), lambda reply: reply))
    assert either.all(glob="?" * 1000) == []


ROWS = 8_000


@pytest.fixture
def many(db):
    """A database of several pieces and chunks, whose first and last keys matter."""
    rows = {f"row:{n:06}:" + "x" * 90: n for n in range(ROWS)}
    db.update({"row:first": 0, "left": 1} | rows | {"row:last": 0})
    return rows


@pytest.mark.parametrize("some", [{"prefix": "row:"}, {"glob": "?o[w]:*"}])
def test_all_of_it_is_of_one_moment(many, db, other, some):
    """While somebody changes it at full speed, from both ends and in its midst."""
    names = list(many)
    over = threading.Event()
    rounds = 0
    failure = []

    def change():
        nonlocal rounds
        try:
            while not over.is_set():
                rounds += 1
                with other.batch() as batch:
                    batch.set("row:first", rounds)
                    batch.set("row:last", rounds)
                    batch.set(names[rounds * 997 % ROWS], -rounds)
                    batch.remove(f"row:new:{rounds - 1}")
                    batch.set(f"row:new:{rounds}", rounds)
        except PickleDBError as error:
            failure.append(error)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(3):
            before = rounds
            found = dict(db.items(**some))
            new = [key for key in found if key.startswith("row:new:")]
            moment = found["row:first"]
            assert found["row:last"] == moment
            assert new == ([f"row:new:{moment}"] if moment else [])
            assert [key for key in found if key in many] == names
            changed = [value for value in found.values() if value < 0]
            assert min(changed, default=0) == -moment
            assert moment >= before - 1, "it is not of long ago"
            keys = db.all(**some)
            assert len(keys) == ROWS + 2 + (1 if rounds else 0)
            wait_until(lambda before=before: rounds > before + 1 or failure, "changes")
    finally:
        over.set()
        changing.join(PATIENCE)
    assert failure == []


def replies_until(dealer, number):
    """The messages of a daemon up to the last part of the answer to request `number`."""
    found = []
    while not found or found[-1]["id"] != number or found[-1].get("more"):
        message = json.loads(dealer.recv())
        found += message if type(message) is list else [message]
    return found


def asked(number, op, **args):
    return {"id": number, "client": "bare", "op": op, "args": args}


@pytest.mark.parametrize("op", ["all", "dump"])
def test_a_large_answer_comes_in_parts_with_others_between(many, dealer, op):
    """One message asks for it and for something short, so that both come at the same time."""
    some = {"prefix": "row:0"}
    dealer.send(json.dumps([asked(1, op, **some), asked(2, "ping")]).encode())
    replies = replies_until(dealer, 1)
    parts = [reply for reply in replies if reply["id"] == 1]
    assert [reply.get("more", False) for reply in parts] == [True] * (len(parts) - 1) + [False]
    assert len(parts) >= 3
    assert replies.index({"id": 2, "result": {}}) < len(replies) - 1
    member = "keys" if op == "all" else "items"
    pieces = [part["result"].get(member, ()) for part in parts]
    assert [key for piece in pieces for key in piece] == list(many)
    assert max(len(json.dumps(piece)) for piece in pieces) < 2**19


@pytest.mark.parametrize("some", [{}, {"prefix": "k"}, {"glob": "*"}])
def test_what_is_due_is_not_among_it_although_nobody_has_removed_it_yet(wired, some):
    wired.ask("set_many", items={"k1": 1, "k2": 2}, ttl_ms=20)
    wired.ask("set", key="k3", value=3)
    until = clock.now_ms() + 21
    wait_until(lambda: clock.now_ms() >= until, "their end")
    for op, member, expected in (("all", "keys", ["k3"]), ("dump", "items", {"k3": 3})):
        before = wired.engine._store._table.get("k1")
        wired.receive(op, some)
        replies = [reply for _, reply in wired.turn()]
        assert replies[-1]["result"][member] == expected
        assert (before is not None) == (op == "all"), "it was there when the first was asked"


def test_a_key_is_found_until_its_time_and_not_after_it(either):
    """However long it takes until its memory is given back, which there are many others for."""
    names = [f"short:{n}" for n in range(3000)]
    either.set("stays", 1)
    began = time.monotonic()
    either.set_many(dict.fromkeys(names, 1), ttl=0.8)
    done = time.monotonic()
    either.set("short:stays", 1)
    while True:
        before = time.monotonic()
        keys = either.all("short:")
        items = dict(either.items(glob="short:*"))
        after = time.monotonic()
        assert keys[-1] == "short:stays"
        assert items["short:stays"] == 1
        if after < began + 0.8:
            assert keys == [*names, "short:stays"]
            assert len(items) == 3001
        if before > done + 0.8 + 0.002:  # the clock's milliseconds and the command's
            assert keys == ["short:stays"]
            assert len(items) == 1
            break
    assert either.all() == ["stays", "short:stays"]
