"""`watch()`: what is told, what is not, how it ends, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
import uuid

import pytest
import zmq

from looped import async_client, run, stopped, until
from pickledbd_client import (
    Change,
    Conflict,
    InvalidValue,
    Resync,
    Unavailable,
    calls,
)
from pickledbd_client import watching as watching_room
from pickledbd_client.watching import Watch
from support import PATIENCE, Daemon, in_fork, owner_pid, wait_until
from watching import KINDS, Mirror, Told

both_kinds = pytest.mark.parametrize("kind", KINDS)


def waiting(db):
    return db.info()["waiting"]


def plain(told):
    """Changes without their sequences: key and value, or the key alone of one that is removed."""
    return [(one.key,) if one.removed else (one.key, one.value) for one in told]


def conflict(db):
    with db.batch() as batch:
        batch.set("never", 1)
        batch.if_version("a", 0)


def some_steps(db):
    with db.batch() as batch:
        batch.set("a", 1)
        batch.remove("a")
        batch.incr("n", 2)


def all_anew(db):
    db.db = {"z": 1, "a": 2}


ODD = "\u00e9\U0001f40d\0\n"

# What is done, and what is told of it
DONE = [
    (lambda db: db.set("a", 1), [("a", 1)]),
    (lambda db: db.set("a", 1), [("a", 1)]),
    (lambda db: db.set("a", None), [("a", None)]),
    (lambda db: db.set("bytes", b"\0\xff"), [("bytes", b"\0\xff")]),
    (lambda db: db.set(ODD, {"ü": [b"x", 1.5]}), [(ODD, {"ü": [b"x", 1.5]})]),
    (lambda db: db.set("", ""), [("", "")]),
    (lambda db: db.set_many({"c": b"1", "b": 2, 7: 3}), [("c", b"1"), ("b", 2), ("7", 3)]),
    (lambda db: db.set_many({}), []),
    (lambda db: db.remove("b"), [("b",)]),
    (lambda db: db.remove("b"), []),
    (lambda db: db.setdefault("b", 4), [("b", 4)]),
    (lambda db: db.setdefault("b", 5), []),
    (lambda db: db.pop("b"), [("b",)]),
    (lambda db: db.pop("b", None), []),
    (lambda db: db.incr("n"), [("n", 1)]),
    (lambda db: db.incr("n", 0.5), [("n", 1.5)]),
    (lambda db: db.incr("c"), InvalidValue),
    (lambda db: db.set("a", object()), InvalidValue),
    (lambda db: db.set_many({"ok": 1, "bad": 2**64}), InvalidValue),
    (conflict, Conflict),
    (some_steps, [("a", 1), ("a",), ("n", 3.5)]),
    (lambda db: db.cas("n", db.get_versioned("n")[1], 6), [("n", 6)]),
    (lambda db: db.cas("n", 0, 7), []),
    (lambda db: db.modify("n", lambda n: n + 1), [("n", 7)]),
    (lambda db: db.remove_many(["7", "nothing", "c"]), [("7",), ("c",)]),
    (lambda db: db.expire("n", 1000), []),
    (lambda db: db.persist("n"), []),
    (lambda db: db.set("p", 1, ttl=1000), [("p", 1)]),
    (lambda db: db.incr("p"), [("p", 2)]),
    (lambda db: db.set("last", 1) and db.popitem(), [("last", 1), ("last",)]),
    (lambda db: db.update({"x": 1}, y=2), [("x", 1), ("y", 2)]),
    (lambda db: db.save(), []),
    (lambda db: db.clear(), ["all"]),
    (lambda db: db.clear(), ["all"]),  # the mark that is set after each
    (lambda db: db.update(a=1, b=2), [("a", 1), ("b", 2)]),
    (all_anew, ["all", ("z", 1), ("a", 2)]),
]


@both_kinds
def test_each_change_is_told_as_it_is_and_what_is_refused_is_not(daemon, db, kind):
    db.set("before", 1)
    with Told(kind, daemon.location) as told:
        seq = 0
        for act, what in DONE:
            there = db.all()
            refused = isinstance(what, type)
            with pytest.raises(what) if refused else contextlib.nullcontext():
                act(db)
            expected = [] if refused else what
            if "all" in expected:
                expected = [(key,) for key in there] + expected[1:]
            mark = uuid.uuid4().hex
            db.set(mark, 0)
            found = told.upto(mark)
            assert plain(found) == expected
            assert all(type(one) is Change for one in found)
            assert all(one.value is None for one in found if one.removed)
            assert [one.seq for one in found] == sorted({one.seq for one in found})
            assert not found or found[0].seq > seq
            seq = found[-1].seq if found else seq
        assert db.all() == ["z", "a", mark]
    wait_until(lambda: waiting(db) == 0, "the watch to be forgotten")


@both_kinds
def test_what_expires_is_told_as_removed_once(daemon, db, kind):
    with Told(kind, daemon.location, "e") as told:
        db.set_many({"e1": 1, "e2": 2, "f": 3}, ttl=0.05)
        db.set("e3", 3, ttl=1000)
        db.set("e4", 4, ttl=1000)
        db.set("e4", 5)  # it does so no more
        db.set("e3", 6, ttl=0.05)
        found = plain([told.next() for _ in range(9)])
        histories = {"e1": [1], "e2": [2], "e3": [3, 6], "e4": [4, 5]}
        for key, values in histories.items():
            expected = [(key, value) for value in values] + ([] if key == "e4" else [(key,)])
            assert [each for each in found if each[0] == key] == expected
        db.set("e5", 1)
        assert told.upto("e5") == []


class Interrupted(BaseException):
    """What a signal's handler raises."""


