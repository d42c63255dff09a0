"""Clients that ask and do not read: it costs them their connection, others nothing."""

from __future__ import annotations

import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from abusing import abuser, frame, request, shaken
from bystander import Bystander, grown, resident
from pickledbd_client import PickleDB
from support import PATIENCE, Daemon, wait_until

MIB = 2**20


@pytest.fixture
def filled(daemon, db):
    """A daemon with 60 MB."""
    for n in range(6):
        db.set_many({f"{n} {m}": "x" * 5000 for m in range(2000)})
    db.set("large", "x" * MIB)
    return daemon


def path_of(daemon):
    return daemon.endpoint.removeprefix("ipc://")


def replies_on(peer):
    """What a raw peer reads, message by message."""
    left = b""

    def take(count):
        nonlocal left
        while len(left) < count:
            said = peer.recv(MIB)
            assert said, "the daemon hung up"
            left += said
        taken, left = left[:count], left[count:]
        return taken

    while True:
        (flags,) = take(1)
        size = int.from_bytes(take(8), "big") if flags & 2 else take(1)[0]
        yield json.loads(take(size))


def test_a_dump_that_is_not_read_costs_some_mebibytes_and_is_whole_when_it_is(filled, db):
    before = resident(filled)
    expected = db._link.request(_items())
    with shaken(path_of(filled)) as peer:
        for number in range(8):  # more than are made at a time
            peer.sendall(frame(request(number, "dump")))
        with Bystander(filled) as bystander:
            bystander.works(1.0)
            assert grown(filled, before) < 30
        db.set("later", 1)
        found = {number: {} for number in range(8)}
        done = 0
        for reply in replies_on(peer):
            found[reply["id"]].update(reply["result"].get("items", {}))
            done += "more" not in reply
            if done == 8:
                break
    for number in range(4):  # begun before
        found[number].pop("bystander", None)
        assert found[number] == expected
    assert all(items["later"] == 1 for number, items in found.items() if number >= 4)


def _items():
    from support import raw_dump  # noqa: PLC0415

    return raw_dump()


@pytest.mark.parametrize("what", ["never_reads", "slow_reader"])
def test_others_go_on_beside_who_does_not_read(filled, what):
    with Bystander(filled) as bystander:
        bystander.works(1.0)
        before = resident(filled)
        with abuser(what, path_of(filled)):
            bystander.works(3.0)
            assert grown(filled, before) < 100
        bystander.was_hardly_disturbed()


def test_all_together_leave_unread_four_times_that(location):
    daemon = Daemon(location, "--max-unread", 16)
    with daemon.client() as db, contextlib.ExitStack() as stack:
        db.set("large", "x" * 4 * MIB)
        for _ in range(24):
            peer = stack.enter_context(shaken(path_of(daemon)))
            for number in range(4):
                peer.sendall(frame(request(number, "get", key="large")))
        wait_until(lambda: db.info()["hung_up"] >= 1, "one to be hung up on")
        assert 0 < db.info()["unread_bytes"] <= 64 * MIB
    assert "most of all clients" in daemon.stop()


def test_large_replies_are_made_as_there_is_room_for_them(location):
    """One to each of many is bounded too: who reads gets it, in the end."""
    daemon = Daemon(location, "--max-unread", 16)
    with daemon.client() as db, contextlib.ExitStack() as stack:
        db.set("large", "x" * 6 * MIB)
        before = resident(daemon)
        for _ in range(30):
            peer = stack.enter_context(shaken(path_of(daemon)))
            peer.sendall(frame(request(1, "get", key="large")))
        wait_until(lambda: db.info()["unread_bytes"] > 0, "some of it")
        assert db.info()["unread_bytes"] <= 64 * MIB
        assert grown(daemon, before) < 100
        assert len(db.get("large")) == 6 * MIB
    assert "most of all clients" in daemon.stop()


def test_those_who_read_wait_for_each_other_at_most(location):
    daemon = Daemon(location, "--max-unread", 16)
    with daemon.client(cache_bytes=0) as db, ThreadPoolExecutor(16) as threads:
        db.set("large", "x" * 6 * MIB)
        for length in threads.map(lambda _: len(db.get("large")), range(100)):
            assert length == 6 * MIB
        assert db.info()["hung_up"] == 0
    daemon.stop()


def test_many_large_replies_to_one_message_come_as_fast_as_they_are_read(location):
    daemon = Daemon(location, "--max-unread", 16)
    with daemon.client() as db:
        db.set("large", "x" * MIB)
        before = resident(daemon)
        with shaken(path_of(daemon)) as peer:
            peer.settimeout(PATIENCE)
            asked = [request(number, "get", key="large") for number in range(100)]
            peer.sendall(frame(b"[%b]" % b",".join(asked)))
            time.sleep(0.3)
            assert grown(daemon, before) < 40
            replies = []
            for reply in replies_on(peer):
                some = reply if isinstance(reply, list) else [reply]
                replies += [each for each in some if "more" not in each]  # else: it is at it
                if len(replies) == 100:
                    break
        assert sorted(reply["id"] for reply in replies) == list(range(100))
        assert db.info()["hung_up"] == 0
    daemon.stop()


def test_what_is_asked_meanwhile_waits_and_is_answered_in_order(filled, db):
    """A client that reads late, but does, loses nothing."""
    many = 3000
    with shaken(path_of(filled)) as peer:
        peer.settimeout(PATIENCE)
        for number in range(10):
            peer.sendall(frame(request(number, "get", key="large")))
        for number in range(10, many):
            peer.sendall(frame(request(number, "incr", key="counter")))
        time.sleep(0.2)
        assert db.ping()
        replies = replies_on(peer)
        for number in range(many):
            reply = next(replies)
            assert reply["id"] == number
            if number >= 10:
                assert reply["result"]["value"] == number - 9
    assert db.get("counter") == many - 10
    assert db.info()["hung_up"] == 0


@pytest.mark.parametrize("asked", ["a dump", "many large replies"])
def test_a_daemon_that_is_stopped_does_not_wait_for_who_reads_nothing(filled, asked):
    body = request(1, "dump")
    if asked != "a dump":
        body = b"[%b]" % b",".join(request(number, "get", key="large") for number in range(100))
    with shaken(path_of(filled)) as peer:
        peer.sendall(frame(body))
        with PickleDB(filled.endpoint) as db:
            assert db.ping()
        begun = time.monotonic()
        err = filled.stop()
        assert time.monotonic() - begun < PATIENCE / 2
    assert "did not read its last replies" in err
