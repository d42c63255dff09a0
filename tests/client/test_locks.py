"""`lock()`: who holds it and who waits, how both end, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from looped import async_client, run, stopped, until
from pickledbd_client import (
    InvalidKey,
    InvalidValue,
    LockLost,
    PickleDB,
    RequestTimeout,
    Unavailable,
    calls,
    locks,
)
from pickledbd_client.keeper import Keeper
from pickledbd_client.leases import clock
from pickledbd_client.route import leave
from support import PATIENCE, Daemon, in_fork, is_alive, is_free, owner_pid, wait_until

LONG = 600.0
"""A ttl that no test waits for: what is freed then is freed by something else."""

PROCESS = """
import sys, threading
from pickledbd_client import LockLost, PickleDB
path, ttl, *waits = sys.argv[1:]
db = PickleDB(path, timeout=60, autostart=False)
try:
    with db.lock("x", ttl=float(ttl)) as held:
        for _ in waits:
            threading.Thread(target=db.lock("x").acquire, daemon=True).start()
        print(held.token, flush=True)
        sys.stdin.readline()
        try:
            db.set("k", "late", token=held.token)
        except LockLost:
            print("refused", flush=True)
except LockLost:
    print("lost", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    db.lock("y").acquire()
    print(db.ping(), flush=True)
else:
    print("kept", flush=True)
"""


class Process:
    """Another process that holds the lock "x" until it is told to go on."""

    def __init__(self, location, ttl=LONG, waits=0, args=()):
        self.process = subprocess.Popen(
            [sys.executable, *args, "-c", PROCESS, str(location), str(ttl), *("w" * waits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid

    def said(self):
        assert select.select([self.process.stdout], [], [], PATIENCE)[0], "it said nothing"
        return self.process.stdout.readline().strip()

    def end(self):
        self.process.kill()
        self.process.communicate(timeout=PATIENCE)


@pytest.fixture
def process(location):
    """Starts such processes, and ends them."""
    started = []

    def start(**options):
        started.append(Process(location, **options))
        return started[-1]

    yield start
    for each in started:
        each.end()


class Waiter(threading.Thread):
    """Asks for the lock "x" in a thread of its own, and holds it until `go_on`."""

    def __init__(self, db, served=None, **options):
        super().__init__(daemon=True)
        self.lock = db.lock("x", **{"ttl": LONG, **options})
        self.served = [] if served is None else served
        self.got = threading.Event()
        self.released = threading.Event()
        self.error = None
        self.held = None
        self.start()

    def run(self):
        try:
            with self.lock as self.held:
                self.served.append(self)
                self.got.set()
                assert self.released.wait(PATIENCE)
        except Exception as error:  # noqa: BLE001 - what it is, the test looks at
            self.error = error
        self.got.set()

    def go_on(self):
        self.released.set()
        self.join(PATIENCE)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error


def await_waiting(db, number):
    wait_until(lambda: db.info()["waiting"] == number, f"{number} to wait")


def steal(db, owner, held):
    """Have a lock end as if its holder had not been heard of."""
    assert db._link.request(calls.unlock(held.name, owner._locks.keeper().holder, held.ask))


# Who holds it


def test_one_thread_at_a_time_holds_it_and_may_take_it_again(db, other):
    lock = db.lock("x", ttl=LONG)
    with lock as held:
        assert held.token > 0
        with db.lock("x") as again, lock:
            assert again.token == held.token
        assert db.lock("x").acquire().token == held.token
        db.lock("x").release()
        for client in (db, other):  # also of the same process it is the thread that counts
            waiter = Waiter(client, timeout=0)
            waiter.join(PATIENCE)
            assert type(waiter.error) is RequestTimeout
            assert str(waiter.error) == "lock 'x' was not free within 0 s"
        assert other.lock("y").acquire().token > held.token
    waiter = Waiter(other)
    assert waiter.got.wait(PATIENCE)
    assert waiter.held.token > held.token
    began = time.monotonic()
    with pytest.raises(RequestTimeout, match=r"lock 'x' was not free within 0\.2 s"):
        db.lock("x", timeout=0.2).acquire()
    assert time.monotonic() - began >= 0.2
    with pytest.raises(LockLost, match="lock 'x' is not held here"):
        waiter.lock.release()  # it is another thread's
    waiter.go_on()
    with pytest.raises(LockLost):
        lock.release()
    assert db.info()["locks"] == 1  # "y"
    assert db.lock(1).name == "1"


def test_one_task_at_a_time_holds_it_and_may_take_it_again(daemon, other):
    async def work():
        db = async_client(daemon)

        async def ask(timeout):  # noqa: ASYNC109 - it is the lock's
            async with db.lock("x", timeout=timeout) as held:
                return held.token

        async with db.lock("x") as held:
            async with db.lock("x") as again:
                assert again.token == held.token
            assert (await db.lock("x").acquire()).token == held.token
            await db.lock("x").release()
            with pytest.raises(RequestTimeout, match="lock 'x' was not free within 0 s"):
                await asyncio.create_task(ask(0))
            assert not is_free(other)
            served = [asyncio.create_task(ask(None)) for _ in range(5)]
            for number in range(5):
                await until(lambda: other.info()["waiting"] == 5)
                assert not served[number].done()
        tokens = await asyncio.gather(*served)
        assert [held.token, *tokens] == sorted({held.token, *tokens})  # in order of asking
        with pytest.raises(LockLost, match="not held here"):
            await db.lock("x").release()
        await db.close()

    run(work())


def test_threads_are_served_in_the_order_of_asking(db, other):
    served = []
    with db.lock("x", ttl=LONG):
        waiters = []
        for number in range(6):
            timeout = 0.3 if number == 2 else None
            waiters.append(Waiter((db, other)[number % 2], served, timeout=timeout))
            if number != 2:
                await_waiting(db, len(waiters))
                continue
            gave_up = waiters.pop()
            gave_up.join(PATIENCE)
            assert type(gave_up.error) is RequestTimeout
    for number, waiter in enumerate(waiters):
        assert waiter.got.wait(PATIENCE)
        assert served == waiters[: number + 1]
        waiter.go_on()
    tokens = [waiter.held.token for waiter in served]
    assert tokens == sorted(set(tokens))


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), "1", None])
def test_a_ttl_that_is_none_is_refused_before_anything_is_asked(db, ttl):
    with pytest.raises(InvalidValue, match="lock 'x'"):
        db.lock("x", ttl=ttl)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), -0.001])
def test_a_timeout_that_is_none_is_refused_too(db, timeout):
    with pytest.raises(InvalidValue, match="lock 'x': the timeout is"):
        db.lock("x", timeout=timeout)


def test_a_name_that_cannot_be_sent_is_refused_before_anything_is_asked(daemon, other):
    db = daemon.client()
    with pytest.raises(InvalidKey, match="no lock can be named '\\\\ud800'"):
        db.lock("\ud800")
    with db.lock("x"):
        pass
    db.close()
    assert is_free(other)


class Alarm(BaseException):
    """What a signal's handler raises."""


# Interrupted between a socket's or a file's making and its keeping, one is left to the collector
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_whatever_is_interrupted_no_lock_is_held_that_nobody_knows_of(daemon, other):
    def interrupt(*_):
        raise Alarm

    before = signal.signal(signal.SIGALRM, interrupt)
    moments = random.Random(1)
    interrupted = 0
    try:
        with contextlib.closing(daemon.client()) as db:
            for number in range(2000):
                lock = db.lock(f"x{number}", ttl=LONG)
                try:
                    if number % 2:
                        lock.acquire()
                    seconds = moments.uniform(1e-6, 5e-4 / (1 + number % 8))
                    signal.setitimer(signal.ITIMER_REAL, seconds)
                    if not number % 2:
                        lock.acquire()
                    lock.release()
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except Alarm:
                    interrupted += 1
                with contextlib.suppress(LockLost):
                    lock.release()  # if it came to be held
            wait_until(lambda: other.info()["locks"] == 0, "all to be free")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 100


# When it is lost


def test_who_has_lost_it_is_told_at_the_end_and_when_it_takes_it_again(db, other):
    lost = pytest.raises(LockLost, match="lock 'x' was lost before it was released")
    with lost:  # noqa: SIM117 - the outer one is about the end of the inner
        with db.lock("x", ttl=0.6) as held:
            assert not held.lost
            assert db.set("k", "in time", token=held.token)
            steal(other, db, held)
            with pytest.raises(LockLost, match=f"token is {held.token}"):
                db.set("k", "late", token=held.token)
            wait_until(lambda: held.lost, "the keeper to be told")
            with pytest.raises(LockLost, match="lost before it was taken again"):
                db.lock("x").acquire()
            with other.lock("x", timeout=0) as of_other:  # others have it meanwhile
                assert of_other.token > held.token
    assert db.get("k") == "in time"
    with db.lock("x") as held:  # and one may begin anew
        assert db.set("k", "again", token=held.token)


def test_an_exception_in_the_block_is_what_is_heard_of(db, other, daemon):
    with pytest.raises(ZeroDivisionError), db.lock("x") as held:  # noqa: PT012
        steal(other, db, held)
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), db.lock("x"):
        raise ZeroDivisionError
    assert is_free(other)

    async def work():
        its = async_client(daemon)
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with its.lock("x") as held:
                steal(other, its, held)
                raise ZeroDivisionError
        with pytest.raises(LockLost):  # noqa: PT012
            async with its.lock("x", ttl=0.6) as held:
                steal(other, its, held)
                await until(lambda: held.lost)
                with pytest.raises(LockLost):
                    await its.lock("x").acquire()
        assert is_free(other)
        await its.close()

    run(work())