def test_an_answer_that_is_interrupted_while_it_is_taken_is_asked_for_again(db, monkeypatch):
    with db.watch() as changes:
        db.set_many({f"k{n}": n for n in range(5)})
        made = Change.__new__
        left = [3]

        def interrupted(*args):
            left[0] -= 1
            if not left[0]:
                raise Interrupted
            return made(*args)

        with monkeypatch.context() as patch:
            patch.setattr(watching_room, "Change", lambda *args: interrupted(Change, *args))
            with pytest.raises(Interrupted):
                next(changes)
        assert plain([next(changes) for _ in range(5)]) == [(f"k{n}", n) for n in range(5)]
        db.set("more", 1)
        assert next(changes)[:2] == ("more", 1)


@both_kinds
@pytest.mark.parametrize("nothing", ["", None])
def test_a_watch_of_no_prefix_watches_all(daemon, db, kind, nothing):
    with Told(kind, daemon.location, nothing) as told:
        db.set("k", 1)
        assert plain([told.next()]) == [("k", 1)]
    assert db.all(nothing) == ["k"]
    assert db.all(prefix=0) == []


def test_watchers_of_other_prefixes_are_told_the_same_as_far_as_it_is_theirs(daemon, db):
    """Also those of one prefix within another's, and of one longer than the keys."""
    prefixes = ["", "u", "user:", "user:1", "ü", "user:1:long", "nobody's"]
    chance = random.Random(5)
    names = ["u", "us", "user:1", "user:12", "user:2", "ü", "üx", "v", ""]
    with contextlib.ExitStack() as stack:
        all_told = [
            stack.enter_context(Told(KINDS[n % 2], daemon.location, prefix))
            for n, prefix in enumerate(prefixes)
        ]
        for n in range(300):
            name = chance.choice(names)
            if chance.random() < 0.6:
                db.set(name, n)
            elif chance.random() < 0.5:
                db.remove(name)
            else:
                db.set_many(dict.fromkeys(names, -n))
        for prefix in prefixes:
            db.set(prefix + "end", 0)
        found = [told.upto(prefix + "end") for prefix, told in zip(prefixes, all_told, strict=True)]
        whole = [*found[0], *all_told[0].upto(prefixes[-1] + "end")]
        for prefix, its in zip(prefixes, found, strict=True):
            expected = [one for one in whole if one.key.startswith(prefix)]
            assert its == expected[: len(its)]
            assert {one.key for one in expected[len(its) :]} <= {p + "end" for p in prefixes}


@both_kinds
def test_since_goes_on_where_it_was_without_loss(daemon, db, kind):
    with Told(kind, daemon.location, "k") as told:
        db.set("k1", 1)
        seq = told.next().seq
    db.set("k2", 2)
    db.set("other", 2)
    db.remove("k1")
    with Told(kind, daemon.location, "k", seq) as told:
        assert plain([told.next(), told.next()]) == [("k2", 2), ("k1",)]
        db.set("k3", 3)
        assert plain([told.next()]) == [("k3", 3)]
    with Told(kind, daemon.location, "k", 0) as told:  # nobody knows
        one = told.next()
        assert type(one) is Resync
        assert one.items == {"k2": 2, "k3": 3}
        db.set("k4", b"4")
        assert told.next() == Change("k4", b"4", removed=False, seq=one.seq + 1)


