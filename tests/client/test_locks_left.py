"""A lock that is taken in one thread, task or event loop, and is left to another, or to nobody."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from looped import async_client, run, until
from pickledbd_client import LockLost, calls
from support import PATIENCE, is_free, wait_until

LONG = 600.0


@pytest.fixture
def threads():
    """Two threads that stay: `first.submit`."""
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        yield first, second


@pytest.mark.parametrize("kind", ["threads", "tasks"])
def test_who_has_released_it_within_its_block_does_not_end_anothers(daemon, other, kind):
    """Though both have it by the same object."""

    def in_threads():
        with contextlib.closing(daemon.client()) as db:
            lock = db.lock("x", ttl=LONG)
            taken, may_go = threading.Event(), threading.Event()

            def take():
                with lock:
                    taken.set()
                    assert may_go.wait(PATIENCE)

            with ThreadPoolExecutor(1) as pool:
                with pytest.raises(LockLost, match="not held here"), lock:  # noqa: PT012
                    lock.release()
                    second = pool.submit(take)
                    assert taken.wait(PATIENCE)
                assert not is_free(other)
                may_go.set()
                second.result(PATIENCE)

    async def in_tasks():
        db = async_client(daemon)
        lock = db.lock("x", ttl=LONG)
        taken, may_go = asyncio.Event(), asyncio.Event()

        async def take():
            async with lock:
                taken.set()
                await may_go.wait()

        with pytest.raises(LockLost, match="not held here"):  # noqa: PT012
            async with lock:
                await lock.release()
                second = asyncio.create_task(take())
                await taken.wait()
        assert not await asyncio.to_thread(is_free, other)
        may_go.set()
        await second
        await db.close()

    in_threads() if kind == "threads" else run(in_tasks())
    assert is_free(other)


def test_blocks_that_end_elsewhere_leave_nothing_behind(db, threads):
    @contextlib.contextmanager
    def needed():
        with db.lock("x", ttl=LONG):
            yield

    for _ in range(3):
        block = needed()
        first, second = threads
        first.submit(block.__enter__).result(PATIENCE)
        second.submit(block.__exit__, None, None, None).result(PATIENCE)
        for each in threads:
            mine = each.submit(lambda: db._locks.here().of_thread()).result(PATIENCE)
            assert (dict(mine), mine.blocks) == ({}, [])


def test_a_block_may_end_in_another_thread_than_it_began_in(db, other, threads):
    @contextlib.contextmanager
    def needed():
        with db.lock("x", ttl=LONG), db.lock("x") as held:
            yield held

    first, second = threads
    block = needed()
    held = first.submit(block.__enter__).result(PATIENCE)
    assert not is_free(other)
    second.submit(block.__exit__, None, None, None).result(PATIENCE)
    assert is_free(other)
    assert not db._locks.keeper()._leases
    with db.lock("x") as again:
        assert again.token > held.token
    first.submit(lambda: is_free(db)).result(PATIENCE)
    block = needed()  # which is closed where it is dropped
    first.submit(block.__enter__).result(PATIENCE)
    second.submit(block.gen.close).result(PATIENCE)
    assert is_free(other)


def test_a_block_in_another_thread_does_not_end_what_that_one_holds(db, other, threads):
    """Both by one object; what the first took is lost."""
    lock = db.lock("x", ttl=LONG)
    first, second = threads
    held = first.submit(lock.__enter__).result(PATIENCE)
    assert db._link.request(calls.unlock("x", db._locks.keeper().holder, held.ask))
    second.submit(lock.__enter__).result(PATIENCE)
    with pytest.raises(LockLost, match="lost before it was released"):
        lock.__exit__(None, None, None)
    assert not is_free(other)
    second.submit(lock.__exit__, None, None, None).result(PATIENCE)
    assert is_free(other)


def in_a_thread(work):
    """In one that ends."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_what_a_thread_held_that_has_ended_is_freed_or_released_by_who_has_the_object(db, other):
    in_a_thread(lambda: db.lock("x", ttl=1).acquire() and None)
    wait_until(lambda: is_free(other), "it to be free")
    lock = db.lock("x", ttl=LONG)
    in_a_thread(lock.acquire)
    assert not is_free(other)
    lock.release()
    assert is_free(other)
    with pytest.raises(LockLost, match="not held here"):
        lock.release()
    in_a_thread(lock.acquire)
    del lock
    keeper = db._locks.keeper()
    keeper._wake()  # it looks no sooner than it is to be renewed
    wait_until(lambda: is_free(other), "it to be free")


def test_what_other_objects_released_is_not_remembered(db):
    lock = db.lock("x", ttl=LONG)
    for _ in range(20):
        lock.acquire()
        db.lock("x").release()
    assert len(lock._taken) == 1
    with lock:
        assert len(lock._taken) == 1
    assert lock._taken == []
    with pytest.raises(LockLost, match="not held here"):
        lock.release()


def test_a_generator_that_is_dropped_gives_it_back(daemon, other):
    async def work():
        its = async_client(daemon)

        async def numbers():
            async with its.lock("x", ttl=LONG):
                yield 1
                yield 2

        async for _ in numbers():
            break
        gc.collect()  # another task closes it
        await until(lambda: is_free(other))
        await its.close()

    run(work())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_task_held_whose_event_loop_was_closed_is_freed(daemon, other):
    its = async_client(daemon)
    tasks = []

    async def hold():
        async with its.lock("x", ttl=LONG):
            await asyncio.Event().wait()

    async def work():
        tasks.append(asyncio.ensure_future(hold()))
        await until(lambda: its._locks.keeper()._look())

    loop = asyncio.new_event_loop()
    loop.run_until_complete(work())
    loop.close()
    tasks.clear()
    gc.collect()
    wait_until(lambda: is_free(other), "it to be free")
    asyncio.run(its.close())


def test_that_it_was_lost_says_what_may_have_been(db):
    with pytest.raises(
        LockLost,
        match=r"before it was released: its connection was lost, or it was not renewed within its "
        r"0\.7 s",
    ):
        lose_and_release(db)


def lose_and_release(db):
    held = db.lock("x", ttl=0.7).acquire()
    assert db._link.request(calls.unlock("x", db._locks.keeper().holder, held.ask))
    db.lock("x", ttl=30).release()  # that object's is not the one
