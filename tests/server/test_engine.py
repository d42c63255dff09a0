"""The engine without a socket: requests in, replies out, one save for all that ask for it."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
import weakref

import pytest

from pickledbd import handlers
from pickledbd.ownership import Ownership
from support import written


def test_saves_asked_for_in_one_turn_share_one_save(wired):
    wired.ask("set", key="a", value=1)
    asked = [(b"%d" % n, wired.receive("save", peer=b"%d" % n)) for n in range(5)]
    replies = wired.turn()
    assert [(peer, reply["id"]) for peer, reply in replies] == asked
    assert all(reply["result"] == {"saved": True} for _, reply in replies)
    assert wired.left() == ["my.db", "my.db.journal.2"]
    first = written(wired.path)
    assert wired.ask("save") == {"saved": False}
    assert written(wired.path) == first


def test_a_save_of_an_unchanged_database_still_makes_the_missing_file(wired):
    assert wired.ask("save") == {"saved": True}
    assert wired.path.read_bytes() == b"{}\n"
    wired.path.unlink()
    assert wired.ask("save") == {"saved": True}
    assert wired.path.read_bytes() == b"{}\n"


def test_a_save_takes_a_lock_anew_that_somebody_removed(wired):
    wired.ask("set", key="a", value=1)
    wired.owner.path.unlink()
    wired.ask("save")
    assert wired.owner.held()
    assert json.loads(wired.path.read_bytes()) == {"a": 1}


def test_a_save_is_refused_where_another_owns_the_file_by_now(wired, caplog):
    wired.ask("set", key="a", value=1)
    wired.owner.path.unlink()
    other = Ownership(wired.path)
    other.announce({"pid": 7})
    for _ in range(3):
        error = wired.ask("save")
        assert error["code"] == "save_failed"
        assert "pid 7 holds it now" in error["message"]
    assert not wired.path.exists()
    assert wired.ask("info")["last_save_error"] == error["message"]
    assert wired.engine.dirty == 1
    assert caplog.text.count("pid 7") == 1  # however often it is asked, it is logged once
    other.release()
    assert wired.ask("save") == {"saved": True}
    assert wired.ask("info")["last_save_error"] is None


def test_a_save_that_failed_is_due_again_even_if_nothing_changed(wired, monkeypatch):
    wired.ask("set", key="a", value=1)
    wired.ask("save")
    wired.path.unlink()
    fsync = os.fsync

    def fail_for_directories(file):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(file)

    monkeypatch.setattr(os, "fsync", fail_for_directories)
    for _ in range(2):
        assert "fsync of the directory" in wired.ask("save")["message"]
    monkeypatch.undo()
    assert wired.ask("save") == {"saved": True}


def test_who_asks_after_the_disk_was_mended_is_not_told_how_it_failed_before(wired, monkeypatch):
    failed = threading.Event()

    def fail(_file):
        failed.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    wired.ask("set", key="a", value=1)
    monkeypatch.setattr(os, "fsync", fail)
    before = wired.receive("save")
    wired.replies += wired.engine.finish_turn()
    while not failed.is_set():
        wired.tasks.run(0)
    monkeypatch.undo()
    later = wired.receive("save")
    replies = {reply["id"]: reply for _, reply in wired.turn()}
    assert replies[before]["error"]["code"] == "save_failed"
    assert replies[later]["result"] == {"saved": True}
    assert json.loads(wired.path.read_bytes()) == {"a": 1}


def test_what_another_program_did_to_the_file_is_taken_over_if_nothing_is_unsaved(wire):
    wired = wire()
    wired.ask("set", key="a", value=1)
    wired.ask("save")
    wired.path.write_bytes(b'{"b": 2}')
    wired.ask("set", key="c", value=3)
    wired.engine.refresh()
    assert wired.ask("all") == {"keys": ["a", "c"]}
    wired.ask("remove", key="c")
    wired.ask("save")  # which keeps the other's file aside
    wired.path.write_bytes(b"oops")
    wired.engine.refresh()
    assert wired.ask("all") == {"keys": ["a"]}
    wired.path.write_bytes(b'{"b": 2}')
    wired.engine.refresh()
    assert wired.ask("dump") == {"items": {"b": 2}}
    assert wired.engine.dirty == 0
    # and the journal goes on from there
    wired.ask("set", key="d", value=4)
    wired = wire()
    assert wired.ask("dump") == {"items": {"b": 2, "d": 4}}
    wired.ask("save")
    wired.path.unlink()
    wired.engine.refresh()
    assert wired.ask("len") == {"len": 0}
    assert wire().ask("len") == {"len": 0}


def test_dirty_counts_changes_and_a_save_takes_off_what_it_saved(wire):
    wired = wire()
    assert wired.engine.dirty == 0
    wired.ask("set_many", items={"a": 1, "b": 2, "c": 3})
    wired.ask("remove", key="a")
    wired.ask("remove", key="a")
    wired.ask("get", key="b")
    assert wired.engine.dirty == 4
    wired = wire()
    assert wired.engine.dirty == 4  # and none is forgotten when the journal is read again
    wired.ask("save")
    assert wired.engine.dirty == 0
    assert wire().engine.dirty == 0


def test_a_batch_with_one_bad_value_changes_nothing(wired):
    deep = json.loads("[" * 201 + "]" * 201)
    wired.ask("set", key="a", value=1)
    for op in ("set_many", "replace"):
        error = wired.ask(op, items={"a": 2, "b": 3, "bad": deep})
        assert error["code"] == "invalid_value"
        assert "'bad'" in error["message"]
    assert wired.ask("dump") == {"items": {"a": 1}}


@pytest.mark.parametrize("changes_before", [0, 3])
def test_a_fault_in_a_handler_is_one_request_s_only(wire, monkeypatch, caplog, changes_before):
    wired = wire()
    wired.ask("set", key="a", value=1)
    wired.receive("set", {"key": "same turn", "value": 1})

    def fail(store, _args):
        for number in range(changes_before):
            store.set("a", b'"wrong"')
            store.remove("a")
            store.set(str(number), b'"wrong"')
        raise ZeroDivisionError

    monkeypatch.setitem(handlers.HANDLERS, "setdefault", fail)
    asked = wired.receive("setdefault", {"key": "x", "value": 1})
    told = {reply["id"]: reply for _, reply in wired.turn()}
    assert told[asked]["error"]["code"] == "internal"
    assert "ZeroDivisionError" in caplog.text
    assert wired.ask("dump") == {"items": {"a": 1, "same turn": 1}}
    assert wire().ask("dump") == {"items": {"a": 1, "same turn": 1}}


def test_large_answers_come_in_parts_of_one_moment(wired, monkeypatch):
    monkeypatch.setattr(handlers, "PART_BYTES", 100)
    items = {f"key {n}": n for n in range(1000)}
    wired.ask("set_many", items=items)
    dump = wired.receive("dump")
    later = wired.receive("set", {"key": "key 0", "value": "changed"})
    keys = wired.receive("all")
    wired.receive("remove_many", {"keys": list(items)})
    replies = [reply for _, reply in wired.turn()]
    assert [reply for reply in replies if reply["id"] == later]
    dumped = [reply for reply in replies if reply["id"] == dump]
    assert len(dumped) > 2
    assert [reply.get("more") for reply in dumped] == [True] * (len(dumped) - 1) + [None]
    together = {}
    for reply in dumped:
        together |= reply["result"]["items"]
    # The loop ends a turn after a dump, so that what comes later is not in it
    assert list(together) == list(items)
    listed = [reply["result"]["keys"] for reply in replies if reply["id"] == keys]
    assert [key for part in listed for key in part] == list(items)


def test_a_key_that_is_asked_for_twice_is_answered_once(wired):
    wired.ask("set", key="a", value=1)
    wired.engine.receive(
        b"p", [b'{"id":1,"client":"c","op":"get_many","args":{"keys":["a","b","a"]}}']
    )
    assert wired.engine.finish_turn() == [
        (b"p", b'{"id":1,"result":{"values":[1,1],"missing":[1]}}')
    ]


def test_order_is_that_of_insertion(wire):
    wired = wire()
    for key in "bca":
        wired.ask("set", key=key, value=1)
    wired.ask("set", key="b", value=2)
    assert wired.ask("all") == {"keys": ["b", "c", "a"]}
    wired.ask("remove", key="b")
    wired.ask("set", key="b", value=3)
    assert wired.ask("all") == {"keys": ["c", "a", "b"]}
    wired = wire()  # the journal tells the same
    assert wired.ask("all") == {"keys": ["c", "a", "b"]}
    assert wired.ask("popitem") == {"key": "b", "value": 3}


def test_writes_that_the_journal_did_not_take_leave_no_trace(wire, monkeypatch):
    wired = wire()
    wired.ask("set_many", items={"a": 1, "b": 2, "c": 3})

    def fail(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", fail)
    for op, args in [
        ("remove", {"key": "b"}),
        ("set", {"key": "a", "value": 5}),
        ("set", {"key": "b", "value": 5}),
        ("get", {"key": "a"}),
        ("pop", {"key": "c"}),
        ("purge", {}),
        ("set", {"key": "d", "value": 5}),
        ("dump", {}),
    ]:
        wired.receive(op, args)
    replies = [reply for _, reply in wired.turn()]
    assert replies.pop()["result"] == {"items": {"a": 1, "b": 2, "c": 3}}
    assert list(wired.ask("dump")["items"]) == ["a", "b", "c"]
    assert replies.pop(3)["result"] == {"value": 1}  # no reply tells of what was undone
    for reply in replies:
        assert reply["error"]["code"] == "writes_refused"
        assert "No space left on device" in reply["error"]["message"]
    assert wired.ask("save")["code"] == "save_failed"
    monkeypatch.undo()
    assert wired.ask("set", key="d", value=4)["code"] == "writes_refused"  # until a save succeeds
    assert wired.ask("save") == {"saved": True}
    assert wired.ask("set", key="d", value=4) == {}
    assert wire().ask("dump") == {"items": {"a": 1, "b": 2, "c": 3, "d": 4}}


@pytest.mark.parametrize("op", ["purge", "replace"])
def test_what_was_removed_at_once_is_given_back_little_by_little(wired, op):
    wired.ask("set_many", items={f"k{n}": n for n in range(900)})
    store = wired.engine._store
    table = weakref.ref(store._table)
    wired.ask(op, **({"items": {"a": 1}} if op == "replace" else {}))
    assert table() is None
    assert not store.garbage


def test_a_queue_that_was_emptied_from_its_end_is_not_walked_through_again(wired):
    wired.ask("set_many", items={f"k{n}": n for n in range(900)})
    while wired.ask("popitem"):
        pass
    assert not wired.engine._store._table._chunks
    wired.ask("set", key="a", value=1)
    assert wired.ask("dump") == {"items": {"a": 1}}