@both_kinds
def test_after_kill_9_of_the_daemon_it_is_to_resync_and_goes_on(daemon, db, kind):
    with Told(kind, daemon.location, "k") as told:
        db.set_many({"k1": b"1", "l": 1})
        mirror = Mirror()
        for n in range(3):
            db.set("k2", n)
            daemon.kill()
            daemon = Daemon(daemon.location)
            db.set("k3", n)  # it may be there when the watcher comes, or be told after that
            db.set("k end", n)
            while mirror.content.get("k end") != n or mirror.resyncs <= n:
                mirror.take(told.next())
            assert mirror.content == {"k1": b"1", "k2": n, "k3": n, "k end": n}
        assert mirror.resyncs == 3
    daemon.check_and_stop()


def test_who_is_too_far_behind_is_to_resync_and_goes_on(db, other):
    by_count, by_bytes = db.watch("k"), db.watch("k")
    db.set("k", 1)
    assert plain([next(by_count)]) == [("k", 1)]
    for n in range(7):
        other.set_many({f"{n}:{m}": 0 for m in range(9000)})
    assert plain([next(by_bytes)]) == [("k", 1)]
    db.set("k", 2)
    assert plain([next(by_count)]) == [("k", 2)]  # far behind, but not too far
    for n in range(15):
        other.set_many({f"{n}:{m}": 0 for m in range(9000)})
    found = next(by_count)
    assert type(found) is Resync
    assert found.items == {"k": 2}
    by_bytes = db.watch("k", found.seq)
    for _ in range(70):
        other.set("large", "x" * 2**20)
    db.set("k", 3)
    for watch in (by_bytes, by_count):
        found = next(watch)
        assert type(found) is Resync
        assert found.items == {"k": 3}
    db.set("k", 4)
    assert plain([next(by_bytes), next(by_count)]) == [("k", 4)] * 2


@both_kinds
def test_ten_thousand_keys_at_once_are_told_one_by_one_and_more_are_not(daemon, db, kind):
    many = {f"k{n}": n for n in range(10_000)}
    with Told(kind, daemon.location) as told:
        db.set_many(many)
        assert plain(told.next() for _ in many) == list(many.items())
        more = {f"l{n}": n for n in range(10_001)}
        db.set_many(more)
        found = told.next()
        assert type(found) is Resync
        assert found.items == many | more
        db.purge()
        found = told.next()
        assert (type(found), found.items) == (Resync, {})
        db.set("a", 1)
        assert told.next() == Change("a", 1, removed=False, seq=found.seq + 1)


@both_kinds
def test_a_replacement_is_told_key_by_key_whatever_its_size_up_to_ten_thousand(daemon, db, kind):
    """Of the keys before and those after together: 2,000 are applied otherwise than 2,001."""
    contents = [
        {f"{name}{n}": n for n in range(many)}
        for name, many in (("a", 1500), ("b", 2500), ("c", 7500), ("d", 2501))
    ]
    with Told(kind, daemon.location) as told:
        before = {}
        for content in contents:
            db.db = content
            if content is contents[-1]:
                found = told.next()
                assert (type(found), found.items) == (Resync, content)
            else:
                expected = [(key,) for key in before] + list(content.items())
                assert plain(told.next() for _ in expected) == expected
            before = content


