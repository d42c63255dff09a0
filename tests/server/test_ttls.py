"""A time to live for each key: in set_many and replace, in a turn or as a large batch; in dumps."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pickledbd import batches, handlers
from pickledbd_client.calls import Call
from support import Daemon, wait_until
from wired import Wired

FAR = 3_600_000


def ttls_of(wired, **args):
    return wired.ask("dump", ttl=True, **args)["ttl_ms"]


def numbered(count):
    return {f"k{n}": n for n in range(count)}


@pytest.mark.parametrize("op", ["set_many", "replace"])
@pytest.mark.parametrize("count", [4, batches.LARGE + 100])
@pytest.mark.parametrize("in_parts", [False, True])
def test_each_key_lives_as_long_as_it_is_to(wire, op, count, in_parts):
    wired = wire()
    wired.ask("set_many", items={"old": 1, "k1": 0}, ttl_ms=FAR)
    items = numbered(count)
    ttls = {"k0": FAR, "k3": 2 * FAR, f"k{count - 1}": 3 * FAR}
    if in_parts:
        first = {"items": {"k0": 0, "k1": 1}, "ttls": {"k0": FAR, "k1": FAR}}
        number = wired.receive(op, first, more=True)
        later = {"items": items, "ttls": ttls}  # k1, which comes again, lives on
        wired.receive(op, later, id=number)
        ((_, reply),) = wired.turn()
        assert reply == {"id": number, "result": {}}
    else:
        assert wired.ask(op, items=items, ttls=ttls) == {}
    old = {"old": 1} if op == "set_many" else {}
    held = wired.ask("dump", ttl=True)
    assert held["items"] == old | items
    wanted = ttls | (dict.fromkeys(old, FAR))
    assert held["ttl_ms"].keys() == wanted.keys()
    for key, left in held["ttl_ms"].items():
        assert wanted[key] - 60_000 < left <= wanted[key]
    again = wire()  # as after a kill
    held = again.ask("dump", ttl=True)
    assert held["items"] == old | items
    assert held["ttl_ms"].keys() == wanted.keys()
    assert ttls_of(again, prefix="k3").keys() == {"k3"} | {k for k in wanted if k[:2] == "k3"}


@pytest.mark.parametrize("op", ["set_many", "replace"])
@pytest.mark.parametrize("count", [10, batches.LARGE + 100])
def test_they_are_gone_in_time_and_the_others_are_not(wired, op, count):
    items = numbered(count)
    ttls = dict.fromkeys(list(items)[: count // 2], 1)
    assert wired.ask(op, items=items, ttls=ttls) == {}
    wait_until(lambda: wired.ask("len")["len"] == count - count // 2, "half of them to be gone")
    assert wired.ask("all")["keys"] == list(items)[count // 2 :]
    assert ttls_of(wired) == {}


def test_ttls_go_before_ttl_ms(wired):
    wired.ask("set_many", items={"a": 1, "b": 2}, ttl_ms=FAR, ttls={"b": 10 * FAR})
    left = ttls_of(wired)
    assert left["a"] <= FAR < left["b"]


def test_without_them_a_key_that_was_to_expire_lives_on(wired):
    wired.ask("set_many", items={"a": 1, "b": 2}, ttls={"a": FAR, "b": FAR})
    wired.ask("set_many", items={"a": 1, "c": 3}, ttls={"c": FAR})
    assert ttls_of(wired).keys() == {"b", "c"}
    wired.ask("replace", items={"b": 1})
    assert ttls_of(wired) == {}


def test_they_may_be_in_a_step_of_a_batch(wired):
    step = {"op": "set_many", "args": {"items": {"a": 1, "b": 2}, "ttls": {"a": FAR}}}
    assert wired.ask("batch", steps=[step]) == {"results": [{}]}
    assert ttls_of(wired).keys() == {"a"}


@pytest.mark.parametrize(
    ("ttls", "what"),
    [
        ({"x": 1}, "argument 'ttls' has key 'x', which 'items' has not"),
        ({"a": 0}, "argument 'ttls' must be an object of keys"),
        ({"a": None}, "argument 'ttls' must be an object of keys"),
        ({"a": 2**53}, "argument 'ttls' must be an object of keys"),
        ([1], "argument 'ttls' must be an object of keys"),
    ],
)
def test_what_is_none_is_refused_and_nothing_is_changed(wired, ttls, what):
    for op in ("set_many", "replace"):
        for more in (False, True):
            number = wired.receive(op, {"items": {"a": 1}, "ttls": ttls}, more=more)
            if more:
                wired.receive(op, {"items": {"b": 1}}, id=number)
            ((_, reply),) = wired.turn()
            assert what in reply["error"]["message"]
    assert wired.ask("len") == {"len": 0}


def test_a_dump_in_parts_tells_them_all(wired, monkeypatch):
    items = numbered(3000)
    ttls = dict.fromkeys(list(items)[::3], FAR)
    wired.ask("replace", items=items, ttls=ttls)
    monkeypatch.setattr(handlers, "PART_BYTES", 100)
    parts = [reply["result"] for reply in wired.send("dump", {"ttl": True, "seq": True})]
    assert len(parts) > 2
    assert [key for part in parts for key in part.get("items", {})] == list(items)
    assert [key for part in parts for key in part.get("ttl_ms", {})] == list(ttls)
    for part in parts:
        assert part.get("ttl_ms", {}).keys() <= part.get("items", {}).keys()
    assert "seq" in parts[-1]


KEYS = st.sampled_from("abcdef")
PARTS = st.lists(
    st.dictionaries(KEYS, st.none() | st.integers(1, 5).map(lambda n: n * FAR)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60)
@given(PARTS, st.sampled_from(["set_many", "replace"]))
def test_of_a_key_in_several_parts_the_last_value_and_its_time_count(parts, op):

    with TemporaryDirectory() as folder:
        wired = Wired(Path(folder) / "my.db")
        try:
            wired.ask("set_many", items={"a": 0, "f": 0}, ttls={"f": FAR})
            wanted = {} if op == "replace" else {"a": None, "f": FAR}
            number = None
            for index, part in enumerate(parts):
                wanted |= part
                ttls = {key: ttl for key, ttl in part.items() if ttl}
                args = {"items": dict.fromkeys(part, index), "ttls": ttls}
                more = index < len(parts) - 1
                envelope = {} if number is None else {"id": number}
                sent = wired.receive(op, args, more=more, **envelope)
                number = sent if number is None else number
            wired.turn()
            held = wired.ask("dump", ttl=True)
            assert held["items"].keys() == wanted.keys()
            told = {key: round(left / FAR) for key, left in held["ttl_ms"].items()}
            assert told == {key: ttl // FAR for key, ttl in wanted.items() if ttl}
            assert wired.ask("len") == {"len": len(wanted)}
        finally:
            wired.close()


def test_a_save_keeps_them(location):
    daemon = Daemon(location)
    with daemon.client() as db:
        db._link.request(_replace(numbered(5000), {"k7": FAR}))
    daemon.stop()
    assert json.loads(location.read_bytes()) == numbered(5000)
    daemon = Daemon(location)
    with daemon.client() as db:
        assert FAR / 1000 - 60 < db.ttl("k7") <= FAR / 1000
        assert db.ttl("k8") is None
    daemon.check_and_stop()


def _replace(items, ttls):

    args = json.dumps({"items": items, "ttls": ttls}).encode()
    return Call("replace", args, lambda reply: reply.result)
