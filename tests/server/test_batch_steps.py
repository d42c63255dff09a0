"""The command batch: steps that are not its own are refused with all of it, and leave no trace."""

from __future__ import annotations

import errno
import json
import os

import pytest

from pickledbd.clock import now_ms

OLD = {"a": 1, "b": 2, "c": 3}
DEEP = json.loads("[" * 201 + "]" * 201)
SET = {"op": "set", "args": {"key": "a", "value": "new"}}


@pytest.fixture
def filled(wired):
    wired.ask("replace", items=OLD)
    return wired


def content(wired):
    return list(wired.ask("dump")["items"].items())


WRONG = [
    "set",
    None,
    [],
    {},
    {"op": None},
    {"op": 1, "args": {}},
    {"op": ["set"], "args": {}},
    {"op": "lend", "args": {}},
    {"op": "set"},
    {"op": "set", "args": None},
    {"op": "set", "args": []},
    {"op": "set", "args": {"key": "a"}},
    {"op": "set", "args": {"key": 1, "value": 1}},
    {"op": "set", "args": {"key": "a", "value": 1, "colour": "red"}},
    {"op": "set", "args": {"key": "a", "value": 1}, "id": 1},
    {"op": "set_many", "args": {"items": [1]}},
    {"op": "set_many", "args": {"items": {}}, "more": True},
    {"op": "remove_many", "args": {"keys": "abc"}},
    {"op": "remove_many", "args": {"keys": ["a", 1]}},
    {"op": "purge", "args": {"key": "a"}},
    *(
        {"op": op, "args": args}
        for op, args in {
            "get": {"key": "a"},
            "pop": {"key": "a"},
            "popitem": {},
            "setdefault": {"key": "a", "value": 1},
            "replace": {"items": {}},
            "save": {},
            "dump": {},
            "hello": {"versions": [1]},
            "batch": {"steps": []},
            "batch ": {"steps": [SET]},
        }.items()
    ),
]


@pytest.mark.parametrize("wrong", WRONG, ids=json.dumps)
def test_a_step_that_is_none_refuses_all_and_changes_nothing(filled, wire, wrong):
    before = content(filled)
    for steps in ([wrong], [SET, wrong], [wrong, SET], [{"op": "purge"}, SET, wrong]):
        assert filled.ask("batch", steps=steps)["code"] == "protocol"
        assert content(filled) == before
    assert content(wire()) == before


@pytest.mark.parametrize("steps", [None, {}, "purge", SET, 1])
def test_so_does_what_is_no_array_of_steps(filled, steps):
    assert filled.ask("batch", steps=steps)["code"] == "protocol"
    assert filled.ask("batch")["code"] == "protocol"
    assert content(filled) == list(OLD.items())


CHANGES = [
    {"op": "remove", "args": {"key": "b"}},
    {"op": "set", "args": {"key": "new", "value": 1}},
    {"op": "purge"},
    {"op": "set_many", "args": {"items": {"c": 5, "b": 6}}},
    {"op": "remove_many", "args": {"keys": ["c", "x"]}},
    {"op": "set", "args": {"key": "c", "value": 7}},
]


@pytest.mark.parametrize("bad", [DEEP, 2**64, -(2**63) - 1], ids=["deep", "large", "small"])
@pytest.mark.parametrize("place", range(len(CHANGES) + 1))
def test_a_value_that_is_refused_undoes_the_steps_before_it(filled, wire, bad, place):
    dirty = filled.engine.dirty
    for step in (
        {"op": "set", "args": {"key": "bad", "value": bad}},
        {"op": "set_many", "args": {"items": {"good": 1, "bad": bad}}},
    ):
        error = filled.ask("batch", steps=[*CHANGES[:place], step, *CHANGES[place:]])
        assert error["code"] == "invalid_value"
        assert content(filled) == list(OLD.items())
    assert filled.engine.dirty == dirty
    assert content(wire()) == list(OLD.items())


def test_each_step_has_its_result_and_a_kill_takes_none_of_it(filled, wire):
    assert filled.ask("batch", steps=[]) == {"results": []}
    assert filled.ask("batch", steps=CHANGES) == {
        "results": [{"removed": True}, {}, {}, {}, {"removed": 1}, {}]
    }
    expected = [("b", 6), ("c", 7)]
    assert content(filled) == expected
    again = wire()
    assert content(again) == expected
    assert again.ask("save") == {"saved": True}
    assert list(json.loads(again.path.read_bytes()).items()) == expected


def test_there_may_be_any_number_of_steps(filled, wire):
    steps = [{"op": "set", "args": {"key": f"{n % 3000}", "value": n}} for n in range(9000)]
    assert filled.ask("batch", steps=steps) == {"results": [{}] * 9000}
    expected = list(OLD.items()) + [(f"{n}", 6000 + n) for n in range(3000)]
    for wired in (filled, wire()):
        items = {}
        wired.receive("dump")
        for _, reply in wired.turn():
            items |= reply["result"].get("items", {})
        assert list(items.items()) == expected


def test_a_repeat_is_answered_as_the_first_was(filled, wire):
    (first,) = filled.send("batch", {"steps": CHANGES}, id=50, budget_ms=60_000)
    filled.send("set", {"key": "c", "value": "another's"}, client="another")
    repeat = {"id": 50, "client": filled.client, "sent_at": now_ms(), "budget_ms": 60_000}
    for wired in (filled, wire()):
        assert wired.send("batch", {"steps": CHANGES}, **repeat) == [first]
        assert wired.ask("get", key="c") == {"value": "another's"}


def test_a_journal_that_fails_undoes_it_and_what_shared_its_turn(filled, wire, monkeypatch):
    def fail(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", fail)
    filled.receive("set", {"key": "a", "value": 9})
    filled.receive("batch", {"steps": CHANGES})
    filled.receive("get", {"key": "c"})
    *refused, read = [reply for _, reply in filled.turn()]
    assert [reply["error"]["code"] for reply in refused] == ["writes_refused"] * 2
    assert read["result"] == {"value": 3}
    assert content(filled) == list(OLD.items())
    monkeypatch.undo()
    filled.ask("save")
    assert "results" in filled.ask("batch", steps=CHANGES)
    assert content(wire()) == [("b", 6), ("c", 7)]
