"""Contents in parts: RawPickleDB, as pickledbctl uses it."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from pickledbd_client import RequestTimeout, TooLarge, Unavailable
from pickledbd_client.calls import Some
from pickledbd_client.raw import Entry, RawPickleDB, Request
from support import PATIENCE, Daemon

CONTENT = {f"k{n}": "x" * 200 for n in range(20_000)}


@pytest.fixture
def raw(daemon):
    with contextlib.closing(RawPickleDB(daemon.endpoint, timeout=PATIENCE)) as raw:
        yield raw


def test_a_dump_comes_in_parts_and_is_all_of_it(raw, db):
    assert [(part.items, part.ttls) for part in raw.dumped()] == [({}, {})]
    db.db = CONTENT
    db.expire("k7", 60)
    parts = list(raw.dumped())
    assert len(parts) > 5
    assert [key for part in parts for key in part.items] == list(CONTENT)
    assert [key for part in parts for key in part.ttls] == ["k7"]
    assert not any(part.ttls for part in raw.dumped(ttls=False))
    assert [key for some in raw.listed() for key in some] == list(CONTENT)
    (keys,) = [some for some in raw.listed(Some("k77", "*7")) if some]
    assert keys == [key for key in CONTENT if key.startswith("k77") and key.endswith("7")]


def test_what_nobody_reads_to_its_end_disturbs_nobody(raw, db):
    db.db = CONTENT
    for _ in range(3):
        for _part in raw.dumped():
            break
        assert len(raw) == len(CONTENT)
    assert sum(len(part.items) for part in raw.dumped()) == len(CONTENT)


def test_a_daemon_that_is_started_again_is_asked_again(location):
    daemon = Daemon(location)
    with contextlib.closing(RawPickleDB(daemon.endpoint, timeout=PATIENCE)) as raw:
        raw.set("a", 1)
        for _ in range(2):
            daemon.kill()
            daemon = Daemon(location)
            assert [part.items for part in raw.dumped()] == [{"a": 1}]
    daemon.check_and_stop()


def test_a_dump_whose_daemon_ends_is_whole_or_an_error(location):
    daemon = Daemon(location)
    with contextlib.closing(RawPickleDB(daemon.endpoint, timeout=PATIENCE)) as raw:
        raw.set_many({f"k{n}": "x" * 2000 for n in range(20_000)})
        dumped = raw.dumped()
        count = len(next(dumped).items)
        daemon.kill()
        why = None
        try:
            for part in dumped:
                count += len(part.items)
        except Unavailable as error:
            why = str(error)
        assert (why is None) == (count == 20_000)
        assert why is None or "did not answer a dump: it went away meanwhile" in why


def test_a_daemon_that_says_nothing_is_waited_for_no_longer_than_the_timeout(daemon, db):
    db.set("a", 1)
    with contextlib.closing(RawPickleDB(daemon.endpoint, timeout=0.3)) as raw:
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            with pytest.raises(RequestTimeout, match="did not answer a dump within"):
                list(raw.dumped())
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        assert [part.items for part in raw.dumped()] == [{"a": 1}]


def test_entries_are_put_all_or_none(raw, db):
    db.set("old", 1)
    request = Request()
    for key in CONTENT:
        request.add(Entry(b'"%b"' % key.encode(), b"1"))
    raw.put(request)
    assert len(db) == len(CONTENT) + 1
    raw.put(request, replace=True)
    assert "old" not in db
    too_large = Request()
    too_large.add(Entry(b'"a"', b'"%b"' % (b"x" * raw.request_bytes)))
    assert too_large.bytes > raw.request_bytes
    with pytest.raises(TooLarge):
        raw.put(too_large)
    assert len(db) == len(CONTENT)
