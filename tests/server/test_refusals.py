"""The log of refused connections: each reason once a while, and how often."""

from __future__ import annotations

import pytest

from pickledbd import refusals as refusals_module
from pickledbd.refusals import DIFFERENT, WHILE_SECONDS, Refusals
from pickledbd.status import Status


@pytest.fixture
def status():
    return Status(location="x", request_bytes=1)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(refusals_module.time, "monotonic", lambda: Clock.now)
    return Clock


def test_what_comes_again_is_counted_and_told_after_a_while(status, clock, caplog):
    refusals = Refusals(status)
    for port in range(100):
        refusals.note(f"10.0.0.5:{port}", "tcp://x:1", "no key")
    refusals.note("10.0.0.5:1", "tcp://x:1", "another reason")
    refusals.note("::1:1", "tcp://x:1", "no key")
    refusals.tell()
    assert [record.getMessage() for record in caplog.records] == [
        "refused 10.0.0.5:0 at tcp://x:1: no key",
        "refused 10.0.0.5:1 at tcp://x:1: another reason",
        "refused ::1:1 at tcp://x:1: no key",
    ]
    caplog.clear()
    clock.now += WHILE_SECONDS
    refusals.tell()
    assert [record.getMessage() for record in caplog.records] == [
        "refused 10.0.0.5 99 more times: no key"
    ]
    caplog.clear()
    refusals.note("10.0.0.5:9", "tcp://x:1", "no key")
    assert len(caplog.records) == 1, "a new while has begun"
    assert status.connections_refused == 103


def test_a_flood_from_everywhere_makes_few_lines(status, clock, caplog):
    refusals = Refusals(status)
    for number in range(10_000):
        refusals.note(f"10.0.{number // 256}.{number % 256}:1", "tcp://x:1", "no key")
    assert len(caplog.records) == DIFFERENT
    clock.now += WHILE_SECONDS
    refusals.tell()
    assert len(caplog.records) == DIFFERENT + 1
    assert f"{10_000 - DIFFERENT} connections of others" in caplog.records[-1].getMessage()
    assert status.connections_refused == 10_000
