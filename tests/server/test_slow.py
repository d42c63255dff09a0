"""The log of slow operations."""

from __future__ import annotations

import contextlib
import logging
import os

import pytest

from pickledbd import slow
from pickledbd.slow import KEPT, SlowLog
from pickledbd_protocol import COMMANDS, Request
from support import Daemon


def asked(op, **args):
    return Request(1, "c", None, COMMANDS[op], args)


@pytest.fixture
def told(caplog):
    """The lines so far."""
    caplog.set_level(logging.INFO)
    return lambda: caplog.records


def test_what_held_the_loop_is_told_with_who_and_which_key_but_no_value(told):
    log = SlowLog(100)
    log.who = lambda peer: {"peer": f"uid 5, pid {peer.decode()}", "peer_uid": 5}
    log.held(b"7", asked("set", key="k" * 500, value="secret"), 0.25)
    (line,) = told()
    key = f"'{'k' * 77}'... (500 characters)"
    assert line.getMessage() == (
        f"slow: set {key} held all others up for 250.0 ms, for uid 5, pid 7"
    )
    assert (line.event, line.command, line.ms, line.peer_uid) == ("slow", "set", 250.0, 5)
    assert line.levelname == "WARNING"
    (kept,) = log.last()
    assert kept.pop("time") > 1e9
    assert kept == {
        "command": "set",
        "ms": 250.0,
        "how": "held",
        "key": key,
        "peer": "uid 5, pid 7",
        "peer_uid": 5,
    }


def test_what_took_long_beside_others_may_take_ten_times_as_long(told):
    log = SlowLog(100)
    log.took(b"7", asked("dump", prefix="user:"), 0.99)
    log.own("journal", 0.099)
    assert (log.count, told()) == (0, [])
    log.took(b"7", asked("set_many", items={"a": 1, "b": 2}), 1.0)
    (line,) = told()
    assert line.getMessage() == "slow: set_many of 2 items took 1000.0 ms"
    assert line.levelname == "INFO"
    log.own("journal", 0.1)
    assert [each["command"] for each in log.last()] == ["journal", "set_many"]


def test_there_is_a_line_a_second_at_most_and_all_are_counted(told, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(slow.time, "monotonic", lambda: now)
    log = SlowLog(1)
    for number in range(100):
        log.held(b"", asked("get", key=str(number)), 0.5)
    assert len(told()) == 1
    now += slow.PAUSE_SECONDS
    log.own("journal", 0.5)
    assert [line.untold for line in told()] == [0, 99]
    assert "99 others were not told" in told()[1].getMessage()
    assert log.count == 101
    assert len(log.last()) == KEPT
    assert [each.get("key") for each in log.last()[:3]] == [None, "'99'", "'98'"]


def test_none_is_slow_if_that_is_asked_for(told):
    log = SlowLog(0)
    log.own("journal", 1e9)
    log.took(b"", asked("save"), 1e9)
    assert (log.count, told()) == (0, [])
    assert log.seconds == float("inf")


def test_a_daemon_tells_of_its_slow_operations(location):
    daemon = Daemon(location, "--slow-ms", "0.001")
    with contextlib.closing(daemon.client()) as db:
        kept = []
        for ask in (
            lambda: db.set("a", 1),
            lambda: db.set_many({str(number): number for number in range(5000)}),
            lambda: db.db,
            db.save,
        ):
            ask()
            told = db.info()
            kept += told["slow"]  # of which the daemon has but the last
    found = {(each["command"], each["how"]): each for each in kept}
    assert {("set", "held"), ("set_many", "took"), ("dump", "took"), ("save", "took")} <= set(found)
    assert {("journal", "held"), ("task", "held")} <= set(found)
    assert found["set", "held"]["key"] == "'a'"
    assert found["set", "held"]["peer_pid"] == os.getpid()
    assert found["dump", "took"]["peer_uid"] == os.getuid()
    assert told["slow_operations"] >= len(told["slow"])
    assert "slow: " in daemon.stop()


def test_a_batch_that_came_in_parts_is_told_with_all_its_items(location):
    daemon = Daemon(location, "--slow-ms", "2")  # not its own slices
    with contextlib.closing(daemon.client()) as db:
        db.set_many({str(number): "x" * 100 for number in range(50_000)})
        told = db.info()["slow"]
    (batch,) = [each for each in told if (each["command"], each["how"]) == ("set_many", "took")]
    assert batch["count"] == 50_000
    daemon.stop()


def test_nor_does_a_daemon_tell_of_any_if_it_is_not_to(location):
    daemon = Daemon(location, "--slow-ms", "0")
    with contextlib.closing(daemon.client()) as db:
        db.set("a", 1)
        db.save()
        told = db.info()
    assert (told["slow"], told["slow_operations"]) == ([], 0)


def test_each_request_of_a_message_is_judged_by_its_own_time(wire):
    wired = wire("--slow-ms", "5")
    slow_log = wired.engine._slow
    slow_log.seconds = 0.005
    wired.ask("batch", steps=[{"op": "set", "args": {"key": str(n), "value": n}} for n in range(9)])
    wired.ask("get", key="1")
    before = slow_log.count
    steps = [{"op": "set", "args": {"key": str(n), "value": n}} for n in range(20_000)]
    wired.ask("batch", steps=steps)
    wired.ask("get", key="1")
    (kept, *_) = slow_log.last()
    assert slow_log.count > before
    assert (kept["command"], kept["how"]) in {("batch", "held"), ("journal", "held")}
    assert any(each.get("count") == 20_000 for each in slow_log.last())