def test_a_holder_lives_longer_than_its_ttl_whatever_its_thread_does(db, other):
    with db.lock("x", ttl=1.5) as held:
        waiter = Waiter(other, timeout=4)
        until_then = time.monotonic() + 2
        while time.monotonic() < until_then:  # it is at something
            sum(range(1000))
        time.sleep(1)  # it sleeps
        assert not waiter.got.is_set()
        assert not held.lost
    assert waiter.got.wait(PATIENCE)
    waiter.go_on()


def test_a_lock_that_is_granted_while_the_keeper_renews_others_is_renewed_too(
    db, other, monkeypatch
):
    """What the keeper has in mind is when those others are due, and it sleeps that long after."""
    let_go = Keeper._let_go
    renewing, granted = threading.Event(), threading.Event()

    def let_go_slowly(self):
        if not renewing.is_set() and any(each.since > began + 1 for each in self._look()):
            renewing.set()
            assert granted.wait(PATIENCE)
        return let_go(self)

    began = clock()
    monkeypatch.setattr(Keeper, "_let_go", let_go_slowly)
    with db.lock("long", ttl=6):
        assert renewing.wait(PATIENCE)
        with db.lock("x", ttl=1) as held:
            granted.set()
            waiter = Waiter(other, timeout=1.8)
            assert waiter.got.wait(PATIENCE)
            assert type(waiter.error) is RequestTimeout
            assert not held.lost


