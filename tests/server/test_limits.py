"""Limits: what is over one is refused whole, with what to do; what shrinks the data is welcome."""

from __future__ import annotations

import json
import resource

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pickledbd.batches import LARGE, OPEN_MAX
from pickledbd.engine import HELD_MAX, READS_OF_PEER
from pickledbd.store import ENTRY_BYTES
from pickledbd_client import PickleDB, TooLarge, Unavailable, WritesRefused
from support import Daemon, run

LONG = "k" * 65_537


def content(wired):
    whole = {}
    for reply in wired.send("dump"):
        whole |= reply["result"].get("items", {})
    return whole


def many(number, start=0):
    return {f"n{n}": n for n in range(start, start + number)}


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("set", {"key": LONG, "value": 1}),
        ("set", {"key": "ä" * 32_769, "value": 1}),
        ("setdefault", {"key": LONG, "value": 1}),
        ("incr", {"key": LONG}),
        ("cas", {"key": LONG, "version": 0, "value": 1}),
        ("set_many", {"items": {"a": 1, LONG: 2}}),
        ("set_many", {"items": many(2 * LARGE) | {LONG: 2}}),
        ("replace", {"items": {"a": 1, LONG: 2}}),
        ("batch", {"steps": [{"op": "purge"}, {"op": "set", "args": {"key": LONG, "value": 1}}]}),
        ("lock", {"name": LONG, "holder": "h", "ask": 1, "ttl_ms": 1000}),
        ("watch", {"prefix": LONG, "since": 1}),
    ],
)
def test_too_long_a_key_is_refused_whole(wired, op, args):
    wired.ask("set", key="old", value=1)
    error = wired.ask(op, **args)
    assert error["code"] == "too_large"
    assert "--max-key" in error["message"]
    assert "65,536" in error["message"]
    assert content(wired) == {"old": 1}
    assert wired.ask("set", key=LONG[1:], value=1).get("code") is None


def test_too_large_a_value_is_refused_and_its_key_named(location):
    daemon = Daemon(location, "--max-value", "1")
    value = "x" * 2**20
    with daemon.client() as db:
        for write in (
            lambda: db.set("much", value),
            lambda: db.set_many({"a": 1, "much": value}),
            lambda: db.set_many({"much": value, **many(2 * LARGE)}),
            lambda: db.update(many(2 * LARGE) | {"much": value}),
            lambda: setattr(db, "db", {"a": 1, "much": value}),
        ):
            with pytest.raises(TooLarge, match=r"key 'much' .*--max-value"):
                write()
        assert db.all() == []
        assert db.set("much", value[2:])
    daemon.stop()


def test_no_key_is_added_beyond_the_limit_and_all_else_goes_on(wire):
    wired = wire("--max-keys", "3")
    wired.ask("set_many", items={"a": 1, "b": 2, "c": 3})
    for op, args in (
        ("set", {"key": "d", "value": 1}),
        ("incr", {"key": "d"}),
        ("set_many", {"items": {"a": 0, "d": 1}}),
        ("set_many", {"items": many(2 * LARGE)}),
        ("replace", {"items": many(4)}),
        ("replace", {"items": many(2 * LARGE)}),
        ("batch", {"steps": [{"op": "remove", "args": {"key": "a"}}, *sets("d", "e")]}),
    ):
        error = wired.ask(op, **args)
        assert error["code"] == "writes_refused", op
        assert "--max-keys" in error["message"]
        assert content(wired) == {"a": 1, "b": 2, "c": 3}
    assert wired.ask("set", key="a", value=[1] * 100).get("code") is None
    assert wired.ask("batch", steps=[{"op": "remove", "args": {"key": "a"}}, *sets("d")])["results"]
    assert wired.ask("remove", key="b") == {"removed": True}
    assert wired.ask("incr", key="e") == {"value": 1}
    assert wired.ask("replace", items=many(3)) == {}
    assert content(wired) == many(3)


def sets(*keys):
    return [{"op": "set", "args": {"key": key, "value": 1}} for key in keys]


def test_no_memory_is_taken_beyond_the_limit(wire):
    wired = wire("--max-memory", "1")
    wired.ask("set_many", items={f"n{n}": "x" * 10_000 for n in range(100)})
    before = content(wired)
    error = wired.ask("set", key="more", value="x" * 50_000)
    assert error["code"] == "writes_refused"
    assert "'more'" in error["message"]
    assert "--max-memory" in error["message"]
    error = wired.ask("set_many", items=many(2 * LARGE, start=1000))
    assert error["code"] == "writes_refused"
    assert content(wired) == before
    assert wired.ask("set", key="n1", value="y" * 10_000).get("code") is None
    assert wired.ask("replace", items=dict.fromkeys(before, "z" * 10_000)) == {}
    for key in list(before)[:50]:
        wired.ask("remove", key=key)
    assert wired.ask("set_many", items=many(LARGE + 1)) == {}


