"""Several requests in one message: each is applied and answered as if it came alone."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from looped import stopped
from pickledbd import engine
from support import PATIENCE, Daemon, wait_until
from wired import Wired

DEEP = json.loads("[" * 201 + "]" * 201)
LARGE = {f"large {n}": n for n in range(2500)}  # more than a turn applies


def request(number, op, args=None, **envelope):
    return {"id": number, "client": "c", "op": op, "args": args or {}} | envelope


def hand_in(wired, *requests, peer=b"p"):
    """One message, as the loop takes it in."""
    body = requests[0] if len(requests) == 1 else list(requests)
    wired.engine.receive(peer, [json.dumps(body).encode()])
    if wired.engine.turn_over:
        wired.replies += wired.engine.finish_turn()


def single(message):
    """The replies of a message, which is one or an array of some."""
    replies = message if type(message) is list else [message]
    assert all(type(reply) is dict for reply in replies), "an array within an array"
    return replies


def answers(wired, peer=b"p"):
    """What `peer` was answered, by id, with the parts put together."""
    parts = {}
    for to, message in wired.turn():
        if to == peer:
            for reply in single(message):
                parts.setdefault(reply["id"], []).append(reply)
    found = {}
    for number, replies in parts.items():
        assert [reply.get("more", False) for reply in replies] == [True] * (len(replies) - 1) + [
            False
        ], "one reply to each"
        if "error" in replies[-1]:
            found[number] = replies[-1]["error"]
            continue
        keys, items = [], {}
        for reply in replies:
            keys += reply["result"].get("keys", [])
            items |= reply["result"].get("items", {})
        found[number] = replies[-1]["result"] if len(replies) == 1 else (keys, list(items.items()))
    return found


def in_turns(messages, number):
    return [messages[start : start + number] for start in range(0, len(messages), number)]


keys = st.sampled_from("abc")
numbers = st.integers(0, 99) | st.just(DEEP)
ops = st.one_of(
    st.tuples(st.just("set"), st.fixed_dictionaries({"key": keys, "value": numbers})),
    st.tuples(st.just("setdefault"), st.fixed_dictionaries({"key": keys, "value": numbers})),
    st.tuples(
        st.sampled_from(["get", "pop", "remove", "exists"]), st.fixed_dictionaries({"key": keys})
    ),
    st.tuples(
        st.sampled_from(["dump", "all", "len", "popitem", "purge", "ping", "lend"]), st.just({})
    ),
    st.tuples(st.sampled_from(["get_many", "remove_many"]), st.just({"keys": ["a", "b", "x"]})),
    st.tuples(st.just("get"), st.sampled_from([{}, {"key": 1}, {"key": "a", "x": 1}])),
    st.tuples(
        st.sampled_from(["set_many", "replace"]),
        st.sampled_from([{"items": {"a": 1, "d": 2}}, {"items": LARGE}, {"items": 1}]),
    ),
    st.tuples(
        st.just("batch"),
        st.just({"steps": [{"op": "purge"}, {"op": "set", "args": {"key": "b", "value": 5}}]}),
    ),
)


@pytest.fixture(autouse=True)
def _enough_time(monkeypatch):
    """However busy the machine is, a message is taken in at once, and nothing takes long."""
    monkeypatch.setattr(engine, "TAKEN_IN_SECONDS", 60)
    monkeypatch.setattr(engine, "ALIVE_SECONDS", 3600)


@pytest.fixture
def pair(tmp_path):
    made = [Wired(tmp_path / name) for name in ("alone.db", "gathered.db")]
    yield made
    for wired in made:
        wired.close()


@pytest.mark.parametrize("time", [60, -1])
@pytest.mark.parametrize("messages_a_turn", [1, 3])
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=80,
)
@given(st.lists(st.lists(ops, min_size=1, max_size=8), min_size=1, max_size=6))
def test_each_is_answered_as_if_it_came_alone(pair, monkeypatch, messages_a_turn, time, messages):
    """Also where each has a turn of its own, since there is no time for two."""
    monkeypatch.setattr(engine, "TAKEN_IN_SECONDS", time)
    alone, gathered = pair
    ids = alone.ids  # they grow, as those of one client's writes must
    expected, found = {}, {}
    for wired in pair:
        wired.ask("purge")
    for turn in in_turns(messages, messages_a_turn):
        for message in turn:
            requests = [request(next(ids), op, args) for op, args in message]
            for each in requests:
                hand_in(alone, each)
                expected |= answers(alone)
            hand_in(gathered, *requests)
        found |= answers(gathered)
    assert found == expected
    for wired in pair:
        hand_in(wired, request(next(ids), "dump"))
    assert list(answers(alone).values()) == list(answers(gathered).values())


def test_a_dump_between_writes_shows_its_moment(wired):
    hand_in(
        wired,
        request(1, "set", {"key": "a", "value": 1}),
        request(2, "dump"),
        request(3, "set", {"key": "a", "value": 2}),
        request(4, "all"),
        request(5, "set", {"key": "b", "value": 3}),
        request(6, "dump"),
        request(7, "purge"),
        request(8, "dump"),
    )
    found = answers(wired)
    assert found.keys() == set(range(1, 9))
    assert found[2] == {"items": {"a": 1}}
    assert found[4] == {"keys": ["a"]}
    assert found[6] == {"items": {"a": 2, "b": 3}}
    assert found[8] == {"items": {}}


def test_what_of_a_message_there_is_no_time_for_comes_later_and_others_have_their_turn(
    wired, monkeypatch
):
    monkeypatch.setattr(engine, "TAKEN_IN_SECONDS", -1)
    seq = wired.ask("watch")["seq"]
    asked = [request(n, "watch", {"since": seq - n, "watcher": "w"}) for n in range(1, 129)]
    wired.engine.receive(b"p", [json.dumps(asked).encode()])
    replies = wired.engine.finish_turn()
    for number in range(1, 129):
        ((peer, reply),) = replies
        assert (peer, json.loads(reply)["id"]) == (b"p", number)
        wired.engine.receive(b"q", [json.dumps(request(number, "ping")).encode()])
        assert [peer for peer, _ in wired.engine.finish_turn()] == [b"q"]
        asks_again = wired.engine.tick(0.0) == 0.0
        replies = wired.engine.take_replies()
        assert asks_again == (number < 127)
    assert replies == []


def test_what_is_left_of_a_message_ends_with_its_connection(location):
    """Else who is gone would hold the locks, and be waited for."""
    script = (
        "import sys\n"
        "from pickledbd import cli, engine\n"
        "engine.TAKEN_IN_SECONDS = -1\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    daemon = Daemon(location, wait=False)
    daemon.kill()
    daemon.process = subprocess.Popen(
        [sys.executable, "-c", script, location],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    daemon.wait_ready()
    locks = [
        request(n, "lock", {"name": str(n), "holder": "h", "ask": n, "ttl_ms": 3_600_000})
        for n in range(1, 21)
    ]
    numbers = [request(n, "incr", {"key": "n"}) for n in range(21, 121)]
    with contextlib.closing(daemon.client()) as db:
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.connect(daemon.endpoint)
            dealer.send(json.dumps(request(1, "ping")).encode())
            assert dealer.poll(PATIENCE * 1000)
            with stopped(daemon):
                dealer.send(json.dumps(locks + numbers).encode())
                dealer.close(linger=int(PATIENCE * 1000))
                context.term()  # waits until the system has it
        wait_until(lambda: db.info()["clients"] == 1, "the other to be gone")
        wait_until(lambda: db.info()["locks"] == 0, "nobody to hold anything")
        told = [db.get("n", 0), db.info()["waiting"]]
        for _ in range(200):  # turns, in which what was left would be begun
            db.ping()
        assert [db.get("n", 0), db.info()["waiting"]] == told
        assert told[0] <= len(numbers)
        assert told[1] == 0
    daemon.check_and_stop()


def test_replies_that_were_gathered_are_not_gathered_with_those_to_the_next_message(wired):
    hand_in(wired, *(request(n, "dump" if n == 3 else "ping") for n in range(1, 5)))
    hand_in(wired, request(5, "ping"), request(6, "ping"))
    assert answers(wired).keys() == set(range(1, 7))


@pytest.mark.parametrize(("durability", "at_once"), [("save", 1), ("journal", 1), ("fsync", 0)])
def test_a_message_is_answered_before_the_next_is_taken_in_but_a_wait_for_the_disk_is_shared(
    tmp_path, durability, at_once
):
    wired = Wired(tmp_path / "my.db", "--durability", durability)
    with contextlib.closing(wired):
        sets = [request(n, "set", {"key": str(n), "value": n}) for n in range(1, 5)]
        hand_in(wired, *sets[:2])
        assert len(wired.replies) == at_once
        hand_in(wired, *sets[2:])
        assert answers(wired).keys() == {1, 2, 3, 4}


def test_a_large_batch_holds_back_what_its_message_asks_after_it(wired):
    hand_in(
        wired,
        request(1, "len"),
        request(2, "set_many", {"items": LARGE}),
        request(3, "len"),
        request(4, "get", {"key": "large 7"}),
        request(5, "remove", {"key": "large 7"}),
        request(6, "purge"),
        request(7, "len"),
    )
    hand_in(wired, request(8, "len"), peer=b"another")
    found = answers(wired)
    assert [found[n].get("len", found[n].get("value")) for n in (1, 3, 4, 7)] == [0, 2500, 7, 0]
    assert found[5] == {"removed": True}


def test_only_who_asks_for_several_things_is_answered_with_arrays(wired):
    hand_in(wired, request(1, "ping"), peer=b"one")
    hand_in(wired, request(1, "ping"), request(2, "ping"), peer=b"two")
    hand_in(wired, request(3, "ping"), peer=b"one")
    hand_in(wired, request(1, "lend"), request(2, "ping"), peer=b"three")
    told = {}
    for peer, message in wired.turn():
        assert (type(message) is list) is (peer != b"one")
        told.setdefault(peer, []).extend(reply["id"] for reply in single(message))
    assert {peer: sorted(numbers) for peer, numbers in told.items()} == {
        b"one": [1, 3],
        b"two": [1, 2],
        b"three": [1, 2],
    }
    hand_in(wired, request(4, "ping"), peer=b"two")
    assert wired.turn() == [(b"two", {"id": 4, "result": {}})]


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1])
def test_an_integer_over_64_bits_anywhere_refuses_all_writes_of_its_message(wired, number):
    wired.ask("set", key="a", value=1)
    hand_in(
        wired,
        request(101, "set", {"key": "a", "value": 2}),
        request(102, "get", {"key": "a"}),
        request(103, "set", {"key": "b", "value": [number]}),
        request(104, "batch", {"steps": [{"op": "purge"}]}),
    )
    found = answers(wired)
    assert [found[n].get("code") for n in range(101, 105)] == [
        "invalid_value",
        None,
        "invalid_value",
        "invalid_value",
    ]
    assert found[102] == {"value": 1}
    assert wired.ask("dump") == {"items": {"a": 1}}


def test_parts_do_not_stand_among_others(wired):
    hand_in(
        wired,
        request(1, "set_many", {"items": {"a": 1}}, more=True),
        request(2, "ping"),
        request(1, "set_many", {"items": {"b": 1}}),
    )
    codes = [reply.get("error", {}).get("code") for _, m in wired.turn() for reply in single(m)]
    assert sorted(codes, key=str) == [None, None, "protocol"]
    assert wired.ask("dump") == {"items": {"b": 1}}, "what was refused is no part of it"


def test_a_write_with_the_number_of_another_is_refused(wired):
    hand_in(wired, *(request(n, "set", {"key": f"{n}", "value": 1}) for n in (7, 7, 6, 8)))
    replies = [reply for _, message in wired.turn() for reply in single(message)]
    assert sorted((reply["id"], "error" in reply) for reply in replies) == [
        (6, True),
        (7, False),
        (7, True),
        (8, False),
    ]
    assert wired.ask("all") == {"keys": ["7", "8"]}


def test_a_journal_that_fails_refuses_each_write_and_answers_each_read(wire, monkeypatch):
    wired = wire()
    wired.ask("set", key="a", value=1)

    def fail(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", fail)
    hand_in(
        wired,
        request(1, "set", {"key": "a", "value": 2}),
        request(2, "get", {"key": "a"}),
        request(3, "dump"),
        request(4, "pop", {"key": "a"}),
        request(5, "lend"),
        request(6, "get", {"key": "a"}),
    )
    found = answers(wired)
    assert [found[n].get("code") for n in range(1, 7)] == [
        "writes_refused",
        None,
        None,
        "writes_refused",
        "protocol",
        None,
    ]
    assert found[2] == found[6] == {"value": 1}
    assert found[3] == {"items": {"a": 1}}
    monkeypatch.undo()
    assert wire().ask("dump") == {"items": {"a": 1}}