def test_a_holder_that_is_killed_makes_room_at_once_and_so_do_its_waiters(db, process):
    holder = process(waits=5)
    token = int(holder.said())
    await_waiting(db, 5)
    waiter = Waiter(db)
    await_waiting(db, 6)
    holder.process.kill()
    assert waiter.got.wait(PATIENCE)
    assert waiter.held.token > token
    waiter.go_on()
    await_waiting(db, 0)


def test_who_is_killed_before_the_daemon_has_read_that_it_waits_is_never_granted_it(
    db, daemon, process
):
    with db.lock("x"):
        waiting = process()
        await_waiting(db, 1)  # so its connections are there
        waiting.end()
        await_waiting(db, 0)
    with db.lock("x"):
        pass
    waiting = process(waits=8)
    waiting.said()
    with stopped(daemon):
        # asks for more, of which the daemon reads only when it is dead
        waiting.process.stdin.write("\n")
        waiting.process.stdin.flush()
        time.sleep(0.1)
        waiting.end()
    assert wait_until(lambda: is_free(db), "the lock to be free")


def test_a_holder_that_is_stopped_loses_it_within_its_ttl_and_is_told(db, process):
    holder = process(ttl=1)
    token = int(holder.said())
    waiter = Waiter(db)
    await_waiting(db, 1)
    os.kill(holder.pid, signal.SIGSTOP)
    assert waiter.got.wait(PATIENCE)
    assert waiter.held.token > token
    assert db.set("k", "of who has it", token=waiter.held.token)
    os.kill(holder.pid, signal.SIGCONT)
    holder.process.stdin.write("\n")
    holder.process.stdin.flush()
    assert [holder.said(), holder.said()] == ["refused", "lost"]
    assert db.get("k") == "of who has it"
    waiter.go_on()


