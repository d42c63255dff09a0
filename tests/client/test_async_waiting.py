"""Deadlines, daemons that say nothing, and close(): nothing hangs, and errors say what is known."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time

import pytest

from looped import Relay, all_sent, async_client, each_gets_its_own, run, stopped, until
from pickledbd_client import (
    AsyncPickleDB,
    ProtocolError,
    RequestTimeout,
    Resync,
    Unavailable,
    calls,
)
from pickledbd_client.async_link import IN_FLIGHT
from pickledbd_client.route import Route
from support import PATIENCE, Daemon, answering


def test_what_was_asked_behind_something_long_waits_on_too(tmp_path):
    """The daemon tells of the first that it is being done, the others have to wait for that."""
    asked = []

    def answer(number):
        asked.append(number)
        if len(asked) == 2:
            for _ in range(5):
                time.sleep(0.3)  # together longer than the client's patience
                yield json.dumps({"id": asked[0], "result": {}, "more": True})
            for each in asked:
                yield json.dumps({"id": each, "result": {"len": each}})

    async def work():
        endpoint = f"ipc://{tmp_path}/socket"
        with answering(endpoint, 3, answer):
            db = AsyncPickleDB(endpoint, timeout=1.0)
            assert await asyncio.gather(db.len(), db.len()) == asked
            await db.close()

    run(work())


def test_what_has_no_answer_times_out_and_tells_what_is_known(daemon):
    async def work():
        db = async_client(daemon, timeout=1, cache_bytes=0)
        await db.ping()
        calls = {
            "get": (db.get("a"), True),
            "exists": (db.exists("a"), True),
            "all": (db.all(), True),
            "dump": (db.db, True),
            "set": (db.set("a", 1), False),
            "pop": (db.pop("p", None), False),
            "set_many": (db.set_many({"a": 1}), False),
            "save": (db.save(), False),
        }
        with stopped(daemon):
            errors = await asyncio.gather(*(c for c, _ in calls.values()), return_exceptions=True)
        for error, (name, (_, known)) in zip(errors, calls.items(), strict=True):
            assert isinstance(error, RequestTimeout), name
            assert isinstance(error, TimeoutError)
            assert f"did not answer a {name} within 1 s" in str(error)
            assert error.outcome_known is known, name
        await each_gets_its_own(db, 100)
        assert await db.get("a") == 1  # here they were applied, once the daemon went on

    run(work())


def test_what_was_asked_a_little_later_times_out_as_the_first_does(daemon):
    """When that is late the connection is given up; there is no answer on the next either."""

    async def work():
        db = async_client(daemon, timeout=1, cache_bytes=0)
        await db.ping()
        with stopped(daemon):
            calls = {"get": db.get("a"), "set": db.set("a", 1), "dump": db.db}
            tasks = []
            for call in calls.values():
                tasks.append(asyncio.ensure_future(call))
                await asyncio.sleep(0.05)
            errors = await asyncio.gather(*tasks, return_exceptions=True)
        for name, error in zip(calls, errors, strict=True):
            assert isinstance(error, RequestTimeout), name
            assert f"did not answer a {name} within 1 s" in str(error)
            assert error.outcome_known is (name != "set")

    run(work())


def test_the_timeout_is_kept_also_beside_a_request_that_may_wait_for_longer(daemon, db):
    async def work():
        its = async_client(daemon, timeout=0.5, cache_bytes=0)
        with db.lock("x"):
            waiting = asyncio.create_task(its.lock("x", timeout=2 * PATIENCE).acquire())
            await until(lambda: db.info()["waiting"] == 1)
            await asyncio.sleep(0.7)  # all other deadlines are over, so the next is the lock's
            with stopped(daemon):
                async with asyncio.timeout(PATIENCE / 2):
                    with pytest.raises(RequestTimeout, match=r"within 0\.5 s"):
                        await its.get("a")
            waiting.cancel()
        await its.close()

    run(work())


def test_what_waits_behind_others_that_have_no_answer_times_out_too(daemon):
    async def work():
        db = async_client(daemon, timeout=1)
        await db.ping()
        names = [f"{n}" for n in range(3000)]
        with stopped(daemon):
            found = await asyncio.gather(*(db.set(n, n) for n in names), return_exceptions=True)
        there = await db.all()
        for name, error in zip(names, found, strict=True):
            if error.outcome_known:  # it had no turn before its time was over
                assert isinstance(error, Unavailable)
                assert name not in there
            else:
                assert isinstance(error, RequestTimeout | Unavailable)

    run(work())


def test_wait_for_gives_up_and_what_comes_later_is_answered(daemon):
    async def work():
        db = async_client(daemon)
        await db.set("a", 1)
        with stopped(daemon):
            for call in (lambda: db.set("a", 2), lambda: db.get_many("a"), db.save):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(call(), 0.1)
        assert await db.set("b", 3)
        assert await db.get_many("ab") == {"a": 2, "b": 3}

    run(work())


def test_a_daemon_that_does_not_even_greet_is_asked_nothing(daemon):
    async def work():
        db = async_client(daemon, timeout=0.5)
        with stopped(daemon):
            found = await asyncio.gather(
                *(db.set(f"{n}", n) for n in range(10)), return_exceptions=True
            )
        for error in found:
            assert isinstance(error, Unavailable)
            assert error.outcome_known
        assert await db.len() == 0

    run(work())


def test_nobody_there_is_told_within_the_timeout_and_a_daemon_that_comes_is_found(location):
    async def work():
        db = AsyncPickleDB(location, timeout=PATIENCE, autostart=False)
        found = await asyncio.gather(*(db.get(f"{n}") for n in range(50)), return_exceptions=True)
        assert {type(error) for error in found} == {Unavailable}
        started = Daemon(location)
        assert await db.ping()
        return started

    run(work()).check_and_stop()


def test_a_daemon_is_started_for_whoever_asks_first(location):
    async def work():
        db = AsyncPickleDB(location, timeout=PATIENCE)
        await each_gets_its_own(db, 100)
        assert (await db.info())["location"] == str(location)

    run(work())


@pytest.mark.parametrize("slow_at", ["the daemon", "the event loop"])
def test_the_first_connection_may_take_long_and_who_waits_for_others_waits_on(
    daemon, monkeypatch, slow_at
):
    """`the event loop`: it hears late of the connection, when its deadlines have passed."""

    async def work():
        db = async_client(daemon, timeout=0.3)
        connect = db._route.connect

        def slow(session, deadline, **of_keeper):
            if of_keeper:
                return connect(session, deadline, **of_keeper)
            if slow_at == "the daemon":
                time.sleep(0.8)
                deadline = time.monotonic() + PATIENCE  # as of one that is loading
            channel = connect(session, deadline)
            if slow_at == "the event loop":
                time.sleep(0.8)
            return channel

        monkeypatch.setattr(db._route, "connect", slow)

        async def take(lock):
            async with lock as held:
                return held.token

        async def follow():
            watch = db.watch(since=0)
            while isinstance(change := await anext(watch), Resync):
                pass
            return change.key

        other = daemon.client()
        with other.lock("L"):
            works = take(db.lock("L")), take(db.lock("L", timeout=PATIENCE)), follow()
            tasks = [asyncio.create_task(one) for one in works]
            assert await asyncio.gather(db.get("a"), db.len()) == [None, 0]
            await asyncio.sleep(1)  # more than the timeout, also for what was sent by now
            assert not any(task.done() for task in tasks)
        other.set("b", 1)
        first, second, key = await asyncio.gather(*tasks)
        assert first != second
        assert key == "b"
        await db.close()

    run(work())


def test_who_waits_for_others_rides_out_a_daemon_that_says_nothing_for_a_while(daemon):
    """Though another request times out meanwhile, and its connection is given up."""

    async def work():
        db = async_client(daemon, timeout=0.3)

        async def take(lock):
            async with lock:
                return True

        other = daemon.client()
        with other.lock("L"):
            watch = db.watch()
            locks = [db.lock("L"), db.lock("L", timeout=PATIENCE)]
            async with watch:
                tasks = [asyncio.create_task(take(lock)) for lock in locks]
                tasks.append(asyncio.create_task(anext(watch)))
                await asyncio.sleep(0)
                await all_sent(db, 3)
                brief = asyncio.create_task(take(db.lock("L", timeout=0.5)))
                given_up = asyncio.create_task(db.lock("L").acquire())
                await all_sent(db, 5)
                with stopped(daemon):
                    with pytest.raises(RequestTimeout):
                        await db.get("a")
                    given_up.cancel()
                    with pytest.raises(RequestTimeout, match=r"within 0\.8 s"):
                        await brief
                    await asyncio.sleep(1)
                    assert not any(task.done() for task in tasks)
                    line = db._link._lines[asyncio.get_running_loop()]
                    assert len(line._waiting) == len(tasks)  # who gave up is not asked for
                other.set("a", 1)
                assert (await tasks.pop()).key == "a"
        assert await asyncio.gather(*tasks) == [True, True]
        await db.close()

    run(work())


def test_what_is_not_repeated_was_not_answered_within_the_timeout_of_all():
    """However long it would wait for what others do."""
    silent = Unavailable("silent")
    silent.__cause__ = RequestTimeout()
    lock = calls.lock("L", "me", 1, ttl=1, wait=None, patience=None)
    route = Route("/x", timeout=0.3, cache_bytes=0, autostart=False, curve=None)
    assert "did not answer a lock within 0.3 s" in str(route.not_repeated(lock, silent))


@contextlib.asynccontextmanager
async def leading_nowhere(tmp_path):
    """A client of a host that vanished: no more bytes come, and nothing tells that it is gone."""
    async with Relay(tmp_path) as relay:
        db = AsyncPickleDB(relay.endpoint, timeout=1, cache_bytes=0)
        await db.set("a", 1)
        relay.swallow()
        yield db


def test_a_connection_that_leads_nowhere_is_given_up_after_a_timeout(tmp_path):
    daemon = Daemon(tmp_path / "my.db", "--bind", f"ipc://{tmp_path}/d")

    async def work():
        async with leading_nowhere(tmp_path) as db:
            with pytest.raises(RequestTimeout):
                await db.get("a")
            assert await db.get("a") == 1

    run(work())
    daemon.check_and_stop()


def test_so_it_is_where_everybody_gives_up_sooner(tmp_path):
    daemon = Daemon(tmp_path / "my.db", "--bind", f"ipc://{tmp_path}/d")

    async def work():
        async with leading_nowhere(tmp_path) as db:

            async def there_again():
                with contextlib.suppress(TimeoutError):
                    return await asyncio.wait_for(db.get("a"), 0.3) == 1

            while not await there_again():  # bounded by `run`
                pass

    run(work())
    daemon.check_and_stop()


def test_an_answer_whose_parts_do_not_fit_ends_who_waits_for_it(tmp_path):
    endpoint = f"ipc://{tmp_path}/s"

    def answer(number):
        for more, items in ((True, {"a": 1}), (False, [2])):
            yield json.dumps({"id": number, "result": {"items": items}, "more": more})

    async def work():
        db = AsyncPickleDB(endpoint, timeout=PATIENCE)
        with pytest.raises(ProtocolError, match="'items'"):
            await db.db
        await db.close()

    with answering(endpoint, 2, answer):
        run(work())


def test_what_waits_for_its_turn_behind_too_many_does_nothing_meanwhile(daemon):
    async def work():
        db = async_client(daemon, cache_bytes=0)
        await db.set("a", 1)
        with stopped(daemon):
            tasks = [asyncio.create_task(db.get("a")) for _ in range(IN_FLIGHT + 500)]
            (line,) = db._link._lines.values()
            await until(lambda: len(line._sent) == IN_FLIGHT)
            for _ in range(5):
                await asyncio.sleep(0)
            assert not line._flushing
        assert await asyncio.gather(*tasks) == [1] * len(tasks)

    run(work())


def test_what_could_not_be_sent_in_time_is_not_asked(daemon):
    """The event loop was held up; afterwards nobody waits for it any more."""

    async def work():
        db = async_client(daemon, timeout=0.5)
        await db.set("a", 1)
        task = asyncio.create_task(db.set("a", 2))
        await asyncio.sleep(0)  # it has asked, and is about to be sent
        time.sleep(0.6)  # noqa: ASYNC251 - what this is about
        with pytest.raises(Unavailable, match="nothing was asked") as caught:
            await task
        assert caught.value.outcome_known
        assert await db.get("a") == 1

    run(work())


# Closed


def test_close_ends_what_is_in_flight_and_nothing_hangs(daemon):
    async def work():
        db = async_client(daemon)
        await db.ping()
        with stopped(daemon):
            reads = [asyncio.create_task(db.get(f"{n}")) for n in range(10)]
            await asyncio.sleep(0)
            await all_sent(db, 10)
            await db.close()
            for error in await asyncio.gather(*reads, return_exceptions=True):
                assert isinstance(error, Unavailable)
                assert "closed" in str(error)
                assert error.outcome_known
        # also what waits for a connection
        db = AsyncPickleDB(daemon.location, timeout=PATIENCE)
        task = asyncio.create_task(db.get("a"))
        await asyncio.sleep(0)
        await db.close()
        with pytest.raises(Unavailable, match="closed"):
            await task

    run(work())


@pytest.mark.parametrize("name", ["set", "save"])
def test_close_does_not_claim_to_know_what_became_of_a_write_that_was_sent(daemon, name):
    async def work():
        db = async_client(daemon)
        await db.ping()
        with stopped(daemon):
            task = asyncio.create_task(db.save() if name == "save" else db.set("a", 1))
            await asyncio.sleep(0)
            await all_sent(db, 1)
            await db.close()
            with pytest.raises(Unavailable) as caught:
                await task
        assert not caught.value.outcome_known

    run(work())


def test_a_task_that_ends_its_async_with_leaves_the_others_alone(daemon):
    async def work():
        db = async_client(daemon)
        inside, over = asyncio.Event(), asyncio.Event()

        async def other():
            async with db:
                inside.set()
                await over.wait()

        task = asyncio.create_task(other())
        await inside.wait()
        await db.ping()
        os.kill(daemon.pid, signal.SIGSTOP)
        writes = [asyncio.create_task(db.set(f"{n}", n)) for n in range(3)]
        await asyncio.sleep(0)
        await all_sent(db, 3)
        over.set()
        with contextlib.suppress(asyncio.CancelledError):
            task.cancel()  # an exception in its block: it does not even save
            await task
        os.kill(daemon.pid, signal.SIGCONT)
        assert await asyncio.gather(*writes) == [True] * 3

    try:
        run(work())
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
