"""What a type checker sees of PickleDB and AsyncPickleDB. Run by mypy, never by Python."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from typing import Any, assert_type

from pickledbd_client import AsyncPickleDB, Change, Held, PickleDB, Resync


def of_pickledb(db: PickleDB) -> None:
    assert_type(db.set("a", 1), bool)
    assert_type(db.get("a"), Any)
    assert_type(db["a"], Any)
    assert_type("a" in db, bool)
    assert_type(len(db), int)
    assert_type(db.all(), list[str])
    assert_type(db.remove("a"), bool)
    assert_type(db.remove_many(["a"]), int)
    assert_type(db.get_many(["a"]), dict[str, Any])
    assert_type(db.set_many({1: 2}), bool)
    assert_type(db.popitem(), tuple[str, Any])
    assert_type(db.db, dict[str, Any])
    assert_type(db.load(), PickleDB)
    assert_type(db.info(), dict[str, Any])
    assert_type(db.save(), bool)
    assert_type(list(db), list[str])
    assert_type(db.location, str)
    with db as same:
        assert_type(same, PickleDB)
    with db.batch() as batch:
        batch.set("a", 1)
        batch["b"] = 2
        del batch["c"]
        batch.if_version("a", 0)
    assert_type(batch.results, list[Any])
    assert_type(db.get_versioned("a"), tuple[Any, str | int])
    assert_type(db.cas("a", 0, 1, ttl=1.5), bool)
    assert_type(db.ttl("a"), float | None)
    assert_type(db.expire("a", 1), bool)
    with db.lock("a", timeout=0) as held:
        assert_type(held, Held)
        db.set("a", 1, token=assert_type(held.token, int))
    for change in db.watch("a"):
        if isinstance(change, Change):
            assert_type(change.seq, int)
        else:
            assert_type(change, Resync)
    assert_type(list(db.items("a", glob="*b")), list[tuple[str, Any]])


def waits(db: AsyncPickleDB) -> None:
    """Who forgets to await has no value."""
    first = assert_type(db.set("a", 1), Coroutine[Any, Any, bool])
    further = [
        assert_type(db.get("a"), Coroutine[Any, Any, Any]),
        assert_type(db["a"], Coroutine[Any, Any, Any]),
        assert_type(db.db, Awaitable[dict[str, Any]]),
    ]
    found: bool = db.exists("a")  # type: ignore[assignment] # it is to be awaited
    found = "a" in db  # type: ignore[misc] # nobody can await that
    for _ in db:  # type: ignore[misc] # nor that
        del first, further, found


async def of_async(db: AsyncPickleDB) -> None:
    assert_type(await db.set("a", 1), bool)
    assert_type(await db.exists("a"), bool)
    assert_type(await db.len(), int)
    assert_type(await db.all(), list[str])
    assert_type(await db.remove("a"), bool)
    assert_type(await db.remove_many(["a"]), int)
    assert_type(await db.get_many(["a"]), dict[str, Any])
    assert_type(await db.set_many({1: 2}), bool)
    assert_type(await db.replace({1: 2}), bool)
    assert_type(await db.popitem(), tuple[str, Any])
    assert_type(await db.db, dict[str, Any])
    assert_type(await db.load(), AsyncPickleDB)
    assert_type(await db.info(), dict[str, Any])
    assert_type(await db.save(), bool)
    assert_type(db.location, str)
    assert_type([key async for key in db], list[str])
    assert_type([key async for key in db.keys()], list[str])  # noqa: SIM118 - they differ for mypy
    assert_type([item async for item in db.items()], list[tuple[str, Any]])
    async with db as same:
        assert_type(same, AsyncPickleDB)
    async with db.batch() as batch:
        batch.set("a", 1)
        batch["b"] = 2
    assert_type(batch.results, list[Any])
    assert_type(await db.get_versioned("a"), tuple[Any, str | int])
    assert_type(await db.cas("a", 0, 1, ttl=1.5), bool)
    assert_type(await db.ttl("a"), float | None)
    async with db.lock("a", timeout=0) as held, db.watch("a") as changes:
        assert_type(held.token, int)
        async for change in changes:
            assert_type(change, Change | Resync)
