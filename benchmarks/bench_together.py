"""Measure counters, locks and watching: what processes do with each other, beside redis-py.

    python benchmarks/bench_together.py [--quick] [--write]

Calls of one client in lock step; a lock handed from one process to another, and a change told to
one, by the one clock that both read; and writes at full speed beside 200 watchers of other keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import redis
import servers
from harness import (
    Figures,
    Report,
    Target,
    command_line,
    divided,
    in_turn,
    latencies,
    machine,
    number,
    targets,
)
from peers import ECHO, REDIS, home, opened
from peers import PEERS as ALL

from pickledbd_client import AsyncPickleDB, PickleDB

OURS = "pickledbd"
WATCHERS = 200
IN_FLIGHT = 500
SLEEP = 0.1
"""Between two looks of redis-py's waiting lock, as it comes."""


def our_database(folder: Path) -> PickleDB:
    return PickleDB(f"ipc://{folder}/socket", cache_bytes=0)


def their_database(folder: Path) -> Any:
    return redis.Redis(unix_socket_path=str(folder / "socket"))


def our_lock(folder: Path) -> Any:
    return our_database(folder).lock("baton")


def their_lock(folder: Path) -> Any:
    return their_database(folder).lock("baton", timeout=30)


def once(lock: Any) -> None:
    lock.acquire()
    lock.release()


# In another process


def take(folder: Path, make: Callable[[Path], Any], boss: Connection[Any, Any]) -> None:
    """Whenever told to, wait for the lock, and tell when it was had."""
    lock = make(folder)
    while boss.recv():
        boss.send("waiting")
        lock.acquire()
        had = time.monotonic()
        lock.release()
        boss.send(had)


def follow(folder: Path, boss: Connection[Any, Any]) -> None:
    """Tell when each change was seen."""
    with our_database(folder).watch("told") as changes:
        boss.send("watching")
        for change in changes:
            boss.send((time.monotonic(), getattr(change, "value", None)))


def watch_others(folder: Path, boss: Connection[Any, Any]) -> None:
    """Be 200 clients that watch what nobody changes."""

    async def main() -> None:
        databases = [AsyncPickleDB(f"ipc://{folder}/socket") for _ in range(WATCHERS)]
        watches = [db.watch(f"elsewhere {n}:") for n, db in enumerate(databases)]
        async with contextlib.AsyncExitStack() as stack:
            for watch in watches:
                await stack.enter_async_context(watch)
            waiting = [asyncio.ensure_future(anext(watch)) for watch in watches]
            boss.send("watching")
            await asyncio.gather(*waiting)

    asyncio.run(main())


@contextlib.contextmanager
def beside(work: Callable[..., None], *args: Any) -> Iterator[Connection[Any, Any]]:
    """A process that does `work`; the connection to it."""
    spawn = get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=work, args=(*args, theirs), daemon=True)
    process.start()
    try:
        yield ours
    finally:
        process.kill()
        process.join()


# What is measured: medians of microseconds


def p50(operation: Callable[[], object], count: int) -> float:
    return statistics.median(latencies(operation, count))


def hand_over(
    lock: Any, other: Connection[Any, Any], settle: Callable[[], object], count: int
) -> float:
    """From the release of a lock to when the other process, which waited for it, has it."""
    taken = []
    for _ in range(count):
        lock.acquire()
        other.send(True)
        other.recv()
        settle()
        released = time.monotonic()
        lock.release()
        had: float = other.recv()
        taken.append((had - released) * 1e6)
    return statistics.median(taken)


def told(db: PickleDB, other: Connection[Any, Any], count: int) -> float:
    """From the beginning of a set to when a watcher has seen it."""
    taken = []
    for n in range(count):
        begun = time.monotonic()
        db.set("told", n)
        seen: float
        seen, value = other.recv()
        if value != n:
            raise RuntimeError(f"{value} was told, not {n}")
        taken.append((seen - begun) * 1e6)
    return statistics.median(taken)


def writes(runner: asyncio.Runner, db: AsyncPickleDB, count: int) -> float:
    """A write, where hundreds are in flight, so that the daemon never rests."""

    async def write() -> float:
        begun = time.monotonic()
        for start in range(0, count, IN_FLIGHT):
            await asyncio.gather(*(db.set(f"key {start + n}", n) for n in range(IN_FLIGHT)))
        return (time.monotonic() - begun) / count * 1e6

    return runner.run(write())


