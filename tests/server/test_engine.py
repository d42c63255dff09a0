"""The engine without a socket: requests in, replies out, one save for all that ask for it."""

from __future__ import annotations

import errno
import json
import os
import stat

import pytest

from pickledbd import handlers
from pickledbd.engine import Engine, Status
from pickledbd.ownership import Ownership
from pickledbd.snapshot import DataFile
from pickledbd.store import Store
from support import written


class Wired:
    """An engine and a file, without sockets."""

    def __init__(self, path):
        self.path = path
        self.owner = Ownership(path)
        self.file = DataFile(path)
        self.store = Store(self.file.load())
        self.engine = Engine(
            self.store, self.file, self.owner, Status(location=str(path), request_bytes=2**20)
        )

    def send(self, op, args=None, peer=b"p", number=1):
        body = json.dumps({"id": number, "client": "c", "op": op, "args": args or {}}).encode()
        return [json.loads(reply) for reply in self.engine.receive(peer, [body])]

    def ask(self, op, **args):
        (reply,) = self.send(op, args)
        return reply["result"] if "result" in reply else reply["error"]


@pytest.fixture
def wired(tmp_path):
    wired = Wired(tmp_path / "my.db")
    yield wired
    wired.owner.release()


def test_saves_asked_for_in_one_turn_share_one_save(wired):
    wired.ask("set", key="a", value=1)
    for number in range(5):
        assert wired.send("save", peer=b"%d" % number, number=number) == []
    replies = wired.engine.finish_turn()
    assert [peer for peer, _ in replies] == [b"0", b"1", b"2", b"3", b"4"]
    assert [json.loads(reply)["id"] for _, reply in replies] == [0, 1, 2, 3, 4]
    assert len(list(wired.path.parent.iterdir())) == 2  # the file and its lock
    first = written(wired.path)
    wired.send("save")
    ((_, reply),) = wired.engine.finish_turn()
    assert json.loads(reply)["result"] == {"saved": False}
    assert written(wired.path) == first


def test_a_save_of_an_unchanged_database_still_makes_the_missing_file(wired):
    wired.send("save")
    wired.engine.finish_turn()
    assert wired.path.read_bytes() == b"{}\n"
    wired.path.unlink()
    wired.send("save")
    wired.engine.finish_turn()
    assert wired.path.read_bytes() == b"{}\n"


def test_a_save_takes_a_lock_anew_that_somebody_removed(wired):
    wired.ask("set", key="a", value=1)
    wired.owner.path.unlink()
    wired.engine.save()
    assert wired.owner.held()
    assert json.loads(wired.path.read_bytes()) == {"a": 1}


def test_a_save_is_refused_where_another_owns_the_file_by_now(wired, caplog):
    wired.ask("set", key="a", value=1)
    wired.owner.path.unlink()
    other = Ownership(wired.path)
    other.announce({"pid": 7})
    for _ in range(3):
        wired.send("save")
        ((_, reply),) = wired.engine.finish_turn()
        error = json.loads(reply)["error"]
        assert error["code"] == "save_failed"
        assert "pid 7 holds it now" in error["message"]
    assert not wired.path.exists()
    assert wired.ask("info")["last_save_error"] == error["message"]
    assert wired.engine.dirty == 1
    assert caplog.text.count("pid 7") == 1  # however often it is asked, it is logged once
    other.release()
    wired.engine.save()
    assert wired.ask("info")["last_save_error"] is None


def test_a_save_that_failed_is_due_again_even_if_nothing_changed(wired, monkeypatch):
    wired.ask("set", key="a", value=1)
    wired.engine.save()
    wired.path.unlink()
    fsync = os.fsync

    def fail_for_directories(file):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(file)

    monkeypatch.setattr(os, "fsync", fail_for_directories)
    for _ in range(2):
        wired.send("save")
        ((_, reply),) = wired.engine.finish_turn()
        assert "fsync of the directory" in json.loads(reply)["error"]["message"]
    monkeypatch.undo()
    wired.send("save")
    ((_, reply),) = wired.engine.finish_turn()
    assert json.loads(reply)["result"] == {"saved": True}


