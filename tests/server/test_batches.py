"""Large batches: all of it or nothing, at one moment, however long it takes to put it in place."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import threading
import time

import pytest

from pickledbd import batches
from pickledbd.clock import now_ms
from pickledbd.engine import ALIVE_SECONDS
from pickledbd_client import InvalidValue
from pickledbd_client.calls import Call
from support import Daemon

OLD = {f"old {n}": n for n in range(1000)} | {"item 7": "old"}
ITEMS = {f"item {n}": n for n in range(5000)}
MERGED = OLD | ITEMS


def parts_of(items, size=700):
    pairs = list(items.items())
    return [dict(pairs[start : start + size]) for start in range(0, len(pairs), size)]


def send_parts(wired, op, parts, *, peer=b"p", **envelope):
    """Hand in a request in parts; its id."""
    number = envelope.pop("id", None) or next(wired.ids)
    *before, last = parts
    for part in before:
        wired.receive(op, {"items": part}, peer=peer, id=number, more=True, **envelope)
    return wired.receive(op, {"items": last}, peer=peer, id=number, **envelope)


def replies_to(number, replies):
    return [reply for _, reply in replies if reply["id"] == number and not reply.get("more")]


def content(wired, peer=b"reader"):
    number = wired.receive("dump", peer=peer, client="reader")
    whole = {}
    for _, reply in wired.turn():
        if reply["id"] == number:
            whole |= reply["result"].get("items", {})
    return whole


@pytest.fixture
def filled(wired):
    wired.ask("replace", items=OLD)
    return wired


@pytest.mark.parametrize("op", ["set_many", "replace"])
@pytest.mark.parametrize("parts", [[ITEMS], parts_of(ITEMS), [{}, {}, ITEMS], [ITEMS, {}]])
def test_parts_count_as_one_request_with_one_reply(filled, wire, op, parts):
    number = send_parts(filled, op, parts)
    (reply,) = replies_to(number, filled.turn())
    assert reply["result"] == {}
    expected = MERGED if op == "set_many" else ITEMS
    assert list(content(filled).items()) == list(expected.items())
    assert list(content(wire()).items()) == list(expected.items())  # after a kill


def test_the_later_of_two_parts_counts_where_both_set_a_key(filled):
    send_parts(filled, "replace", [{"a": 1, "b": 1}, {"c": 2, "a": 2}, {"a": 3}])
    filled.turn()
    assert list(content(filled).items()) == [("a", 3), ("b", 1), ("c", 2)]


DEEP = json.loads("[" * 201 + "]" * 201)


@pytest.mark.parametrize("op", ["set_many", "replace"])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("bad", [{"bad": DEEP}, {"bad": 2**64}, ["no object"]])
def test_an_error_in_any_part_refuses_all_with_one_reply(filled, wire, op, place, bad):
    parts = [{"first": 1}, {"second": 2}, ITEMS]
    parts[place] = bad
    number = send_parts(filled, op, parts)
    (reply,) = replies_to(number, filled.turn())
    assert reply["error"]["code"] in ("invalid_value", "protocol")
    assert content(filled) == OLD
    assert content(wire()) == OLD


def test_parts_that_are_too_large_together_are_refused(filled):
    number = send_parts(filled, "set_many", [{f"k{n}": "x" * 300_000} for n in range(6)])
    (reply,) = replies_to(number, filled.turn())
    assert reply["error"]["code"] == "too_large"
    assert content(filled) == OLD


def test_a_part_that_comes_too_late_does_not_count_as_all(filled, monkeypatch):
    monkeypatch.setattr(batches, "EXPIRE_MS", -1)
    number = next(filled.ids)
    filled.receive("set_many", {"items": {"a": 1}}, id=number, more=True)
    for more in (True, False):
        filled.engine.upkeep()
        args = {"items": {"b": 2}}
        filled.receive("set_many", args, id=number, **({"more": True} if more else {}))
    (reply,) = replies_to(number, filled.turn())
    assert reply["error"]["code"] == "timeout"
    assert content(filled) == OLD


def test_a_batch_that_is_repeated_has_one_reply_and_changes_nothing(filled, wire):
    number = send_parts(filled, "set_many", parts_of(ITEMS))
    filled.turn()
    filled.send("set", {"key": "item 7", "value": "newer"}, client="another")
    again = {"peer": b"new connection", "sent_at": now_ms(), "client": filled.client, "id": number}
    for kill in (False, True):
        wired = wire() if kill else filled
        send_parts(wired, "set_many", parts_of(ITEMS), **again)
        (reply,) = replies_to(number, wired.turn())
        assert reply["result"] == {}
        assert content(wired)["item 7"] == "newer"


def test_what_is_asked_after_it_on_the_same_connection_finds_it_applied(filled):
    number = send_parts(filled, "set_many", [ITEMS])
    asked = {
        "get": filled.receive("get", {"key": "item 4999"}),
        "save": filled.receive("save"),
        "set": filled.receive("set", {"key": "item 3", "value": "later"}),
        "len": filled.receive("len"),
    }
    replies = filled.turn()
    assert replies_to(number, replies)
    told = {name: replies_to(asked[name], replies)[0]["result"] for name in asked}
    assert told["get"] == {"value": 4999}
    assert told["len"] == {"len": len(MERGED)}
    assert ITEMS.keys() <= json.loads(filled.path.read_bytes()).keys()
    assert content(filled)["item 3"] == "later"


def while_folding(wired):
    """Hand in the batch, and stop at the moment when it counts but is not in its place yet."""
    send_parts(wired, "set_many", [ITEMS], peer=b"batch", client="batch")
    wired.replies += wired.engine.finish_turn()
    store = wired.engine._store
    while not store.folding:
        assert wired.tasks, "it was never folded"
        wired.tasks.run(0)
    wired.tasks.run(0)
    assert store.folding


ASKED = {
    "len": ({}, {"len": len(MERGED)}, MERGED),
    "popitem": (
        {},
        {"key": "item 4999", "value": 4999},
        {k: v for k, v in MERGED.items() if k != "item 4999"},
    ),
    "purge": ({}, {}, {}),
    "replace": ({"items": {"only": 1}}, {}, {"only": 1}),
    "get": ({"key": "item 4000"}, {"value": 4000}, MERGED),
    "get_many": (
        {"keys": ["item 7", "x", "item 4999", "old 3"]},
        {"values": [7, 4999, 3], "missing": [1]},
        MERGED,
    ),
    "exists": ({"key": "item 4000"}, {"exists": True}, MERGED),
    "set": ({"key": "item 4000", "value": 0}, {}, MERGED | {"item 4000": 0}),
    "setdefault": ({"key": "item 4000", "value": 0}, {"value": 4000}, MERGED),
    "pop": (
        {"key": "item 7"},
        {"value": 7},
        {k: v for k, v in MERGED.items() if k != "item 7"},
    ),
    "remove_many": (
        {"keys": ["item 7", "old 7", "item 4999", "x"]},
        {"removed": 3},
        {k: v for k, v in MERGED.items() if k not in ("item 7", "old 7", "item 4999")},
    ),
    "set_many": ({"items": {"new": 1, "old 1": 0}}, {}, MERGED | {"new": 1, "old 1": 0}),
}


@pytest.mark.parametrize("op", ASKED)
def test_while_it_is_put_in_place_everything_is_as_if_it_were(filled, wire, op):
    args, result, after = ASKED[op]
    while_folding(filled)
    number = filled.receive(op, args)
    (reply,) = replies_to(number, filled.turn())
    assert reply["result"] == result
    assert list(content(filled).items()) == list(after.items())
    assert list(content(wire()).items()) == list(after.items())


@pytest.mark.parametrize("op", ["all", "dump"])
def test_who_reads_everything_meanwhile_gets_it_in_order(filled, op):
    while_folding(filled)
    number = filled.receive(op)
    found = []
    for _, reply in filled.turn():
        if reply["id"] == number:
            found += reply["result"].get("keys", reply["result"].get("items", []))
    assert found == list(MERGED)


def test_what_one_connection_asks_meanwhile_is_done_in_that_order(filled):
    while_folding(filled)
    asked = [
        filled.receive("len"),
        filled.receive("set", {"key": "new", "value": 1}),
        filled.receive("len"),
        filled.receive("purge"),
        filled.receive("get", {"key": "new"}),
        filled.receive("len"),
    ]
    replies = filled.turn()
    told = [replies_to(number, replies)[0]["result"] for number in asked]
    size = len(MERGED)
    assert told == [{"len": size}, {}, {"len": size + 1}, {}, {}, {"len": 0}]


def test_however_much_one_connection_asks_meanwhile_none_of_it_waits_for_another_message(filled):
    batch = send_parts(filled, "set_many", parts_of(ITEMS))
    asked = [filled.receive("get", {"key": f"item {n}"}) for n in range(1000)]
    replies = [reply for _, reply in filled.turn() if not reply.get("more")]
    assert [reply["id"] for reply in replies] == [batch, *asked]
    assert [reply["result"]["value"] for reply in replies[1:]] == list(range(1000))


def test_two_batches_at_once_are_applied_one_after_the_other(filled, wire):
    first = {f"item {n}": "first" for n in range(3000)}
    second = {f"item {n}": "second" for n in range(1500, 4500)}
    send_parts(filled, "set_many", [first], peer=b"1", client="1")
    send_parts(filled, "set_many", [second], peer=b"2", client="2")
    filled.turn()
    assert content(filled) in (OLD | first | second, OLD | second | first)
    expected = list(content(filled).items())
    assert list(content(wire()).items()) == expected


@pytest.mark.parametrize("chunks", [9, 10, 11])
def test_a_batch_that_fails_leaves_those_alone_that_are_put_in_place(wire, chunks):
    wired = wire("--durability", "save")

    def items(name, chunks):
        return {f"{name} {n}": n for n in range(chunks * batches.CHUNK)}

    good = items("first", 8), items("last", 10)
    send_parts(wired, "set_many", [good[0]], peer=b"1", client="1")
    send_parts(wired, "set_many", [items("bad", chunks) | {"": DEEP}], peer=b"2", client="2")
    send_parts(wired, "set_many", [good[1]], peer=b"3", client="3")
    wired.replies += wired.engine.finish_turn()
    first, *_, last = good[1]
    while wired.tasks:
        wired.tasks.run(0)  # one step
        found = [wired.engine._store.get(key) is None for key in (first, last)]
        assert found[0] == found[1]
    assert content(wired) == good[0] | good[1]


def test_who_has_to_wait_for_anothers_batch_is_told_that_it_is_being_done(wired):
    """Of each connection the first request that has to."""
    send_parts(wired, "set_many", [ITEMS], client="its own")
    wired.engine.finish_turn()
    while not wired.engine._store.folding:
        wired.tasks.run(0)
    asked = [wired.receive(op, peer=peer) for op in ("len", "all") for peer in (b"1", b"2")]
    wired.engine.finish_turn()
    now = time.monotonic()
    wired.engine.tick(now)  # it looks at the time from here on
    wired.engine.take_replies()
    wired.engine.tick(now + 2 * ALIVE_SECONDS)
    told = [(peer, json.loads(reply)) for peer, reply in wired.engine.take_replies()]
    alive = {"result": {}, "more": True}
    assert told == [
        (peer, {"id": n} | alive) for peer, n in zip((b"1", b"2"), asked[:2], strict=True)
    ]
    lengths = {reply["id"]: reply["result"].get("len") for _, reply in wired.turn()}
    assert [lengths[n] for n in asked] == [len(ITEMS), len(ITEMS), None, None]


def test_a_batch_that_its_client_gave_up_hides_no_later_answer(wire):
    wired = wire()
    send_parts(wired, "set_many", [ITEMS], budget_ms=60_000)
    wired.replies += wired.engine.finish_turn()
    while not wired.engine._journal.size:
        wired.tasks.run(0)  # until its parts are on their way
    number = wired.receive("set", {"key": "k", "value": 1}, peer=b"new", budget_ms=60_000)
    wired.turn()
    client, again = wired.client, wire()  # after a kill
    again.send("pop", {"key": "k"}, client="another")
    repeat = {"client": client, "id": number, "sent_at": now_ms(), "budget_ms": 60_000}
    (reply,) = again.send("set", {"key": "k", "value": 1}, **repeat)
    assert reply["result"] == {}
    assert again.ask("get", key="k") == {}  # not set once more


# With a daemon

COUNT = 80_000


def test_readers_see_all_of_it_or_nothing_and_a_kill_after_it_loses_nothing(location):
    daemon = Daemon(location)
    names = [f"n{n}" for n in range(COUNT)]
    looked_at = [names[0], names[COUNT // 2], names[-1]]
    over = threading.Event()
    seen = set()

    def read():
        with contextlib.closing(daemon.client()) as db:
            while True:
                last_look = over.is_set()
                found = db.get_many(looked_at)
                size = len(db)
                assert len(set(found.values())) <= 1, "half of an all-or-nothing write"
                assert len(found) in (0, 3)
                assert size in (1, COUNT + 1)
                assert size == COUNT + 1 or not found
                seen.add(next(iter(found.values()), None))
                if last_look:
                    return

    with (
        concurrent.futures.ThreadPoolExecutor(2) as pool,
        contextlib.closing(daemon.client()) as db,
    ):
        db["before"] = 1
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for value in (1, 2):
                assert db.set_many(dict.fromkeys(names, value))
        finally:
            over.set()
        for reader in readers:
            reader.result()
        daemon.kill()
    assert 2 in seen
    assert len(seen) > 1  # else nobody looked meanwhile
    daemon = Daemon(location)
    with contextlib.closing(daemon.client()) as db:
        assert list(db.db.items()) == [("before", 1), *((name, 2) for name in names)]
        items = [b'"%b":3' % name.encode() for name in names]
        *first, last = (
            b'{"items":{%b}}' % b",".join(items[start : start + 5000])
            for start in range(0, COUNT, 5000)
        )
        bad = last[:-2] + b',"bad":%b}}' % json.dumps(DEEP).encode()
        for op in ("set_many", "replace"):
            with pytest.raises(InvalidValue, match="'bad'"):
                db._link.request(Call(op, bad, lambda reply: reply, first))
        assert set(db.values()) == {1, 2}
        assert len(db) == COUNT + 1
    daemon.kill()
    daemon = Daemon(location)
    with contextlib.closing(daemon.client()) as db:
        assert set(db.values()) == {1, 2}
        db.db = dict.fromkeys(reversed(names), 4)
        assert db.popitem() == (names[0], 4)
        assert len(db) == COUNT - 1
        db.clear()
        assert len(db) == 0
        assert db.all() == []
    daemon.check_and_stop()
