"""What keeps locks: it bears silence, refusals and faults, and does nothing where there is nothing.

What it does in good times, test_locks has.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
import time

import pytest

from looped import Relay, run, stopped, until
from pickledbd_client import (
    AsyncPickleDB,
    PickleDB,
    RequestTimeout,
    TooLarge,
    Unavailable,
    WritesRefused,
    starting,
)
from pickledbd_client.channel import Session
from pickledbd_client.keeper import PAUSE_SECONDS, Keeper
from pickledbd_client.locks import Lock
from pickledbd_protocol import Reply
from support import PATIENCE, Daemon, owner_pid, wait_until

LONG = 600.0


def renewed(held):
    """Wait until it has been renewed, from now on."""
    before = held.lease.since
    wait_until(lambda: held.lease.since > before, "a renewal")


# A daemon that says nothing


def test_a_connection_that_goes_silent_is_replaced_before_anything_is_lost(tmp_path):
    daemon = Daemon(tmp_path / "my.db", "--bind", f"ipc://{tmp_path}/d")

    async def work():
        async with Relay(tmp_path) as relay:
            its = AsyncPickleDB(relay.endpoint, timeout=1)
            keeper = its._locks.keeper()
            async with its.lock("x", ttl=6) as held:
                await until(lambda: keeper._session.channel)
                silent = keeper._session
                relay.swallow()
                with contextlib.suppress(RequestTimeout):
                    await its.ping()  # requests find a connection that is alive, too
                await until(lambda: keeper._session.channel and keeper._session is not silent)
                await until(lambda: silent.channel is None)
                assert not held.lost
            async with its.lock("y", ttl=3) as held:
                before = held.lease.since
                await until(lambda: held.lease.since > before)
            await its.close()

    run(work())
    daemon.check_and_stop()


def test_no_connection_by_which_the_daemon_was_told_is_closed_before_it_has_answered_two_others(
    daemon, db, other
):
    """Or it would free all that is held: it has them all end with the last that it heard of."""
    held = db.lock("x", ttl=LONG).acquire()
    keeper = Keeper(db._route)  # its thread is not begun: the test takes its steps
    keeper.holder = db._locks.keeper().holder
    lease = held.lease
    keeper._connect([lease])
    first = keeper._session
    with stopped(daemon), pytest.raises(RequestTimeout):
        keeper._renew([lease])
    assert keeper._session is not first
    assert first.channel is not None
    keeper._connect([lease])
    second = keeper._session
    assert first.channel is not None
    with stopped(daemon), pytest.raises(RequestTimeout):
        keeper._renew([lease])
    wait_until(lambda: (keeper._listen(), keeper._session is second)[1], "to hear of it again")
    for _ in range(2):
        keeper._renew([lease])
    assert first.channel is None
    with pytest.raises(RequestTimeout):
        other.lock("x", timeout=0).acquire()
    keeper._end()
    assert not held.lost
    db.close()
    assert held.lost, "whoever closes it lets go"


def test_a_handler_at_the_end_of_the_program_has_the_locks_that_it_takes(location):
    script = (
        "import atexit, sys, time\n"
        "from pickledbd_client import PickleDB\n"
        "db = PickleDB(sys.argv[1], autostart=False)\n"
        "def bye():\n"
        "    with db.lock('x', ttl=0.5) as held:\n"
        "        time.sleep(1.5)\n"
        "        print(db.set('k', 1, token=held.token), held.lost)\n"
        "atexit.register(bye)\n"
        "with db.lock('y'): pass\n"
    )
    daemon = Daemon(location)
    ended = subprocess.run(
        [sys.executable, "-c", script, location],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True False\n", "")
    daemon.check_and_stop()


def test_who_has_not_heard_of_the_daemon_for_its_ttl_does_not_take_it_for_held(daemon, db):
    lock = db.lock("x", ttl=1)
    held = lock.acquire()
    assert not held.lost
    with stopped(daemon):
        wait_until(lambda: held.lost, "it to be thought lost")
        with pytest.raises(Exception, match="may have been lost before it was taken again"):
            lock.acquire()
    wait_until(lambda: held.lease.has_ended or not held.lost, "the daemon to tell")


def test_and_takes_it_for_held_again_when_the_daemon_tells_so(location):
    daemon = Daemon(location)
    with contextlib.closing(daemon.client()) as db:
        with db.lock("x", ttl=3) as held:
            daemon.kill()
            wait_until(lambda: held.lost, "it to be thought lost")
            daemon = Daemon(location)  # which begins its time anew
            wait_until(lambda: not held.lost, "it to be known to be held")
            renewed(held)
        assert db.info()["locks"] == 0
    daemon.check_and_stop()


def test_a_tcp_connection_is_probed_while_it_is_silent(db):
    db.ping()
    assert db._link._idle[0].channel._socket.tcp_keepalive == 1


# Faults


def test_a_ttl_of_months_has_others_renewed_too(db):
    with db.lock("big", ttl=90 * 86400) as big:
        keeper = db._locks.keeper()
        wait_until(lambda: keeper._next < float("inf"), "the keeper to sleep")
        assert keeper._next > big.lease.since + 80 * 86400 / 3
        with db.lock("x", ttl=1) as held:
            renewed(held)
            renewed(held)
            assert keeper._thread.is_alive()


def test_a_fault_is_logged_and_what_is_held_is_renewed_nevertheless(db, monkeypatch, caplog):
    let_go = Keeper._let_go
    faults = [ValueError("a fault"), OSError("another")]

    def let_go_badly(self):
        if faults:
            raise faults.pop()
        return let_go(self)

    monkeypatch.setattr(Keeper, "_let_go", let_go_badly)
    with db.lock("x", ttl=2) as held:
        wait_until(lambda: not faults, "its faults")
        renewed(held)
        renewed(held)
    told = [record for record in caplog.records if record.name == "pickledbd_client.keeper"]
    assert len(told) == 2
    assert "keeper failed, and goes on" in told[0].getMessage()


def test_a_name_that_is_too_large_does_not_harm_the_others(location):
    daemon = Daemon(location, "--max-request", "1")
    name = "x" * 1_100_000
    with contextlib.closing(daemon.client()) as db, db.lock("good", ttl=1.5) as held:
        keeper = db._locks.keeper()
        # Until then what it holds ends with the connection that asked for it
        wait_until(lambda: keeper._session.channel, "the keeper to be connected")
        with pytest.raises(TooLarge):
            db.lock(name).acquire()
        assert list(keeper._leases.values()) == [held.lease]
        interrupted = keeper.new(name, LONG)  # before it was refused
        keeper.expect(interrupted)
        keeper.give_up(interrupted)
        wait_until(lambda: list(keeper._leases.values()) == [held.lease], "it to be forgotten")
        renewed(held)
    daemon.check_and_stop()


# What is given up


def test_only_what_the_daemon_may_know_of_is_given_up(db):
    keeper = db._locks.keeper()

    def lock(answer):
        def request(_call):
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return Lock(request, db._locks, "x", LONG, None)

    with db.lock("y", ttl=LONG):
        wait_until(lambda: keeper._session.channel, "the keeper to be connected")
        for answer, error in ((WritesRefused("full"), WritesRefused), (None, RequestTimeout)):
            with pytest.raises(error):
                lock(answer).acquire()
            assert len(keeper._leases) == 1, answer  # "y"
        for error in (KeyboardInterrupt(), RequestTimeout("no answer"), Unavailable("gone")):
            before = next(reversed(keeper._leases))
            with pytest.raises(type(error)):
                lock(error).acquire()
            wait_until(lambda: len(keeper._leases) == 1, "it to be told")
            assert list(keeper._leases) == [before]


def test_to_have_much_given_up_holds_no_renewal_up(db, monkeypatch):
    ask = Keeper._ask

    def ask_slowly(self, *args):
        if args[-1].op == "unlock":
            time.sleep(0.05)
        return ask(self, *args)

    monkeypatch.setattr(Keeper, "_ask", ask_slowly)
    keeper = db._locks.keeper()
    with db.lock("x", ttl=2) as held:
        leases = [keeper.new(f"{n}", LONG) for n in range(120)]  # of 6 seconds
        for lease in leases:
            keeper.expect(lease)
            keeper.give_up(lease)
        renewed(held)
        renewed(held)
        assert len(keeper._leases) > 1
        wait_until(lambda: len(keeper._leases) == 1, "all to be told")
        assert not held.lost


def test_a_release_that_is_refused_waits_and_holds_no_renewal_up(db, monkeypatch):
    ask = Keeper._ask
    refused = []

    def refuse(self, *args):
        if args[-1].op != "unlock":
            return ask(self, *args)
        refused.append(time.monotonic())
        return Reply(1, {}, WritesRefused("full"), more=False, binary=False)

    keeper = db._locks.keeper()
    with db.lock("x", ttl=1.5) as held:
        with monkeypatch.context() as patch:
            patch.setattr(Keeper, "_ask", refuse)
            for number in range(100):
                lease = keeper.new(f"{number}", LONG)
                keeper.expect(lease)
                keeper.give_up(lease)
            calm = len(refused) + 100  # each may wake it once
            for _ in range(4):
                renewed(held)
            assert len(keeper._leases) == 101
            assert len(refused) <= calm + 4 * (1 + 0.5 / PAUSE_SECONDS[1]) * 10
        wait_until(lambda: len(keeper._leases) == 1, "all to be told")
        assert not held.lost


# Where there is nobody


def test_where_no_daemon_can_start_none_is_started_in_the_background(location, monkeypatch):
    location.write_text('{"a": 1')
    started, spawn = [], starting._spawn

    def note(*args):
        started.append(args)
        return spawn(*args)

    monkeypatch.setattr(starting, "_spawn", note)

    async def work():
        db = AsyncPickleDB(location, timeout=PATIENCE)
        with pytest.raises(Unavailable, match="did not start"):
            await db.lock("x", ttl=2, timeout=0).acquire()
        before = len(started)
        await until(lambda: not db._locks.keeper()._leases)  # when its time is over
        assert len(started) == before
        await db.close()

    run(work())


@pytest.mark.parametrize("kind", ["an endpoint", "a path"])
def test_close_ends_the_keeper_also_where_the_daemon_is_away_and_starts_none(location, kind):
    daemon = Daemon(location)
    db = PickleDB(daemon.endpoint if kind == "an endpoint" else location, timeout=None)
    db.lock("x", ttl=LONG).acquire()
    thread = wait_until(lambda: db._locks.keeper()._thread, "the keeper")
    wait_until(lambda: db._locks.keeper()._session.channel, "its connection")
    daemon.kill()
    wait_until(lambda: not db._locks.keeper()._session.channel, "the keeper to notice")
    assert owner_pid(location) is None
    db.close()
    wait_until(lambda: not thread.is_alive(), "the keeper's end")
    assert owner_pid(location) is None
    assert not any(each is thread for each in threading.enumerate())


def test_to_look_once_whether_there_is_a_daemon_waits_for_none(location):
    """Though a request waits for one that was there before."""
    daemon = Daemon(location)
    clients = [PickleDB(place, timeout=PATIENCE) for place in (location, daemon.endpoint)]
    for db in clients:
        db.ping()
    daemon.kill()
    for db in clients:
        began = time.monotonic()
        with pytest.raises(Unavailable):
            db._route.connect(Session(), began + PATIENCE, once=True)
        assert time.monotonic() < began + PATIENCE / 2
        db.close()


def test_who_waits_is_answered_when_a_keeper_that_was_not_connected_is_closed(daemon, other):
    """It connects once more, to tell."""

    async def work():
        its = AsyncPickleDB(daemon.location, autostart=False, timeout=PATIENCE)
        waiting = asyncio.create_task(its.lock("x").acquire())
        await until(lambda: other.info()["waiting"] == 1)
        its._locks.keeper()._session.close()
        its._locks.close()
        with pytest.raises(Unavailable, match="is closed"):
            await waiting
        await its.close()

    with other.lock("x", ttl=LONG):
        run(work())
