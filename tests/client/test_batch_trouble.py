"""batch() beside others, too large, refused by the disk, unanswered: all of it or none, once."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import resource
import threading

import pytest

from batching import as_async, both
from looped import Relay, async_client, run, stopped
from pickledbd_client import (
    PickleDB,
    RequestTimeout,
    TooLarge,
    Unavailable,
    WritesRefused,
)
from support import PATIENCE, Daemon


@both
def test_a_hundred_thousand_sets_and_as_many_removes(db, block):
    count = 100_000
    with block(db) as batch:
        for number in range(count):
            batch.set(f"key {number}", number)
    assert batch.results == [True] * count
    assert db.db == {f"key {number}": number for number in range(count)}
    with block(db) as batch:
        for number in range(0, count, 10):
            batch.remove(f"key {number}")
            batch.set(f"new {number}", number)
        batch.purge()
        batch.set_many({f"last {number}": number for number in range(count)})
        batch.remove("last 0")
    assert batch.results == [True, True] * (count // 10) + [True, True, True]
    assert len(db) == count - 1


@both
def test_one_that_is_too_large_is_refused_and_changes_nothing(location, block):
    daemon = Daemon(location, "--max-request", 1)
    with contextlib.closing(daemon.client()) as db:
        for others in (0, 1):
            with pytest.raises(TooLarge), block(db) as batch:  # noqa: PT012
                for number in range(others):
                    batch.remove(f"{number}")
                for number in range(200):
                    batch.set(f"{number}", "x" * 10_000)
            assert db.db == {}
    daemon.check_and_stop()


# Others, and what goes wrong


@pytest.mark.parametrize("size", [3, 3000], ids=["small", "large"])
@pytest.mark.parametrize("mixed", [False, True], ids=["sets", "mixed"])
def test_others_see_all_of_it_or_nothing(daemon, size, mixed):
    names = [f"{n}" for n in range(size)]
    over = threading.Event()

    def write(who):
        with contextlib.closing(daemon.client()) as db:
            for number in range(40):
                with db.batch() as batch:
                    if mixed:
                        batch.purge()
                        batch.remove("nobody")
                    for name in names:
                        batch.set(name, [who, number])
                    batch.set("again", 1)

    def read():
        looks = 0
        with contextlib.closing(daemon.client(cache_bytes=0)) as db:
            while not over.is_set() or not looks:
                found = db.get_many(names) if looks % 2 else dict(db.items())
                found.pop("again", None)
                assert len(found) in (0, size)
                assert len({tuple(value) for value in found.values()}) <= 1
                looks += 1

    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        reader = threads.submit(read)
        writers = [threads.submit(write, who) for who in range(2)]
        try:
            for writer in writers:
                writer.result(PATIENCE)
        finally:
            over.set()
        reader.result(PATIENCE)


@both
def test_a_journal_that_fails_undoes_all_of_it(location, block):
    daemon = Daemon(location)
    with contextlib.closing(daemon.client()) as db:
        before = {"a": 1, "b": 2, "c": 3}
        db.db = before
        limits = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (db.info()["journal_bytes"], limits[1]))
        with pytest.raises(WritesRefused, match="File too large"), block(db) as batch:  # noqa: PT012
            batch.remove("b")
            batch.set("new", 1)
            batch.purge()
            batch.set("a", "x" * 10_000)
        assert batch.results == []
        assert list(db.items()) == list(before.items())
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, limits)
        db.save()
        with block(db) as batch:
            batch.remove("a")
            batch.set("a", 4)
        assert list(db.items()) == [("b", 2), ("c", 3), ("a", 4)]
    daemon.check_and_stop()


@both
def test_without_an_answer_its_outcome_is_unknown(daemon, block):
    with contextlib.closing(daemon.client(timeout=0.3)) as db:
        unanswered = pytest.raises((RequestTimeout, Unavailable))
        with stopped(daemon), unanswered as caught, block(db) as batch:
            batch.set("a", 1)
            batch.remove("b")
        assert batch.results == []
        # as_async has not connected before, so that nothing was asked
        assert caught.value.outcome_known is (block is as_async)


@pytest.mark.parametrize("kills", [False, True], ids=["cut", "kill"])
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_one_whose_reply_was_lost_counts_once(tmp_path, kills, large):
    options = ("--bind", f"ipc://{tmp_path}/d")
    daemons = [Daemon(tmp_path / "my.db", *options)]

    def ask(db):
        with db.batch() as batch:
            if not large:
                batch.remove("token")
            for number in range(5000 if large else 2):
                batch.set(f"new {number}", "mine")
            if not large:
                batch.remove_many(["token 2", "nobody"])
        return batch.results

    async def work():
        async with Relay(tmp_path) as relay:
            db = await asyncio.to_thread(PickleDB, relay.endpoint, timeout=PATIENCE)
            await asyncio.to_thread(db.update, {"token": 1, "token 2": 2})
            relay.lose_replies()
            asking = asyncio.create_task(asyncio.to_thread(ask, db))
            await relay.lost.wait()
            direct = async_client(daemons[0], cache_bytes=0)
            last = "new 4999" if large else "new 1"
            while not await direct.exists(last):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.01)  # until it has been applied
            theirs = {"token": "another's", "token 2": "another's", "new 0": "another's"}
            await direct.set_many(theirs)
            await direct.close()
            if kills:
                await asyncio.to_thread(daemons[0].kill)
                daemons.append(await asyncio.to_thread(Daemon, tmp_path / "my.db", *options))
            relay.go_on()
            assert await asking == ([True] * 5000 if large else [True, True, True, 1])
            found = await asyncio.to_thread(db.get_many, theirs)
            assert found == theirs
            await asyncio.to_thread(db.close)

    run(work())
    daemons[-1].check_and_stop()