def test_what_another_program_did_to_the_file_is_taken_over_if_nothing_is_unsaved(wired):
    wired.ask("set", key="a", value=1)
    wired.engine.save()
    wired.path.write_bytes(b'{"b": 2}')
    wired.ask("set", key="c", value=3)
    wired.engine.refresh()
    assert wired.ask("all") == {"keys": ["a", "c"]}
    wired.ask("remove", key="c")
    wired.engine.save()  # which keeps the other's file aside
    wired.path.write_bytes(b"oops")
    wired.engine.refresh()
    assert wired.ask("all") == {"keys": ["a"]}
    wired.path.write_bytes(b'{"b": 2}')
    wired.engine.refresh()
    assert wired.ask("dump") == {"items": {"b": 2}}
    assert wired.engine.dirty == 0
    wired.path.unlink()
    wired.engine.refresh()
    assert wired.ask("len") == {"len": 0}


def test_dirty_counts_changes_and_a_save_takes_off_what_it_saved(wired):
    assert wired.engine.dirty == 0
    wired.ask("set_many", items={"a": 1, "b": 2, "c": 3})
    wired.ask("remove", key="a")
    wired.ask("remove", key="a")
    wired.ask("get", key="b")
    assert wired.engine.dirty == 4
    wired.engine.save()
    assert wired.engine.dirty == 0


def test_a_batch_with_one_bad_value_changes_nothing(wired):
    deep = json.loads("[" * 201 + "]" * 201)
    wired.ask("set", key="a", value=1)
    for op in ("set_many", "replace"):
        error = wired.ask(op, items={"a": 2, "b": 3, "bad": deep})
        assert error["code"] == "invalid_value"
        assert "'bad'" in error["message"]
    assert wired.ask("dump") == {"items": {"a": 1}}


def test_a_fault_in_a_handler_is_one_request_s_only(wired, monkeypatch, caplog):
    monkeypatch.setitem(handlers.HANDLERS, "get", lambda _store, _args: 1 / 0)
    error = wired.ask("get", key="a")
    assert error["code"] == "internal"
    assert "ZeroDivisionError" in caplog.text
    assert wired.ask("len") == {"len": 0}


def test_large_answers_come_in_parts_of_one_moment(wired, monkeypatch):
    monkeypatch.setattr(handlers, "PART_BYTES", 100)
    items = {f"key {n}": n for n in range(100)}
    wired.ask("set_many", items=items)
    replies = wired.send("dump")
    assert len(replies) > 5
    assert [reply.get("more") for reply in replies] == [True] * (len(replies) - 1) + [None]
    together = {}
    for reply in replies:
        together |= reply["result"]["items"]
    assert list(together.items()) == list(items.items())
    keys = [key for reply in wired.send("all") for key in reply["result"]["keys"]]
    assert keys == list(items)


def test_a_key_that_is_asked_for_twice_is_answered_once(wired):
    wired.ask("set", key="a", value=1)
    assert list(
        wired.engine.receive(
            b"p", [b'{"id":1,"client":"c","op":"get_many","args":{"keys":["a","b","a"]}}']
        )
    ) == [b'{"id":1,"result":{"items":{"a":1}}}']


def test_order_is_that_of_insertion(wired):
    for key in "bca":
        wired.ask("set", key=key, value=1)
    wired.ask("set", key="b", value=2)
    assert wired.ask("all") == {"keys": ["b", "c", "a"]}
    wired.ask("remove", key="b")
    wired.ask("set", key="b", value=3)
    assert wired.ask("all") == {"keys": ["c", "a", "b"]}
    assert wired.ask("popitem") == {"key": "b", "value": 3}
