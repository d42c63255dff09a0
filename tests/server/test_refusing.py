"""How a time ends in which writes are refused: by a save that holds all that anybody was told."""

from __future__ import annotations

import errno
import os

import pytest

from pickledbd import clock
from pickledbd.snapshot import Writing


def lock_args(ask):
    return {"name": "a", "holder": "h", "ask": ask, "ttl_ms": 30_000}


@pytest.fixture
def refuse(wired, monkeypatch):
    """Have writes refused, and a save begun that holds what there is; it is not in place yet."""

    def fail(_file, _data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse():
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", fail)
            assert wired.ask("set", key="k", value=1)["code"] == "writes_refused"
        wired.receive("save")
        wired.replies += wired.engine.finish_turn()
        while wired.engine._saver._viewed is None:
            wired.tasks.run(0)  # until what it holds is settled

    return refuse


def test_keys_that_expire_while_it_is_written_do_not_have_it_fail(wire, wired, refuse, monkeypatch):
    """Or it would never end where keys expire all the time."""
    monkeypatch.setattr(clock, "_ahead_ns", clock._ahead_ns)
    wired.ask("set_many", items={"s1": 1, "s2": 2}, ttl_ms=60_000)
    wired.ask("set", key="stays", value=0)
    refuse()
    monkeypatch.setattr(clock, "_ahead_ns", clock._ahead_ns + 60_001 * 10**6)
    wired.engine.tick(0.0)  # they would be reaped from here on
    wired.turn()
    assert wired.ask("dump") == {"items": {"stays": 0}}
    assert wired.ask("info")["writes_refused"] is None
    wired.ask("set_many", items={"k": 1, "s1": 2})
    assert wired.engine._store.reap(10) == [], "they were reaped since"
    again = wire()  # killed
    assert list(again.ask("dump")["items"].items()) == [("stays", 0), ("k", 1), ("s1", 2)]


@pytest.mark.parametrize("late", [False, True])
def test_a_lock_that_ends_meanwhile_does_not_come_back(wire, wired, refuse, monkeypatch, late):
    token = wired.ask("lock", **lock_args(1))["token"]
    refuse()
    publish = Writing.publish

    def its_holder_is_gone_and(writing):
        wired.engine.gone(b"p")
        publish(writing)

    if late:
        monkeypatch.setattr(Writing, "publish", its_holder_is_gone_and)
    else:
        wired.engine.gone(b"p")
    wired.turn()
    while wired.ask("info")["writes_refused"] is not None:
        wired.ask("save")
    assert wired.ask("set", key="k", value=1, token=token)["code"] == "lock_lost"
    again = wire()  # killed
    assert again.ask("info")["locks"] == 0
    assert again.ask("set", key="k", value=2, token=token)["code"] == "lock_lost"


def test_who_holds_a_lock_is_told_so_again(wired, refuse):
    token = wired.ask("lock", **lock_args(1))["token"]
    refuse()
    again, another = (wired.receive("lock", lock_args(ask)) for ask in (1, 2))
    replies = {reply["id"]: reply for _, reply in wired.turn()}
    assert replies[again]["result"] == {"token": token}
    assert replies[another]["error"]["code"] == "writes_refused"
