"""A lock that is taken in one task and given back in another, as asyncio.wait_for does it."""

from __future__ import annotations

import asyncio

import pytest

from pickledbd_client import AsyncPickleDB, LockLost, RequestTimeout, calls
from support import PATIENCE


async def taken_by_another_task(db):
    """It is released while a third one waits by the same object."""
    lock = db.lock("x", timeout=PATIENCE)
    await asyncio.wait_for(asyncio.create_task(lock.acquire()), PATIENCE)
    waiting = asyncio.create_task(lock.acquire())
    while not (await db.info())["waiting"]:
        assert not waiting.done()
    await lock.release()
    held = await waiting
    with pytest.raises(RequestTimeout):
        await db.lock("x", timeout=0).acquire()
    assert await db.set("k", 1, token=held.token)
    await lock.release()
    with pytest.raises(LockLost):
        await lock.release()
    assert (await db.info())["locks"] == 0


async def lost_while_another_task_has_it(db):
    """Who has lost it does not give back what the next holder has by the same object."""
    lock = db.lock("x", timeout=PATIENCE)
    held = await asyncio.wait_for(asyncio.create_task(lock.acquire()), PATIENCE)
    assert await db._link.request(calls.unlock("x", db._locks.keeper().holder, held.ask))
    has_it, is_over = asyncio.Event(), asyncio.Event()

    async def next_holder():
        async with lock as held:
            has_it.set()
            await is_over.wait()
            assert await db.set("k", 1, token=held.token)

    task = asyncio.create_task(next_holder())
    await has_it.wait()
    with pytest.raises(LockLost):
        await lock.release()
    is_over.set()
    await task
    assert (await db.info())["locks"] == 0


@pytest.mark.parametrize("goes", [taken_by_another_task, lost_while_another_task_has_it])
def test_it_is_given_back_by_whoever_has_the_object(daemon, goes):
    async def main():
        db = AsyncPickleDB(daemon.location, autostart=False, timeout=PATIENCE)
        try:
            await goes(db)
        finally:
            await db.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