def test_what_a_large_batch_will_add_nobody_else_takes(wire):
    """It is judged before it is in the journal, which takes some steps."""
    wired = wire("--max-keys", str(2 * LARGE + 30))
    number = wired.receive("set_many", {"items": many(2 * LARGE)}, peer=b"other", client="other")
    wired.replies += wired.engine.finish_turn()
    asked = []
    while wired.tasks:
        wired.tasks.run(0)
        asked.append(wired.receive("incr", {"key": f"more {len(asked)}"}))
        wired.replies += wired.engine.finish_turn()
    answers = {reply["id"]: reply for _, reply in wired.turn()}
    assert len(content(wired)) <= 2 * LARGE + 30
    codes = [answers[each].get("error", {}).get("code") for each in asked]
    assert "writes_refused" in (*codes, answers[number].get("error", {}).get("code"))


def test_nothing_is_refused_since_a_large_batch_is_there_twice_for_a_moment(wire):
    wired = wire("--max-keys", str(3 * LARGE))
    wired.ask("set_many", items=many(2 * LARGE))
    wired.receive("set_many", {"items": many(2 * LARGE)}, peer=b"other", client="other")
    wired.replies += wired.engine.finish_turn()
    while not wired.engine._store.folding:
        wired.tasks.run(0)
    number = wired.receive("set", {"key": "new", "value": 1})
    answers = {reply["id"]: reply for _, reply in wired.turn()}
    assert "error" not in answers[number]


def test_a_file_beyond_the_limits_is_served_and_nothing_is_added(location):
    location.write_text(json.dumps(many(100)))
    daemon = Daemon(location, "--max-keys", 10)
    with PickleDB(location, autostart=False) as db:
        assert len(db) == 100
        with pytest.raises(WritesRefused, match="--max-keys"):
            db.set("more", 1)
        db.set("n0", "changed")
        for n in range(91):
            db.remove(f"n{n}")
        assert db.set("more", 1)
    err = daemon.stop()
    assert "100 keys, over --max-keys 10: it is served, but nothing can be added" in err


steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.sampled_from("abcdé"), st.integers(0, 10**9)),
        st.tuples(st.just("remove"), st.sampled_from("abcdé"), st.none()),
        st.tuples(st.just("set_many"), st.none(), st.dictionaries(st.text("abcd"), st.text())),
        st.tuples(st.just("replace"), st.none(), st.dictionaries(st.text("abcd"), st.text())),
        st.tuples(st.just("large"), st.integers(0, 3), st.none()),
        st.tuples(st.just("refused"), st.sampled_from("abcdé"), st.none()),
        st.tuples(st.sampled_from(["purge", "popitem"]), st.none(), st.none()),
    ),
    max_size=12,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_the_memory_told_is_that_of_the_content(wired, steps):
    wired.ask("purge")
    for op, key, value in steps:
        if op == "set":
            wired.ask("set", key=key, value=value)
        elif op == "remove":
            wired.ask("remove", key=key)
        elif op in ("set_many", "replace"):
            wired.ask(op, items=value)
        elif op == "large":
            wired.ask("set_many", items=many(LARGE + 1, start=1000 * key))
        elif op == "refused":  # and rolled back
            batch = [*sets(key, "new"), {"op": "remove", "args": {"key": key}}]
            batch += [{"op": "if_version", "args": {"key": "a", "version": "no"}}]
            assert wired.ask("batch", steps=batch)["code"] == "conflict"
        else:
            wired.ask(op)
    told = wired.ask("info")
    keys_and_texts = dict(
        pair for chunk in wired.engine._store._table.chunks() for pair in chunk.items()
    )
    found = sum(len(k) + len(v) + ENTRY_BYTES for k, v in keys_and_texts.items())
    assert told["memory_bytes"] == found
    assert told["keys"] == len(keys_and_texts)


def lock(ask, name="n"):
    return {"name": name, "holder": "h", "ask": ask, "ttl_ms": 60_000}


def test_so_many_requests_wait_and_no_more(wire):
    wired = wire("--max-waiting", "6")
    assert "token" in wired.ask("lock", **lock(1))
    for ask in (2, 3, 4):
        assert wired.send("lock", lock(ask)) == []
    (refused,) = wired.send("lock", lock(5))
    assert refused["error"]["code"] == "unavailable"
    assert "one connection has 3" in refused["error"]["message"]
    assert wired.send("lock", lock(2)) == []  # it waits already
    assert wired.send("watch", {"since": 2**53 - 1}, peer=b"q")[0]["result"]["resync"]
    sequence = wired.ask("dump", seq=True)["seq"]
    assert wired.send("watch", {"since": sequence}, peer=b"q") == []
    assert wired.send("watch", {"since": sequence}, peer=b"q") == []
    (refused,) = wired.send("watch", {"since": sequence}, peer=b"q")
    assert "all clients together have 6" in refused["error"]["message"]
    assert "--max-waiting" in refused["error"]["message"]
    wired.engine.gone(b"q")
    assert wired.send("watch", {"since": sequence}, peer=b"r") == []


