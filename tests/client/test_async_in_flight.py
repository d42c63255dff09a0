"""Many requests in flight: each gets its own reply, and what was cancelled takes nobody's."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from looped import Relay, async_client, each_gets_its_own, run, stopped
from pickledbd_client import AsyncPickleDB
from pickledbd_client.async_link import IN_FLIGHT
from support import PATIENCE, Daemon


def test_each_of_thousands_of_requests_in_flight_gets_its_own_reply(daemon):
    async def work():
        db = async_client(daemon, cache_bytes=0)
        await each_gets_its_own(db, 5000)
        assert await db.len() == 0

    run(work())


def test_one_thing_after_the_other_is_done_in_that_order(daemon):
    async def work():
        db = async_client(daemon)
        for number in range(100):
            await db.set("a", number)
            assert await db.get("a") == number
        # and so is what one task after the other asks at the same time
        found = await asyncio.gather(
            *(step for n in range(1000) for step in (db.set("a", n), db.get_many("a")))
        )
        assert found[1::2] == [{"a": n} for n in range(1000)]

    run(work())


def test_small_ones_beside_a_large_set_many_and_large_answers(daemon):
    large = {f"large {n}": "x" * 1000 for n in range(3000)}

    async def work():
        db = async_client(daemon, cache_bytes=0)
        await db.replace(large)

        async def dumps():
            for _ in range(5):
                content, keys = await asyncio.gather(db.db, db.all())
                for found in (content, keys):
                    assert len([key for key in found if key.startswith("large")]) == len(large)
                assert all(key == value for key, value in content.items() if key[0] != "l")

        async def sets_many():
            for _ in range(5):
                assert await db.set_many(large)

        await asyncio.gather(
            dumps(), sets_many(), *(each_gets_its_own(db, 100, f"{n} ") for n in range(10))
        )
        assert await db.db == large

    run(work())


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=50,
)
@given(st.lists(st.sampled_from(["get", "set", "dump", "all", "save", "len", "bad"]), max_size=300))
def test_in_whatever_order_reads_of_everything_stand_between_others(daemon, ops):
    async def work():
        db = async_client(daemon, cache_bytes=0)
        await db.replace({"a": 0})
        calls, expected = [], []
        last = 0
        for number, op in enumerate(ops):
            match op:
                case "set":
                    calls.append(db.set("a", number))
                    last = number
                    expected.append(True)
                case "bad":  # which the daemon refuses
                    calls.append(db.set("b", nested(201)))
                    expected.append("refused")
                case "save":
                    calls.append(db.save())
                    expected.append(True)
                case "get":
                    calls.append(db.get("a"))
                    expected.append(last)
                case "dump":
                    calls.append(db.db)
                    expected.append({"a": last})
                case "all":
                    calls.append(db.all())
                    expected.append(["a"])
                case "len":
                    calls.append(db.len())
                    expected.append(1)
        found = await asyncio.gather(*calls, return_exceptions=True)
        found = ["refused" if "200 levels" in str(each) else each for each in found]
        assert found == expected
        await db.close()

    run(work())


def nested(depth):
    return [nested(depth - 1)] if depth > 1 else []


# Cancelled


@pytest.mark.parametrize("seed", range(3))
def test_a_reply_to_what_was_cancelled_meets_nobody(daemon, seed):
    chance = random.Random(seed)

    async def work():
        db = async_client(daemon, cache_bytes=0)
        names = [f"key {n}" for n in range(100)]
        await db.set_many({name: name for name in names})
        tally = {"cancelled": 0, "answered": 0}

        async def ask():
            for _ in range(50):
                name = chance.choice(names)
                call = chance.choice(
                    [
                        lambda name=name: db.get(name),
                        lambda name=name: db.setdefault(name, "wrong"),
                        lambda name=name: db.get_many([name]),
                        lambda: db.db,
                    ]
                )
                task = asyncio.ensure_future(call())
                for _ in range(chance.randrange(20)):
                    await asyncio.sleep(0)
                if chance.random() < 0.5:
                    task.cancel()
                try:
                    found = await task
                except asyncio.CancelledError:
                    tally["cancelled"] += 1
                else:
                    tally["answered"] += 1
                    assert found in (name, {name: name}) or len(found) == len(names)

        await asyncio.gather(*(ask() for _ in range(40)))
        assert min(tally.values()) > 100
        await each_gets_its_own(db, 1000)
        line = db._link._lines[asyncio.get_running_loop()]
        assert not line._sent
        assert not line._waiting

    run(work())


def test_a_write_that_is_cancelled_just_as_it_is_answered_gives_its_name_back_once(tmp_path):
    """Two writes with one client's name could not both be repeated."""
    daemon = Daemon(tmp_path / "my.db", "--bind", f"ipc://{tmp_path}/d")

    async def work():
        async with Relay(tmp_path) as relay:
            db = AsyncPickleDB(relay.endpoint, timeout=PATIENCE)
            await db.set_many({"a": "A", "b": "B"})

            async def first():
                await db.set("x", 1)
                second.cancel()  # whose answer came in the same message

            one = asyncio.create_task(first())
            second = asyncio.create_task(db.set("y", 1))
            await asyncio.gather(one, second, return_exceptions=True)
            assert second.cancelled()
            relay.lose_replies()
            writes = [asyncio.create_task(db.pop(key)) for key in "ab"]
            await relay.lost.wait()
            relay.go_on()
            assert await asyncio.gather(*writes) == ["A", "B"]

    run(work())
    daemon.check_and_stop()


def test_what_was_cancelled_before_there_was_a_connection_is_never_asked(daemon):
    async def work():
        db = async_client(daemon)
        tasks = [asyncio.create_task(db.set(f"{n}", n)) for n in range(100)]
        await asyncio.sleep(0)  # they have asked, and the connection is not there yet
        for task in tasks[::2]:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert found[1::2] == [True] * 50
        assert await db.all() == [f"{n}" for n in range(1, 100, 2)]

    run(work())


def test_thousands_that_are_given_up_while_nobody_answers_harm_no_later_ones(daemon):
    """More than the daemon keeps replies for; but what was given up counts until it is answered."""

    async def work():
        db = async_client(daemon, cache_bytes=0)
        await db.set("a", 1)
        with stopped(daemon):
            for _ in range(12):
                tasks = [asyncio.create_task(db.get("a")) for _ in range(1000)]
                await asyncio.sleep(0.01)  # time for them to be sent, if they were
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            (line,) = db._link._lines.values()
            assert len(line._sent) == IN_FLIGHT
        await each_gets_its_own(db, 2000)

    run(work())