# When the daemon goes away


@pytest.mark.parametrize("ending", ["kill", "stop"])
def test_over_a_restart_it_is_held_and_waited_for_as_before(location, ending):
    daemon = Daemon(location)
    served = []
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(daemon.client())) for _ in range(3)]
        with clients[0].lock("x", ttl=30) as held:
            waiters = []
            for number in range(6):
                waiters.append(Waiter(clients[number % 3], served))
                await_waiting(clients[0], number + 1)
                # Afterwards it counts when they asked as far as each can tell by the daemon's
                # clock, which is as exact as its answer to a hello was quick
                time.sleep(0.1)
            for _ in range(2):
                getattr(daemon, ending)()
                daemon = Daemon(location)
                with clients[0].lock("x") as again:
                    assert again.token == held.token
                await_waiting(clients[0], 6)
                assert clients[0].set("k", 1, token=held.token)
                assert not held.lost
                assert served == []
        for number, waiter in enumerate(waiters):
            assert waiter.got.wait(PATIENCE)
            assert served == waiters[: number + 1]
            if number == 3:  # while one of the waiters holds it
                getattr(daemon, ending)()
                daemon = Daemon(location)
                await_waiting(clients[0], 2)
            waiter.go_on()
    tokens = [held.token, *(waiter.held.token for waiter in waiters)]
    assert tokens == sorted(set(tokens))
    daemon.check_and_stop()


def test_over_a_restart_tasks_hold_and_wait_as_before(location):
    daemon = Daemon(location)

    async def work(daemon):
        db, other = async_client(daemon), async_client(daemon)
        served = []

        async def ask(number):
            async with db.lock("x", ttl=30) as held:
                served.append((number, held.token))

        async def all_wait():
            while (await other.info())["waiting"] < 20:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.01)

        async with other.lock("x", ttl=30) as held:
            tasks = []
            for number in range(20):
                tasks.append(asyncio.create_task(ask(number)))
                await asyncio.sleep(0.002)  # two of one millisecond are not told apart afterwards
            await all_wait()
            daemon.kill()
            daemon = await asyncio.to_thread(Daemon, location)
            await all_wait()
            assert served == []
            assert await other.set("k", 1, token=held.token)
        await asyncio.gather(*tasks)
        assert served == sorted(served)
        assert len({token for _, token in served} | {held.token}) == 21
        await db.close()
        await other.close()
        return daemon

    run(work(daemon)).check_and_stop()


def test_a_daemon_that_halts_for_less_than_the_ttl_loses_nothing(daemon, db, other):
    with db.lock("x", ttl=2) as held:
        waiter = Waiter(other)
        await_waiting(db, 1)
        with stopped(daemon):
            time.sleep(1.2)
        assert db.set("k", 1, token=held.token)
        time.sleep(1.5)  # by now nothing is left of the time that it had before
        assert db.set("k", 2, token=held.token)
        assert not waiter.got.is_set()
    assert waiter.got.wait(PATIENCE)
    waiter.go_on()


# How waiting ends


def test_ctrl_c_ends_the_waiting_and_frees_the_place(db, process):
    with db.lock("x", ttl=LONG):
        interrupted = process()
        await_waiting(db, 1)
        waiter = Waiter(db)
        await_waiting(db, 2)
        os.kill(interrupted.pid, signal.SIGINT)
        assert interrupted.said() == "interrupted"
        await_waiting(db, 1)
        assert interrupted.said() == "True"  # it goes on, and takes other locks
    assert waiter.got.wait(PATIENCE)
    waiter.go_on()
    assert interrupted.process.wait(PATIENCE) == 0
    assert db.info()["locks"] == 0