def part(wired, number, peer=b"p", items=None, **more):
    wired.receive("set_many", {"items": items or {"k": 1}}, peer=peer, id=number, more=True, **more)


def test_who_begins_many_requests_in_parts_is_hung_up_on(wired):
    for number in range(1, OPEN_MAX + 1):
        part(wired, number)
    assert not wired.engine.offending
    part(wired, 100)
    assert list(wired.engine.offending) == [b"p"]
    wired.engine.gone(b"p")
    assert wired.engine._batches.bytes == 0
    assert not wired.engine._batches._open


def test_unfinished_parts_of_all_are_bounded_together(wired):
    """Who comes too late is told so, when its last part has come; nothing of it is applied."""
    items = {f"n{n}": "x" * 90_000 for n in range(10)}
    for peer in (b"a", b"b", b"c"):
        part(wired, 5, peer=peer, items=items, client=peer.decode())
    replies = {}
    for peer in (b"a", b"b", b"c"):
        wired.receive("set_many", {"items": {"last": 1}}, peer=peer, id=5, client=peer.decode())
        replies |= dict(wired.turn())
    assert replies[b"a"].get("result") == replies[b"b"].get("result") == {}
    assert replies[b"c"]["error"]["code"] == "unavailable"
    assert "nothing was changed" in replies[b"c"]["error"]["message"]


def test_some_dumps_are_made_at_a_time_and_what_comes_behind_them_waits(wired):
    wired.ask("set_many", items=many(1000))
    ids = [wired.receive("dump") for _ in range(2 * READS_OF_PEER)]
    wired.receive("set", {"key": "after", "value": 1})
    wired.engine.finish_turn()
    assert wired.engine._reads.total() == READS_OF_PEER
    replies = {reply["id"]: reply for _, reply in wired.turn()}
    assert all(len(replies[number]["result"]["items"]) == 1000 for number in ids)
    assert "after" in content(wired)
    assert not wired.engine._reads


def test_the_engine_says_when_it_holds_enough_of_a_connection(wired):
    wired.ask("set_many", items=many(1000))
    for _ in range(READS_OF_PEER + 1):
        wired.receive("dump")
    for _ in range(HELD_MAX - 1):
        assert not wired.engine.is_full(b"p")
        wired.receive("ping")
    assert wired.engine.is_full(b"p")
    assert not wired.engine.is_full(b"q")
    assert len({reply["id"] for _, reply in wired.turn()}) == READS_OF_PEER + HELD_MAX
    assert not wired.engine.is_full(b"p")


def test_a_short_request_cannot_make_a_huge_answer(db):
    db.set("large", "x" * 2**21)
    with pytest.raises(TooLarge, match="ask for fewer"):
        db.get_many(["large"] * 129)
    assert len(db.get("large")) == 2**21


def test_a_client_too_many_is_told_so_and_others_go_on(location):
    daemon = Daemon(location, "--max-clients", 2)
    served = [daemon.client(), daemon.client()]
    third = None
    assert [db.ping() for db in served] == [True, True]
    with pytest.raises(Unavailable, match=r"2 clients, .*--max-clients"):
        daemon.client()
    assert [db.ping() for db in served] == [True, True]
    served[0].close()
    while third is None:
        try:
            third = daemon.client()
        except Unavailable:
            continue  # its connection is not known to be lost yet
    assert third.info()["limits"]["clients"] == 2
    third.close()
    served[1].close()
    daemon.stop()


@pytest.mark.parametrize("descriptors", [12_000, 10_500, 256])
def test_fewer_descriptors_are_for_fewer_clients(location, descriptors):
    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    daemon = Daemon(location, preexec_fn=limit)
    with daemon.client() as db:
        found = db.info()["limits"]["clients"]
    err = daemon.stop()
    if descriptors == 12_000:
        assert found == 10_000
        assert "for want of" not in err
    else:
        assert descriptors // 2 < found < descriptors
        assert f"{found} clients are served at a time, for want of descriptors" in err


@pytest.mark.parametrize(
    "option",
    [
        *("--max-key", "--max-value", "--max-keys", "--max-memory"),
        *("--max-clients", "--max-waiting", "--max-unread"),
    ],
)
def test_a_limit_of_nothing_is_refused(location, option):
    status, _, err = run(location, option, "0")
    assert status == 2
    assert option in err
