"""Who may only read: every command of the table, however it comes."""

from __future__ import annotations

import json

import pytest

from pickledbd import engine as engine_module
from pickledbd.rights import EVERYTHING, Rights
from pickledbd_protocol import COMMANDS

READER = Rights(changes=False, why="key read-only/ann")
STRANGER = Rights(reads=False, changes=False, why="its key was taken back")

ASK = {"holder": "h", "ask": 1}
EXAMPLES = {
    "hello": {"versions": [1]},
    "ping": {},
    "info": {},
    "save": {},
    "get": {"key": "a"},
    "exists": {"key": "a"},
    "set": {"key": "a", "value": 2},
    "setdefault": {"key": "b", "value": 2},
    "remove": {"key": "a"},
    "pop": {"key": "a"},
    "popitem": {},
    "incr": {"key": "a"},
    "get_versioned": {"key": "a"},
    "cas": {"key": "b", "version": 0, "value": 2},
    "if_version": {"key": "b", "version": 0},
    "ttl": {"key": "a"},
    "expire": {"key": "a", "ttl_ms": 1},
    "persist": {"key": "a"},
    "get_many": {"keys": ["a"]},
    "set_many": {"items": {"b": 2}},
    "remove_many": {"keys": ["a"]},
    "len": {},
    "all": {},
    "dump": {},
    "replace": {"items": {}},
    "purge": {},
    "batch": {"steps": [{"op": "set", "args": {"key": "b", "value": 2}}]},
    "lock": {"name": "x", "ttl_ms": 30_000, **ASK},
    "unlock": {"name": "x", **ASK},
    "keep": {"holder": "h", "asks": [1]},
    "watch": {},
    "unwatch": {"watcher": "w"},
}

READING = {
    *("hello", "ping", "info", "get", "exists", "get_versioned", "if_version", "ttl", "get_many"),
    *("len", "all", "dump", "watch", "unwatch"),
}


@pytest.fixture
def wired(wired):
    wired.ask("set", key="a", value=1)
    return wired


@pytest.fixture
def reader(wired):
    wired.rights = READER
    return wired


def unchanged(wired):
    wired.rights = EVERYTHING
    assert wired.ask("dump") == {"items": {"a": 1}}
    assert wired.ask("info")["locks"] == wired.ask("info")["waiting"] == 0
    assert not wired.engine._batches._open


def test_what_only_reads_is_what_it_should_be():
    assert EXAMPLES.keys() == COMMANDS.keys()
    assert {name for name, command in COMMANDS.items() if command.reads} == READING
    assert not any(command.reads and command.writes for command in COMMANDS.values())


@pytest.mark.parametrize("op", sorted(COMMANDS))
def test_each_command_is_answered_or_refused(reader, op):
    (reply,) = reader.send(op, EXAMPLES[op])
    if op in READING:
        assert "result" in reply
    else:
        assert reply["error"]["code"] == "not_allowed"
        assert op in reply["error"]["message"]
        assert READER.why in reply["error"]["message"]
    unchanged(reader)


@pytest.mark.parametrize("op", sorted(COMMANDS))
def test_each_command_is_refused_to_who_may_nothing(wired, op):
    wired.rights = STRANGER
    (reply,) = wired.send(op, EXAMPLES[op])
    assert reply["error"]["code"] == "not_allowed"
    assert STRANGER.why in reply["error"]["message"]
    unchanged(wired)


@pytest.mark.parametrize("op", sorted(COMMANDS.keys() - {"batch"}))
def test_a_batch_is_refused_whatever_its_steps(reader, op):
    (reply,) = reader.send("batch", {"steps": [{"op": op, "args": EXAMPLES[op]}]})
    assert reply["error"]["code"] in ("not_allowed", "protocol")
    assert reader.ask("batch", steps=[])["code"] == "not_allowed"
    unchanged(reader)


def test_info_is_told_but_not_reset(reader):
    assert reader.ask("info", reset=False)["keys"] == 1
    refusal = reader.ask("info", reset=True)
    assert refusal["code"] == "not_allowed"
    assert "reset" in refusal["message"]


@pytest.mark.parametrize("op", sorted(name for name, each in COMMANDS.items() if each.parts))
def test_of_a_request_in_parts_nothing_is_kept_and_the_last_is_answered(reader, op):
    number = 1000
    for value in range(3):
        reader.receive(op, {"items": {f"b{value}": value}}, id=number, more=True)
    assert reader.turn() == []
    assert not reader.engine._batches._open
    reader.receive(op, {"items": {"b": 1}}, id=number)
    ((_, reply),) = reader.turn()
    assert (reply["id"], reply["error"]["code"]) == (number, "not_allowed")
    unchanged(reader)


def test_of_several_in_one_message_those_that_read_are_answered(reader):
    requests = [
        {"id": number, "client": "c", "op": op, "args": EXAMPLES[op]}
        for number, op in enumerate(EXAMPLES)
        if op not in ("all", "dump")  # which come by themselves
    ]
    reader.engine.receive(b"p", [json.dumps(requests).encode()], READER)
    replies = [
        reply for _, told in reader.turn() for reply in (told if isinstance(told, list) else [told])
    ]
    assert len(replies) == len(requests)
    ops = list(EXAMPLES)
    for reply in replies:
        assert ("result" in reply) == (ops[reply["id"]] in READING), reply
    unchanged(reader)


def test_what_has_to_wait_for_its_turn_is_no_more_allowed_than_else(reader, monkeypatch):
    monkeypatch.setattr(engine_module, "TAKEN_IN_SECONDS", -1.0)
    requests = [
        {"id": number, "client": "c", "op": op, "args": EXAMPLES[op]}
        for number, op in enumerate(["get", "set", "get", "purge", "len"])
    ]
    reader.engine.receive(b"p", [json.dumps(requests).encode()], READER)
    assert reader.engine._held[b"p"]
    assert not any(request.command.writes for request in reader.engine._held[b"p"])
    monkeypatch.undo()
    reader.turn()
    unchanged(reader)


def test_who_may_only_read_is_told_so_and_nobody_else(reader):
    assert reader.ask("hello", versions=[1])["read_only"] is True
    assert reader.ask("info")["read_only"] is True
    reader.rights = EVERYTHING
    reader.receive("hello", {"versions": [1]}, peer=b"q")
    ((_, reply),) = reader.turn()
    assert reply["result"]["read_only"] is False
    reader.engine.gone(b"p", b"q")
    assert not reader.engine._readers


def test_a_watch_of_a_reader_is_told_of_the_changes_of_others(reader):
    since = reader.ask("watch")["seq"]
    number = reader.receive("watch", {"since": since})
    assert reader.turn() == []
    reader.rights = EVERYTHING
    reader.receive("set", {"key": "b", "value": 2}, peer=b"q")
    replies = {reply["id"]: reply for _, reply in reader.turn()}
    assert [change[1:] for change in replies[number]["result"]["changes"]] == [["b", 2]]