def settled(db: PickleDB, many: int = 1) -> None:
    """Wait until as many requests wait for the lock, or for a change."""
    while db.info()["waiting"] < many:
        time.sleep(0.001)


def settled_somehow() -> None:
    """The same for redis-py, whose server knows of nobody who waits: somewhere in its sleep."""
    time.sleep(random.uniform(0.02, 0.02 + SLEEP))  # noqa: S311 - no secret


def run(quick: bool) -> Report:
    rounds, count = (3, 50) if quick else (15, 300)
    few = max(5, count // 30)  # of what redis-py sleeps for
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        stores = stack.enter_context(opened(folder, [ALL[OURS], ALL[ECHO], ALL[REDIS]]))
        ours, theirs = home(folder, ALL[OURS]), home(folder, ALL[REDIS])
        db, other_db = our_database(ours), their_database(theirs)
        # Who waited for others does not look for its next replies as busily as who did not
        counting = our_database(ours)
        lock, other_lock = our_lock(ours), their_lock(theirs)
        taker = stack.enter_context(beside(take, ours, our_lock))
        other_taker = stack.enter_context(beside(take, theirs, their_lock))
        follower = stack.enter_context(beside(follow, ours))
        follower.recv()
        contenders: dict[str, Callable[[], float]] = {
            "echo": partial(p50, partial(stores[ECHO].set, "told", 1), count),
            "incr": partial(p50, partial(counting.incr, "n"), count),
            "redis incr": partial(p50, partial(other_db.incr, "n"), count),
            "lock": partial(p50, partial(once, lock), count),
            "redis lock": partial(p50, partial(once, other_lock), count),
            "hand-over": partial(hand_over, lock, taker, partial(settled, db, 2), count),
            "redis hand-over": partial(hand_over, other_lock, other_taker, settled_somehow, few),
            "told": partial(told, db, follower, count),
        }
        in_turn(contenders, 1, "warming")
        figures = in_turn(contenders, rounds, "together")
    figures |= _beside_watchers(rounds, 1000 if quick else 10_000)
    return Report("together", _text(figures, rounds, count))


def _beside_watchers(rounds: int, count: int) -> Figures:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        contenders: dict[str, Callable[[], float]] = {}
        for what in ("writes", "writes beside watchers"):
            folder = Path(name) / what.replace(" ", "")
            folder.mkdir()
            stack.enter_context(servers.pickledbd(folder))
            runner = stack.enter_context(asyncio.Runner())
            contenders[what] = partial(
                writes, runner, AsyncPickleDB(f"ipc://{folder}/socket"), count
            )
        stack.enter_context(beside(watch_others, folder)).recv()
        settled(our_database(folder), WATCHERS)
        in_turn(contenders, 1, "warming")
        return in_turn(contenders, rounds, "watchers")


def _text(figures: Figures, rounds: int, count: int) -> str:
    def median(name: str) -> str:
        return number(statistics.median(figures[name]))

    handed = f"{median('hand-over')} | {median('redis hand-over')}"
    lines = [
        "| p50, µs | pickledbd | redis-py |",
        "|---|---:|---:|",
        f"| incr | {median('incr')} | {median('redis incr')} |",
        f"| lock and release, nobody else wants it | {median('lock')} | {median('redis lock')} |",
        f"| from a release to another process that waits | {handed} |",
        f"| from a set to a watcher in another process | {median('told')} | |",
        f"| a write of {IN_FLIGHT} in flight | {median('writes')} | |",
        f"| the same beside {WATCHERS} idle watchers | {median('writes beside watchers')} | |",
        f"| bare zmq echo | {median('echo')} | |",
    ]

    def ratio(ours: str, theirs: str) -> list[float]:
        return divided(figures[ours], figures[theirs])

    rows = [
        Target("lock hand-over ÷ bare echo", ratio("hand-over", "echo"), at_most=3),
        Target(
            f"writes beside {WATCHERS} idle watchers ÷ without",
            ratio("writes beside watchers", "writes"),
            at_most=1.05,
        ),
        Target("incr ÷ bare echo", ratio("incr", "echo")),
        Target("incr ÷ redis-py's", ratio("incr", "redis incr")),
        Target("lock and release ÷ redis-py's", ratio("lock", "redis lock")),
        Target("redis-py's hand-over ÷ ours", ratio("redis hand-over", "hand-over")),
    ]
    return "\n".join(
        [*lines, "", targets(rows), "", f"{rounds} rounds of {count:,} each; {machine()}."]
    )


if __name__ == "__main__":
    sys.exit(command_line(__doc__, run))
