"""Measure asyncio with 100 requests in flight: AsyncPickleDB beside redis.asyncio and a bare echo.

    python benchmarks/bench_async.py [--quick] [--write]

One process and one event loop; 100 tasks, each of which asks, waits for the answer, and asks again.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import plots
import redis.asyncio
import zmq
import zmq.asyncio
from harness import (
    Figures,
    Report,
    Target,
    command_line,
    divided,
    in_turn,
    measured,
    number,
    targets,
)
from peers import ECHO, PEERS, REDIS, UNCACHED, home, serving, versions
from records import by_popularity, record, zipfian

from pickledbd_client import AsyncPickleDB, calls
from pickledbd_protocol import encode_request

IN_FLIGHT = 100
RECORDS = 10_000
OURS, THEIRS = "AsyncPickleDB", "redis.asyncio"
FEW = 8
THEIRS_FEW = f"redis.asyncio, {FEW} connections"
THEIRS_PIPELINING = "redis.asyncio, pipelines made by hand"

Get = Callable[[str], Awaitable[Any]]
Set = Callable[[str, Any], Awaitable[Any]]
Pair = tuple[Get, Set]


def _redis(path: str, stack: AsyncExitStack, connections: int | None) -> Pair:
    loads, dumps = orjson.loads, orjson.dumps
    if connections is None:
        db = redis.asyncio.Redis(unix_socket_path=path)
    else:
        pool = redis.asyncio.BlockingConnectionPool(
            connection_class=redis.asyncio.UnixDomainSocketConnection,
            path=path,
            max_connections=connections,
        )
        db = redis.asyncio.Redis.from_pool(pool)
    stack.push_async_callback(db.aclose)

    async def get(name: str) -> Any:
        return loads(await db.get(name))

    async def set_(name: str, value: Any) -> Any:
        return await db.set(name, dumps(value))

    return get, set_


class _Pipelines:
    """What is asked in one turn of the event loop goes out as one pipeline."""

    def __init__(self, db: redis.asyncio.Redis) -> None:
        self._db = db
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self._running: set[asyncio.Task[None]] = set()

    async def ask(self, *command: Any) -> Any:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._send)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, future))
        return await future

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        task = asyncio.get_running_loop().create_task(self._carry(waiting))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _carry(self, waiting: list[tuple[tuple[Any, ...], asyncio.Future[Any]]]) -> None:
        async with self._db.pipeline(transaction=False) as pipe:
            for command, _ in waiting:
                pipe.execute_command(*command)
            for (_, future), answer in zip(waiting, await pipe.execute(), strict=True):
                future.set_result(answer)


def _redis_pipelining(path: str, stack: AsyncExitStack) -> Pair:
    loads, dumps = orjson.loads, orjson.dumps
    db = redis.asyncio.Redis(unix_socket_path=path)
    stack.push_async_callback(db.aclose)
    pipelines = _Pipelines(db)

    async def get(name: str) -> Any:
        return loads(await pipelines.ask("GET", name))

    async def set_(name: str, value: Any) -> Any:
        return await pipelines.ask("SET", name, dumps(value))

    return get, set_


def _echo(endpoint: str, stack: AsyncExitStack) -> Pair:
    """Whoever gets an answer takes it: all are alike."""
    context = stack.enter_context(zmq.asyncio.Context())
    dealer = stack.enter_context(context.socket(zmq.DEALER))
    dealer.linger = 0
    dealer.connect(endpoint)
    asked = (calls.get("user00001234"), calls.set_("user00001234", record(1234)))
    get_body, set_body = (encode_request(c.op, 12345, "c" * 32, 5000, c.args) for c in asked)

    async def get(_name: str) -> Any:
        await dealer.send(get_body)
        return await dealer.recv()

    async def set_(_name: str, _value: Any) -> Any:
        await dealer.send(set_body)
        return await dealer.recv()

    return get, set_


async def _opened(folder: Path, stack: AsyncExitStack) -> dict[str, Pair]:
    db = AsyncPickleDB(f"ipc://{home(folder, PEERS[UNCACHED])}/socket", cache_bytes=0)
    stack.push_async_callback(db.close)
    redis_socket = f"{home(folder, PEERS[REDIS])}/socket"
    return {
        OURS: (db.get, db.set),
        THEIRS: _redis(redis_socket, stack, None),
        THEIRS_FEW: _redis(redis_socket, stack, FEW),
        THEIRS_PIPELINING: _redis_pipelining(redis_socket, stack),
        "bare zmq.asyncio echo": _echo(f"ipc://{home(folder, PEERS[ECHO])}/socket", stack),
    }


async def _rate(
    operation: Callable[[str], Awaitable[Any]], names: list[str], seconds: float
) -> float:
    """Operations a second."""
    plan = itertools.cycle(names)
    count = 0
    begin = time.perf_counter()
    until = begin + seconds

    async def asking() -> None:
        nonlocal count
        while time.perf_counter() < until:
            await operation(next(plan))
            count += 1

    await asyncio.gather(*(asking() for _ in range(IN_FLIGHT)))
    return count / (time.perf_counter() - begin)


def _setting(set_: Set) -> Callable[[str], Awaitable[Any]]:
    value = record(1234)
    return lambda name: set_(name, value)


def run(quick: bool) -> Report:
    rounds, seconds = (3, 0.2) if quick else (15, 1.0)
    names = by_popularity(RECORDS)
    peers = [PEERS[name] for name in (UNCACHED, REDIS, ECHO)]
    with (
        tempfile.TemporaryDirectory() as directory,
        serving(folder := Path(directory), peers),
        asyncio.Runner() as runner,
    ):
        for peer in peers:
            store = peer.open(home(folder, peer))
            store.set_many({name: record(n) for n, name in enumerate(names)})
            store.close()
        stack = AsyncExitStack()
        pairs = runner.run(_opened(folder, stack))
        plan = zipfian(names, 10_000, 1)

        def taking(operation: Callable[[str], Awaitable[Any]]) -> Callable[[], float]:
            return lambda: runner.run(_rate(operation, plan, seconds))

        contenders = {}
        for name, (get, set_) in pairs.items():
            contenders[f"{name}/get"] = taking(get)
            contenders[f"{name}/set"] = taking(_setting(set_))
        in_turn(contenders, 1, "warming")
        figures = in_turn(contenders, rounds, "asyncio")
        runner.run(stack.aclose())
    medians = {
        name: [statistics.median(figures[f"{name}/{column}"]) for column in ("get", "set")]
        for name in pairs
    }
    lines = [f"| {IN_FLIGHT} in flight, operations/s | get | set |", "|---|---:|---:|"]
    lines += [
        f"| {name} | {' | '.join(number(median) for median in both)} |"
        for name, both in medians.items()
    ]
    told = "\n".join(
        [
            *lines,
            "",
            targets(_targets(figures)),
            "",
            f"{measured(rounds, seconds)}; {versions()}.",
        ]
    )
    draw = partial(
        plots.bars,
        title=f"asyncio, {IN_FLIGHT} in flight: operations a second (more is better)",
        groups=["get", "set"],
        figures=medians,
    )
    return Report("async", told, {"async.svg": draw})


def _targets(figures: Figures) -> list[Target]:
    rows = []
    for theirs, at_least in ((THEIRS, 3.0), (THEIRS_FEW, None), (THEIRS_PIPELINING, None)):
        for what in ("get", "set"):
            ratios = divided(figures[f"{OURS}/{what}"], figures[f"{theirs}/{what}"])
            rows.append(Target(f"{what}: {OURS} ÷ {theirs}", ratios, at_least=at_least))
    return rows


if __name__ == "__main__":
    sys.exit(command_line(__doc__, run))