def test_a_cancelled_task_waits_no_longer_nor_holds_what_it_does_not_know_of(daemon, db):
    async def work():
        its = async_client(daemon)

        async def ask():
            async with its.lock("x", ttl=LONG):
                await asyncio.Event().wait()

        with db.lock("x", ttl=LONG):
            tasks = [asyncio.create_task(ask()) for _ in range(3)]
            await until(lambda: db.info()["waiting"] == 3)
            tasks[0].cancel()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(its.lock("x", ttl=LONG).acquire(), 0.05)
            await until(lambda: db.info()["waiting"] == 2)
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
        await until(lambda: db.info()["waiting"] == 1)
        tasks[1].cancel()  # it holds it
        await until(lambda: db.info()["waiting"] == 0)
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert is_free(db)
        await asyncio.gather(*(cancel_at_some_moment(its, n) for n in range(60)))
        await until(lambda: is_free(db))
        assert db.info()["locks"] == 0
        await its.close()

    async def cancel_at_some_moment(its, number):
        task = asyncio.create_task(its.lock("x", ttl=LONG).acquire())
        await asyncio.sleep(0.001 * (number % 7))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            held = await task
            # it was granted just before; of a task that has ended nobody else can release it
            await its._link.request(its._locks.keeper().release(held.lease))

    run(work())


def test_what_is_cancelled_behind_many_other_requests_is_never_held(daemon, db):
    """The daemon reads that it is given up, by a connection that is shorter, before it reads it."""

    async def work():
        its = async_client(daemon)
        keeper = its._locks.keeper()
        async with its.lock("y", ttl=LONG):
            await until(lambda: keeper._session.channel)
        with stopped(daemon):
            others = [asyncio.create_task(its.set("k", "x" * 1000)) for _ in range(900)]
            task = asyncio.create_task(its.lock("x", ttl=LONG).acquire())
            await asyncio.sleep(0.2)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(0.2)  # its unlock is on its way
        await asyncio.gather(*others)
        await until(lambda: not keeper._leases)
        assert (await its.info())["locks"] == 0
        assert is_free(db)
        await its.close()

    run(work())


def test_close_lets_go_of_what_is_held_and_ends_who_waits(db, other, daemon):
    closing = daemon.client()
    closing.lock("x", ttl=LONG).acquire()
    waiter = Waiter(closing, timeout=None)
    patient = Waiter(closing, timeout=PATIENCE)
    await_waiting(db, 2)
    first = Waiter(db)
    await_waiting(db, 3)
    closing.close()
    assert first.got.wait(PATIENCE)
    assert first.error is None
    for each in (waiter, patient):
        each.join(PATIENCE)
        assert not each.is_alive()
        assert type(each.error) is Unavailable
        assert "is closed" in str(each.error)
    with pytest.raises(Unavailable, match="is closed"):
        closing.lock("x").acquire()
    first.go_on()
    assert is_free(other)


def test_closing_an_async_one_ends_who_waits(daemon, db):
    async def work():
        its = async_client(daemon)
        holds = asyncio.Event()

        async def ask():
            async with its.lock("x", ttl=LONG):
                holds.set()
                await asyncio.Event().wait()

        holder = asyncio.create_task(ask())
        await holds.wait()
        waiter = asyncio.create_task(ask())
        await until(lambda: db.info()["waiting"] == 1)
        await its.close()
        with pytest.raises(Unavailable, match="is closed"):
            await waiter
        assert not holder.done()  # it is not asking anything
        await until(lambda: is_free(db))
        holder.cancel()
        with pytest.raises(asyncio.CancelledError):  # not that it was closed
            await holder

    run(work())


# What it leaves behind


def test_a_forked_child_does_not_hold_what_its_parent_does(db, other):
    def child():
        with pytest.raises(RequestTimeout):
            db.lock("x", timeout=0).acquire()
        with pytest.raises(LockLost, match="not held here"):
            db.lock("x").release()
        with db.lock("y", ttl=LONG) as its:
            assert its.token > held.token
            assert not is_free(other, "y")

    with db.lock("x", ttl=2) as held:
        assert in_fork(child)
        assert in_fork(lambda: db.close())
        assert not is_free(other)
        assert wait_until(lambda: is_free(other, "y"), "what the child held to be free")
        with db.lock("x") as again:
            assert again.token == held.token
        time.sleep(2.5)  # the parent renews as before
        assert not held.lost
    assert is_free(other)


