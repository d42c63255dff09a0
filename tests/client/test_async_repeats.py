"""Daemons that die with requests of an AsyncPickleDB in flight: each write counts once."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from looped import Relay, all_sent, async_client, each_gets_its_own, run
from pickledbd_client import AsyncPickleDB, TooLarge, Unavailable, channel
from support import PATIENCE, Daemon


async def in_thread(work):
    """What waits for a daemon, while the event loop goes on."""
    return await asyncio.to_thread(work)


def tokens(number):
    return {f"token {n}": f"value {n}" for n in range(number)}


@pytest.mark.parametrize("after", [0, 1, 400], ids="after {} answers".format)
def test_all_that_is_in_flight_when_the_daemon_is_killed_is_done_once(location, after):
    """A pop that was done and done again would find nothing."""
    first = Daemon(location)
    number = 3000

    async def work():
        db = async_client(first, cache_bytes=0)
        await db.set_many(tokens(number) | {"stays": "here"})
        answered = asyncio.Event()
        count = 0

        async def ask(call, expected):
            nonlocal count
            found = await call
            count += 1
            if count >= after:
                answered.set()
            assert found == expected

        calls = []
        for key, value in tokens(number).items():
            calls += [
                ask(db.pop(key, "was done twice"), value),
                ask(db.setdefault(f"new {key}", value), value),
                ask(db.get("stays"), "here"),
            ]
        if not after:
            os.kill(first.pid, signal.SIGSTOP)
        tasks = [asyncio.create_task(call) for call in calls]
        if after:
            await answered.wait()
        else:
            await asyncio.sleep(0)
            await all_sent_that_can_be(db)
        first.process.kill()
        await in_thread(first.end)
        second = await in_thread(lambda: Daemon(location))
        await asyncio.gather(*tasks)
        assert count == 3 * number
        expected = {f"new {key}": value for key, value in tokens(number).items()}
        assert await db.db == expected | {"stays": "here"}
        assert (await db.info())["pid"] == second.pid
        return second

    run(work()).check_and_stop()


async def all_sent_that_can_be(db):
    line = db._link._lines[asyncio.get_running_loop()]
    async with asyncio.timeout(PATIENCE):
        while len(line._sent) < 1000:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.005)


def test_several_daemons_may_die_one_after_the_other(location):
    async def work():
        daemon = await in_thread(lambda: Daemon(location))
        db = async_client(daemon, cache_bytes=0)
        await db.set_many(tokens(2000))
        tasks = [asyncio.create_task(db.pop(key, "was done twice")) for key in tokens(2000)]
        for number in range(4):
            await tasks[number * 100]
            daemon.process.kill()
            await in_thread(daemon.end)
            daemon = await in_thread(lambda: Daemon(location))
        assert await asyncio.gather(*tasks) == list(tokens(2000).values())
        assert await db.len() == 0
        return daemon

    run(work()).check_and_stop()


@pytest.fixture
def behind(tmp_path):
    """Starts daemons that a relay can reach."""
    made = []

    def start(*options):
        options = ("--bind", f"ipc://{tmp_path}/d", *options)
        made.append(Daemon(tmp_path / "my.db", *options))
        return made[-1]

    yield start
    if made[-1].process.poll() is None:
        made[-1].check_and_stop()


@pytest.mark.parametrize("durability", ["journal", "save"])
@pytest.mark.parametrize("kills", [True, False], ids=["kill", "cut"])
def test_writes_whose_replies_were_lost_are_answered_and_not_done_again(
    tmp_path, behind, durability, kills
):
    """In save mode the daemon may be stopped, which saves; a kill would take the writes along."""
    number = 500

    async def work():
        daemon = await in_thread(lambda: behind("--durability", durability))
        async with Relay(tmp_path) as relay:
            db = AsyncPickleDB(relay.endpoint, timeout=PATIENCE, cache_bytes=0)
            await db.set_many(tokens(number))
            relay.lose_replies()
            tasks = [
                asyncio.create_task(call)
                for key in tokens(number)
                for call in (db.pop(key), db.set(f"new {key}", "mine"))
            ]
            direct = async_client(daemon, cache_bytes=0)
            await relay.lost.wait()
            while await direct.exists(f"token {number - 1}"):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.01)  # until the last has been applied
            await direct.set_many({f"new {key}": "another's" for key in tokens(number)})
            await direct.update(dict.fromkeys(tokens(number), "another's"))
            await direct.close()
            if kills:
                if durability == "save":
                    await in_thread(daemon.stop)
                else:
                    await in_thread(daemon.kill)
                await in_thread(lambda: behind("--durability", durability))
            relay.go_on()
            found = await asyncio.gather(*tasks)
            assert found[::2] == list(tokens(number).values())
            assert found[1::2] == [True] * number
            assert set((await db.db).values()) == {"another's"}

    run(work())


def test_long_after_a_write_was_sent_it_is_not_sent_again(tmp_path, behind, monkeypatch):
    monkeypatch.setattr(channel, "REPEAT_MS", -1)

    async def work():
        daemon = await in_thread(behind)
        async with Relay(tmp_path) as relay:
            db = AsyncPickleDB(relay.endpoint, timeout=PATIENCE, cache_bytes=0)
            await db.set_many({"pop": "mine", "read": 1})
            relay.lose_replies()
            tasks = [asyncio.create_task(call) for call in (db.pop("pop"), db.get("read"))]
            await relay.lost.wait()
            direct = async_client(daemon, cache_bytes=0)
            await direct.set("pop", "another's")
            relay.go_on()
            with pytest.raises(Unavailable, match="too late to ask") as caught:
                await tasks[0]
            assert not caught.value.outcome_known
            assert await tasks[1] == 1
            assert await direct.get("pop") == "another's"
            assert await db.set("later", 1)

    run(work())


def test_in_save_mode_a_save_that_is_cut_off_is_not_asked_again(behind):
    async def work():
        daemon = await in_thread(lambda: behind("--durability", "save"))
        db = async_client(daemon, timeout=PATIENCE)
        await db.set("a", 1)
        os.kill(daemon.pid, signal.SIGSTOP)
        calls = {"save": db.save(), "set": db.set("b", 2), "get": db.get_many("ab")}
        tasks = {name: asyncio.create_task(call) for name, call in calls.items()}
        await asyncio.sleep(0)
        await all_sent(db, 3)
        await in_thread(daemon.kill)
        await in_thread(lambda: behind("--durability", "save"))
        with pytest.raises(Unavailable, match="did not answer a save") as caught:
            await tasks["save"]
        assert not caught.value.outcome_known
        assert await tasks["set"] is True
        assert await tasks["get"] == {"b": 2}

    run(work())


def test_who_is_not_followed_by_another_is_told_of_by_all_that_is_in_flight(location):
    daemon = Daemon(location)

    async def work():
        db = async_client(daemon, timeout=2)
        await db.ping()
        os.kill(daemon.pid, signal.SIGSTOP)
        writes = [asyncio.create_task(db.set(f"{n}", n)) for n in range(100)]
        reads = [asyncio.create_task(db.get(f"{n}")) for n in range(100)]
        await asyncio.sleep(0)
        await all_sent(db, 200)
        await in_thread(daemon.kill)
        for tasks, known in ((writes, False), (reads, True)):
            for error in await asyncio.gather(*tasks, return_exceptions=True):
                assert error.outcome_known is known
        with pytest.raises(Unavailable) as caught:
            await db.set("a", 1)
        assert caught.value.outcome_known

    run(work())
    os.unlink(f"{location}.lock")


def test_what_the_next_daemon_would_not_take_has_an_unknown_outcome(tmp_path, behind):
    """As PickleDB has it: who came next refuses the repeat, not the first."""

    async def work():
        daemon = await in_thread(behind)
        async with Relay(tmp_path) as relay:
            db = AsyncPickleDB(relay.endpoint, timeout=PATIENCE)
            await db.ping()
            relay.lose_replies()
            task = asyncio.create_task(db.set_many({"large": "x" * 2**20}))
            await relay.lost.wait()
            await in_thread(daemon.stop)
            await in_thread(lambda: behind("--max-request", 1))
            relay.go_on()
            with pytest.raises(TooLarge) as caught:
                await task
            assert not caught.value.outcome_known
            assert await db.exists("large")

    run(work())


def test_a_connection_that_breaks_again_and_again_hinders_nobody(tmp_path, behind):
    async def work():
        await in_thread(behind)
        async with Relay(tmp_path) as relay:
            db = AsyncPickleDB(relay.endpoint, timeout=PATIENCE, cache_bytes=0)
            await db.ping()
            await db.set_many(tokens(1000))
            relay.breaks_after = 8  # the greetings are some of them
            names = list(tokens(1000))
            for start in range(0, 1000, 50):
                some = names[start : start + 50]
                found = await asyncio.gather(*(db.pop(name, "was done twice") for name in some))
                assert found == [tokens(1000)[name] for name in some]
            assert relay.breaks > 2
            await each_gets_its_own(db, 200)

    run(work())
