"""AsyncPickleDB: what it returns, refuses and keeps; test_async.py compares it with PickleDB."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import pickle
import sys

import pytest

from looped import async_client, run, stopped, told
from pickledbd_client import (
    AsyncPickleDB,
    InvalidKey,
    InvalidValue,
    PickleDB,
    TooLarge,
    Unavailable,
)
from support import Daemon

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the table")


def test_as_in_pickledb(daemon, location):
    async def work():
        db = async_client(daemon)
        assert await db.set("a", None) is True
        assert await db.get("a", "default") is None
        assert await db.get("b", default=5) == 5
        await db.set("bytes", b"\x00\xff")
        assert await db["bytes"] == b"\x00\xff"
        await db.update([("self", 1)], self=2)
        assert await db.pop("self", default=0) == 2
        assert await db.setdefault("d", default=[1]) == [1]
        value = await db.get("d")
        value.append(2)
        assert await db.get("d") == [1], "what get returns is a copy"
        assert await db.save() is True
        assert json.loads(location.read_bytes()).keys() == {"a", "bytes", "d"}
        assert (await db.info())["pid"] == daemon.pid
        assert (await db.info(reset=True))["location"] == db.location == str(location)
        assert repr(db) == f"AsyncPickleDB({str(location)!r})"

    run(work())


def test_a_missing_key_raises_keyerror_with_that_key(daemon):
    async def work():
        db = async_client(daemon)
        for ask in (db.__getitem__, db.pop):
            for _ in range(2):  # the second read may be told by the cache
                with pytest.raises(KeyError) as caught:
                    await ask("missing")
                assert caught.value.args == ("missing",)
        with pytest.raises(KeyError, match="empty"):
            await db.popitem()

    run(work())


def test_what_is_wrong_is_refused_before_anything_is_sent(location):
    async def work():
        db = AsyncPickleDB(location, autostart=False)  # nobody is there
        for call in (
            lambda: db.set("bad", {1}),
            lambda: db.set_many({"good": 1, "bad": float("nan")}),
            lambda: db.setdefault("bad", 2**70),
            lambda: db.replace({"bad": object()}),
            lambda: db.update(bad={1: 2}),
        ):
            with pytest.raises(InvalidValue, match="'bad'"):
                await call()
        with pytest.raises(InvalidKey, match="surrogate"):
            await db.get("\ud800")

    run(work())


def test_what_is_too_large_is_refused_and_the_others_are_not(location):
    daemon = Daemon(location, "--max-request", 1)

    async def work():
        db = async_client(daemon)
        large = "x" * 2**20
        refused, *others = await asyncio.gather(
            db.set("large", large),
            *(db.set(key, 1) for key in range(50)),
            db.set_many({"large": large, "b": 1}),
            return_exceptions=True,
        )
        for error in (refused, others.pop()):
            assert isinstance(error, TooLarge)
            assert error.outcome_known
        assert others == [True] * 50
        assert await db.len() == 50

    run(work())
    daemon.check_and_stop()


def test_what_cannot_work_says_so_at_once(location):
    db = AsyncPickleDB(location, autostart=False)
    for wrong in (lambda: "a" in db, lambda: list(db), lambda: len(db), lambda: dict(db)):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(TypeError):
        iter(db)
    with pytest.raises(TypeError):
        db["a"] = 1
    with pytest.raises(TypeError):
        del db["a"]


@pytest.mark.parametrize(
    "options",
    [
        *({"timeout": timeout} for timeout in (0, -1, float("inf"), float("nan"))),
        *({"cache_bytes": number} for number in (-1, True, 1.5, None)),
        *({"location": name} for name in ("", "ftp://x", "tcp://127.0.0.1:99999", "ipc://x")),
        {"curve": "keys"},
    ],
    ids=repr,
)
def test_options_are_checked_as_pickledb_checks_them(location, options):
    options = {"location": location, "autostart": False} | options
    refusals = []
    for cls in (PickleDB, AsyncPickleDB):
        with pytest.raises((ValueError, Unavailable)) as caught:
            cls(**options)
        refusals.append(told(caught.value))
    assert refusals[0] == refusals[1]


def test_an_async_with_saves_unless_there_was_an_exception(daemon, location):
    async def work():
        async with async_client(daemon) as db:
            await db.set("a", 1)
        assert json.loads(location.read_bytes()) == {"a": 1}
        with pytest.raises(RuntimeError):  # noqa: PT012 - the with is what is tested
            async with db:
                await db.set("a", 2)
                raise RuntimeError
        assert json.loads(location.read_bytes()) == {"a": 1}
        assert await db["a"] == 2  # it can be used on

    run(work())


def test_a_closed_one_says_so(daemon):
    async def work():
        db = async_client(daemon)
        await db.set("a", 1)
        assert [await db.get("a") for _ in range(2)] == [1, 1]
        await db.close()
        await db.close()
        for call in (lambda: db.get("a"), lambda: db.set("a", 1), db.save, lambda: db.db):
            with pytest.raises(Unavailable, match="closed") as caught:
                await call()
            assert caught.value.outcome_known

    run(work())


def test_a_copy_is_another_handle_on_the_same_data(daemon):
    async def work():
        db = async_client(daemon)
        for copied in (pickle.loads(pickle.dumps(db)), copy.copy(db), copy.deepcopy(db)):
            await copied.set("a", 1)
            assert copied.location == db.location
            await copied.close()
            assert await db.pop("a") == 1

    run(work())


# What is kept


@only_linux
def test_what_was_read_is_read_again_although_the_daemon_is_stopped(daemon):
    async def work():
        db = async_client(daemon)
        await db.set_many({"a": [1], "b": 2})
        assert [await db.get(key) for key in "abc"] == [[1], 2, None]
        with stopped(daemon):
            async with asyncio.timeout(5):
                assert [await db.get(key, "none") for key in "abc"] == [[1], 2, "none"]
                assert [await db.exists(key) for key in "abc"] == [True, True, False]
                assert await db["b"] == 2
                with pytest.raises(KeyError):
                    await db["c"]

    run(work())


def test_what_is_kept_is_never_older_than_what_another_client_wrote(daemon):
    async def work():
        db = async_client(daemon)
        with contextlib.closing(daemon.client()) as other:
            for number in range(200):
                other.set("a", number)
                assert await asyncio.gather(*(db.get("a") for _ in range(3))) == [number] * 3
                await db.set("b", number)
                assert other.get("b") == number
                other.remove("a")
                assert not await db.exists("a")

    run(work())