def test_threads_of_a_forked_child_begin_anew_together(db, monkeypatch):
    """Of two that find the fork at once, the slower one does not undo what the other holds."""

    def child():
        first_is_at_it, has_it = threading.Event(), threading.Event()

        def leave_slowly(connections):
            if not first_is_at_it.is_set():
                first_is_at_it.set()
                has_it.wait(1)  # in vain, if the other waits for this one
            leave(connections)

        monkeypatch.setattr(locks, "leave", leave_slowly)
        slower = Waiter(db, timeout=0)
        assert first_is_at_it.wait(PATIENCE)
        with db.lock("y"):
            has_it.set()
            assert slower.got.wait(PATIENCE)
        slower.go_on()

    with db.lock("z"):
        assert in_fork(child)


def test_a_dropped_handle_lets_go_and_nothing_is_left_of_a_closed_one(daemon, db):
    def threads():
        return sum(thread.name == "pickledbd-keeper" for thread in threading.enumerate())

    assert is_free(db)  # who looks has a keeper, too
    wait_until(lambda: threads() == 1, "those of tests before to end")
    files = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None
    before = threads()
    for drop in (True, False):
        for _ in range(10):
            dropped = daemon.client()
            dropped.lock("x", ttl=LONG).acquire()
            assert threads() == before + 1
            assert not is_free(db)
            if not drop:
                dropped.close()
            del dropped
            gc.collect()
            wait_until(lambda: threads() == before, "the keeper's thread to end")
            wait_until(lambda: is_free(db), "the lock to be free")
    if files is not None:
        wait_until(
            lambda: len(os.listdir("/proc/self/fd")) <= files + 4,  # two for each of 20 would be 40
            "the descriptors to be closed",
        )
    assert db.info()["locks"] == 0


def test_one_that_is_closed_just_as_its_keeper_begins_does_not_keep_its_lock(
    daemon, db, monkeypatch
):
    """Before the keeper can be woken, and after it has looked whether it is closed."""
    closing = daemon.client()
    keeper = closing._locks.keeper()
    pair, granted = socket.socketpair, threading.Event()

    def late():
        assert granted.wait(PATIENCE)
        keeper.close(wait=False)
        return pair()

    monkeypatch.setattr(socket, "socketpair", late)
    closing.lock("x", ttl=LONG).acquire()
    granted.set()
    keeper._thread.join(PATIENCE)
    assert not keeper._thread.is_alive()
    wait_until(lambda: is_free(db), "the lock to be free")


def test_a_closed_one_whose_daemon_is_gone_for_good_leaves_no_thread(location):
    daemon = Daemon(location)
    db = daemon.client(timeout=None)
    db.lock("x", ttl=LONG).acquire()
    thread = db._locks.keeper()._thread
    daemon.kill()
    time.sleep(0.5)  # it looks for it
    db.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    os.unlink(f"{location}.lock")


@pytest.mark.parametrize("halted", [False, True])
def test_a_process_that_ends_with_a_held_lock_neither_hangs_nor_warns(daemon, db, halted):
    script = """
import sys
from pickledbd_client import PickleDB
db = PickleDB(sys.argv[1], autostart=False)
db.lock("x", ttl=600).acquire()
db.lock("y", ttl=0.6).acquire()
print("held", flush=True)
sys.stdin.readline()
"""
    process = subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", script, str(daemon.location)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        with stopped(daemon) if halted else contextlib.nullcontext():
            if halted:
                time.sleep(0.5)  # it asks, and is not answered
            out, err = process.communicate("\n", timeout=PATIENCE)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, "", "")
    wait_until(lambda: is_free(db), "the lock to be free")


def test_a_holder_starts_a_daemon_again_as_any_request_does(location):
    with contextlib.closing(PickleDB(location)) as db:
        with db.lock("x", ttl=LONG) as held:
            pid = owner_pid(location)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not is_alive(pid), "its end")
            assert db.set("k", 1, token=held.token)
            assert owner_pid(location) != pid
        assert db.info()["locks"] == 0