@contextlib.contextmanager
def counting(daemon, many):
    """As many threads, each of which counts at a key of its own."""
    over = threading.Event()

    def count(name):
        with contextlib.closing(daemon.client()) as mine:
            while not over.is_set():
                mine.incr(f"n:{name}")

    threads = [threading.Thread(target=count, args=(name,)) for name in range(many)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(PATIENCE)


@both_kinds
def test_what_follows_a_resync_goes_on_from_its_items_without_gap_or_double(daemon, db, kind):
    """Counters grow by one with each change; the snapshots are taken in their midst."""
    bulk = {f"bulk{n}": 0 for n in range(10_001)}
    mirror = Mirror()

    def take(one):
        if type(one) is Change:
            assert one.value == mirror.content.get(one.key, 0) + 1
        mirror.take(one)

    with Told(kind, daemon.location, "n:") as told:
        with counting(daemon, 3):
            for n in range(4):
                for _ in range(200):
                    take(told.next())
                db.set_many(bulk)
                while mirror.resyncs == n:
                    take(told.next())
        db.incr("n:end")
        for one in told.upto("n:end"):
            take(one)
        assert mirror.resyncs == 4
        assert mirror.content | {"n:end": 1} == dict(db.items("n:"))


# How it ends

WAITING = """
import asyncio, sys
from pickledbd_client import AsyncPickleDB, PickleDB

kind, location = sys.argv[1:]

def blocking():
    db = PickleDB(location, autostart=False)
    watch = db.watch("k")
    print("ready", flush=True)
    try:
        for change in watch:
            print(change.key, flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    sys.stdin.readline()
    print(next(watch).key, flush=True)

async def asynchronous():
    db = AsyncPickleDB(location, autostart=False)
    async with db.watch("k") as watch:
        print("ready", flush=True)
        async for change in watch:
            print(change.key, flush=True)

try:
    blocking() if kind == "blocking" else asyncio.run(asynchronous())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


class Process:
    """One that watches, and says what it is told."""

    def __init__(self, kind, location):
        self.process = subprocess.Popen(
            [sys.executable, "-c", WAITING, kind, str(location)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "ready"

    def line(self):
        assert select.select([self.process.stdout], [], [], PATIENCE)[0], "it says nothing"
        return self.process.stdout.readline().strip()

    def signal(self, number):
        self.process.send_signal(number)

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.process.kill()
        self.process.communicate(timeout=PATIENCE)


@both_kinds
def test_ctrl_c_ends_a_loop_that_waits_and_leaves_nothing(daemon, db, kind):
    with Process(kind, daemon.location) as watcher:
        db.set("k1", 1)
        assert watcher.line() == "k1"
        wait_until(lambda: waiting(db) == 1, "it to wait again")
        watcher.signal(signal.SIGINT)
        assert watcher.line() == "interrupted"
        wait_until(lambda: waiting(db) == 0, "it to be forgotten")
        db.set("k2", 2)
        if kind == "blocking":  # and nothing is lost by it
            watcher.process.stdin.write("go on\n")
            watcher.process.stdin.flush()
            assert watcher.line() == "k2"
        assert watcher.process.wait(PATIENCE) == 0


@both_kinds
def test_close_from_elsewhere_ends_it(daemon, db, kind):
    for is_busy in (False, True):
        told = Told(kind, daemon.location)
        if is_busy:
            for n in range(20):
                db.set("k", n)
        else:
            wait_until(lambda: waiting(db) == 1, "it to wait")
        told.close()
        told.join()
    wait_until(lambda: waiting(db) == 0, "nothing to be left")


def test_close_ends_it_also_in_the_moment_before_it_asks(db):
    """Then the daemon hears first that this watcher waits no longer, and then that it waits."""

    def request(call):
        if call.op == "watch" and armed:
            armed.clear()
            closer = threading.Thread(target=watch.close)
            closer.start()
            closer.join(PATIENCE)
        return db._link.request(call)

    armed = []
    watch = Watch(request, "", None)
    armed.append(True)
    left = []
    thread = threading.Thread(target=lambda: left.extend(watch), daemon=True)
    thread.start()
    thread.join(3)
    hung = thread.is_alive()
    db.set("k", 1)  # which would end it in any case
    thread.join(PATIENCE)
    assert not hung
    assert not thread.is_alive()


def test_closing_the_database_ends_its_watches(daemon, db):
    mine = daemon.client()
    ended = []

    def work(prefix):
        for one in mine.watch(prefix):
            ended.append(one)  # noqa: PERF402 - it is to be a loop
        ended.append(prefix)

    threads = [threading.Thread(target=work, args=(p,), daemon=True) for p in ("a", "b", "")]
    for thread in threads:
        thread.start()
    wait_until(lambda: waiting(db) == 3, "all to wait")
    mine.close()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(ended) == ["", "a", "b"]
    wait_until(lambda: waiting(db) == 0, "nothing to be left")


def test_closing_waits_once_for_a_daemon_that_says_nothing(daemon, db):
    mine = daemon.client(timeout=0.5)
    watches = [mine.watch() for _ in range(8)]
    for watch in watches:
        threading.Thread(target=next, args=(watch, None), daemon=True).start()
    wait_until(lambda: waiting(db) == 8, "all to wait")
    with stopped(daemon):
        began = time.monotonic()
        mine.close()
        assert time.monotonic() - began < 2
    db.set("a", 1)
    wait_until(lambda: waiting(db) == 0, "nothing to be left")


def test_watches_are_ended_while_other_threads_begin_some(db):
    interval = sys.getswitchinterval()
    over = threading.Event()

    def begin():
        while not over.is_set():
            db.watch(since=0)  # which is gone at once, too

    kept = [db.watch(since=0) for _ in range(1000)]
    threads = [threading.Thread(target=begin) for _ in range(2)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for _ in range(50):
            assert db._end_watches() == []
    finally:
        over.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert [next(watch, "ended") for watch in kept] == ["ended"] * len(kept)


def test_closing_an_async_one_ends_its_watches_also_those_of_other_event_loops(daemon, db):
    mine = async_client(daemon)

    async def follow(prefix):
        async with mine.watch(prefix) as watch:
            return [one async for one in watch]

    async def elsewhere():
        return await asyncio.gather(follow("a"), follow("b"))

    async def work():
        faults = []
        asyncio.get_running_loop().set_exception_handler(lambda _, told: faults.append(told))
        shared = mine.watch("")
        steps = [asyncio.create_task(anext(shared, "ended")) for _ in range(3)]
        there = asyncio.create_task(asyncio.to_thread(run, elsewhere()))
        here = asyncio.create_task(follow("c"))
        await until(lambda: waiting(db) == 4)
        with stopped(daemon):  # it need not be there for that
            await mine.close()
            assert await here == []
            assert await asyncio.gather(*steps) == ["ended"] * 3
            assert await there == [[], []]
        with pytest.raises(Unavailable, match="closed"):
            await anext(mine.watch())
        assert faults == []

    run(work())
    wait_until(lambda: waiting(db) == 0, "nothing to be left")


def test_closing_a_database_that_watched_starts_no_daemon(location):
    from pickledbd_client import PickleDB  # noqa: PLC0415 - one that may start a daemon

    daemon = Daemon(location)
    mine = PickleDB(location, timeout=PATIENCE)
    watch = mine.watch()
    mine.set("a", 1)
    for _ in watch:
        break
    daemon.stop()
    mine.close()
    assert owner_pid(location) is None
    assert list(watch) == []


def test_break_leaves_nothing_and_the_next_loop_goes_on(db):
    watch = db.watch()
    for n in range(5):
        db.set("k", n)
    for one in watch:
        if one.value == 1:
            break
    assert waiting(db) == 0
    assert [next(watch).value for _ in range(3)] == [2, 3, 4]
    assert waiting(db) == 0
    db.close()
    assert list(watch) == []


def test_threads_of_one_handle_watch_each_for_itself(db):
    found = {}
    begun = threading.Barrier(21)

    def work(n):
        with db.watch("k:" if n % 2 else "") as watch:
            begun.wait(PATIENCE)
            its = found[n] = []
            for one in watch:
                its.append(one)
                if one.key == "k:end":
                    break

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(20)]
    for thread in threads:
        thread.start()
    begun.wait(PATIENCE)
    for n in range(200):
        db.set(f"k:{n % 7}", n)
    db.set("k:end", 0)
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert plain(found[0]) == [*((f"k:{n % 7}", n) for n in range(200)), ("k:end", 0)]
    assert all(its == found[0] for its in found.values())
    wait_until(lambda: waiting(db) == 0, "nothing to be left")


def test_threads_that_share_one_watch_are_told_each_change_once(db, other):
    found = []
    watch = db.watch()

    def work():
        for one in watch:
            found.append(one.value)  # noqa: PERF401 - others append meanwhile

    threads = [threading.Thread(target=work, daemon=True) for _ in range(5)]
    for thread in threads:
        thread.start()
    for n in range(200):
        other.set("k", n)
    wait_until(lambda: len(found) >= 200 and waiting(other) == 1, "all to be told, one to wait")
    watch.close()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert sorted(found) == list(range(200))
    assert waiting(other) == 0


def test_a_forked_child_goes_on_by_itself_and_its_close_is_not_its_parents(db, other):
    watch = db.watch()
    other.set("k", 1)
    found = []
    thread = threading.Thread(target=lambda: found.extend(watch), daemon=True)

    def in_child():
        assert next(watch).value == 1
        db.close()

    assert in_fork(in_child)
    thread.start()
    wait_until(lambda: len(found) == 1 and waiting(other) == 1, "it to wait")

    def in_another():  # while the parent's thread waits, and holds what it needs for that
        other.set("k", 2)
        assert next(watch).value == 2
        db.close()

    assert in_fork(in_another)
    wait_until(lambda: len(found) == 2 and waiting(other) == 1, "it to be told, and wait on")
    assert [one.value for one in found] == [1, 2]
    watch.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert waiting(other) == 0


# Async


def test_a_forked_child_goes_on_by_itself_where_its_parent_s_task_waits(daemon, db):
    async def work():
        mine = async_client(daemon)
        async with mine.watch() as watch:
            step = asyncio.create_task(anext(watch))
            await until_parked(mine, 1)

            async def in_child():
                db.set("k", 1)
                assert (await anext(watch)).value == 1
                await watch.close()
                await mine.close()

            def child():
                asyncio._set_running_loop(None)  # else it is the parent's
                run(asyncio.wait_for(in_child(), PATIENCE / 2))

            assert in_fork(child)
            assert (await step).value == 1
        await mine.close()

    run(work())
    wait_until(lambda: waiting(db) == 0, "nothing to be left")


async def until_parked(db, number):
    async with asyncio.timeout(20):
        while (await db.info())["waiting"] != number:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)


def test_steps_that_are_given_up_lose_nothing_and_do_not_add_up(daemon):
    async def work():
        mine = async_client(daemon)
        chance = random.Random(1)
        found = []
        async with mine.watch("k") as watch:
            for n in range(100):
                if chance.random() < 0.5:
                    await mine.set("k", n)
                else:
                    await mine.set("other", n)
                with contextlib.suppress(TimeoutError):
                    while True:
                        step = anext(watch)
                        found.append(await asyncio.wait_for(step, chance.choice((0, 0.001, 0.01))))
                assert (await mine.info())["waiting"] <= 2  # with that of `told`
            await mine.set("k end", 0)
            while not found or found[-1].key != "k end":
                found.append(await anext(watch))
            assert [type(one) for one in found] == [Change] * len(found)
            chance = random.Random(1)
            assert len({one.seq for one in found}) == len(found)
        await until_parked(mine, 1)
        await mine.close()
        return found

    with Told("blocking", daemon.location, "k") as told:
        found = run(work())
        assert found[:-1] == told.upto("k end")


def test_a_watch_that_nobody_reads_any_more_leaves_nothing_waiting(daemon):
    """As in a server that watches for each of its connections, until that is cancelled."""

    async def work():
        mine = async_client(daemon)

        async def follow():
            async for _ in mine.watch("k"):
                pass

        for _ in range(3):
            tasks = [asyncio.create_task(follow()) for _ in range(10)]
            await until_parked(mine, 10)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            del tasks, task
            gc.collect()
            await until_parked(mine, 0)
        await mine.close()

    run(work())


def test_an_async_watch_goes_on_once_there_is_a_daemon_again(daemon, db):
    async def work():
        mine = async_client(daemon, timeout=0.5)
        async with mine.watch("k") as watch:
            await mine.set("k", 1)
            assert (await anext(watch)).value == 1
            daemon.kill()
            with pytest.raises(Unavailable):
                await anext(watch)
            again = Daemon(daemon.location)
            db.set("k", 2)
            found = await anext(watch)
            assert type(found) is Resync
            assert found.items == {"k": 2}
            db.set("k", 3)
            assert (await anext(watch)).value == 3
        await mine.close()
        return again

    run(work()).check_and_stop()


def test_a_blocking_watch_does_so_too(daemon, db):
    with contextlib.closing(daemon.client(timeout=0.5)) as mine:
        watch = mine.watch("k")
        mine.set("k", 1)
        assert next(watch).value == 1
        daemon.kill()
        with pytest.raises(Unavailable):
            next(watch)
        again = Daemon(daemon.location)
        db.set("k", 2)
        found = next(watch)
        assert type(found) is Resync
        assert found.items == {"k": 2}
    again.check_and_stop()


def test_several_async_watches_of_one_handle_and_what_ends_them(daemon, db):
    async def work():
        mine = async_client(daemon)
        faults = []
        asyncio.get_running_loop().set_exception_handler(lambda _, told: faults.append(told))
        found = {"a": [], "b": [], "": []}
        begun = []

        async def follow(prefix):
            async with mine.watch(prefix) as watch:
                begun.append(watch)
                async for one in watch:
                    found[prefix].append(one)

        tasks = [asyncio.create_task(follow(prefix)) for prefix in found]
        await until(lambda: len(begun) == 3)
        await asyncio.gather(*(mine.set(f"{'ab'[n % 2]}{n}", n) for n in range(100)))
        await until(lambda: len(found[""]) == 100 and len(found["a"]) == len(found["b"]) == 50)
        assert sorted(found["a"] + found["b"], key=lambda one: one.seq) == found[""]
        await until_parked(mine, 3)
        for _ in range(2):  # once more does no harm
            await begun[0].close()
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        tasks[1].cancel()
        await asyncio.wait([tasks[1]])
        await until_parked(mine, 1)
        late = mine.watch("")
        await late.__aenter__()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(late), 0.05)
        await mine.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(result is None for result in results) == 2
        assert sum(isinstance(r, asyncio.CancelledError) for r in results) == 1
        assert [one async for one in late] == []
        del late, begun[:], tasks, results
        gc.collect()
        await asyncio.sleep(0)
        assert faults == []

    run(work())
    wait_until(lambda: waiting(db) == 0, "nothing to be left")


def test_tasks_that_share_one_watch_are_told_each_change_once(daemon):
    async def work():
        mine = async_client(daemon)
        found = []
        async with mine.watch() as watch:

            async def follow():
                async for one in watch:
                    found.append(one.value)  # noqa: PERF401 - others append meanwhile

            tasks = [asyncio.create_task(follow()) for _ in range(5)]
            for n in range(200):
                await mine.set("k", n)
            await until(lambda: 199 in found)
            await until_parked(mine, 1)
            await watch.close()
            await asyncio.gather(*tasks)
        assert sorted(found) == list(range(200))
        await mine.close()

    run(work())


# Watchers that die or do not read


def memory_of(pid):
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@both_kinds
def test_a_watcher_that_is_killed_leaves_nothing(daemon, db, kind):
    with Process(kind, daemon.location) as watcher:
        wait_until(lambda: waiting(db) == 1, "it to wait")
        watcher.signal(signal.SIGKILL)
        wait_until(lambda: waiting(db) == 0, "it to be forgotten")
    with Process(kind, daemon.location) as watcher:  # and in the midst of much
        for n in range(300):
            db.set("k", n)
            if n == 150:
                watcher.signal(signal.SIGKILL)
        wait_until(lambda: waiting(db) == 0, "it to be forgotten")


def test_who_is_gone_before_the_daemon_reads_that_it_watches_leaves_nothing(daemon, db):
    seq = db.watch()._watching._seen.upto
    for _ in range(3):
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.connect(daemon.endpoint)
            dealer.rcvtimeo = int(PATIENCE * 1000)
            hello = {"id": 1, "client": "c", "op": "hello", "args": {"versions": [1]}}
            dealer.send(json.dumps(hello).encode())
            dealer.recv()
            with stopped(daemon):
                args = {"since": seq, "watcher": "w"}
                watch = {"id": 2, "client": "c", "op": "watch", "args": args}
                dealer.send(json.dumps(watch).encode())
                dealer.close(linger=int(PATIENCE * 1000))
                context.term()  # waits until the system has it
    for _ in range(5):
        db.ping()
    wait_until(lambda: waiting(db) == 0, "them to be forgotten", patience=10)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_watcher_that_is_stopped_harms_nobody(daemon, db):
    value = "x" * 400_000
    with Process("blocking", daemon.location) as watcher, Told("blocking", daemon.location) as told:
        wait_until(lambda: waiting(db) == 2, "both to wait")
        watcher.signal(signal.SIGSTOP)
        before = memory_of(daemon.pid)
        mirror = Mirror()
        for n in range(500):
            db.set("k", [n, value])
            mirror.take(told.next())
            assert mirror.content["k"][0] == n
        assert mirror.resyncs == 0
        # What is held for who may come back, and what some answers take
        assert memory_of(daemon.pid) - before < 2 * 2**26
        watcher.signal(signal.SIGCONT)
        assert watcher.line() == "k"  # what it was answered before it was stopped


def test_close_is_for_who_waits_alone(daemon, db):
    """Nothing that an answer tells is lost by an `unwatch` of another watcher."""
    with Told("blocking", daemon.location) as told:
        wait_until(lambda: waiting(db) == 1, "it to wait")
        db._link.request(calls.unwatch("another"))
        assert waiting(db) == 1
        db.set("k", 1)
        assert told.next().value == 1
