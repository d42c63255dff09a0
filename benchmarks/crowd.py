"""Processes that all work on a peer for the same while, and how much they got done.

They are started once and wait, without using the processor, for what to do next. Times are those
of time.monotonic(), which is one clock for the whole machine.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from peers import PEERS, ULTRA_OF_PROCESSES, home
from records import by_popularity, key, record, zipfian
from stores import Store

PICKS = 200_000
PIECE_SECONDS, PIECE_MAX = 0.001, 64
"""Between two looks at the clock: more and more operations, as long as they are quick."""

WRITES = {"A": 0.5, "B": 0.05, "C": 0.0, "F": 0.5}
"""Of YCSB's workloads, the part that is no mere read; in F it reads, changes and writes."""

PEERS_OF_PROCESSES = PEERS | {"UltraDict": ULTRA_OF_PROCESSES}
PATIENCE = 120.0


@dataclass(frozen=True)
class Task:
    """What to do from `begin` on for so many `seconds`."""

    peer: str
    workload: str
    """A key of WRITES; or "warm": read the `at_most` most popular ones, two times."""

    begin: float
    seconds: float
    at_most: int = 0


@dataclass(frozen=True)
class Done:
    """How far it came."""

    count: int
    seconds: float
    error: str = ""


class Worker:
    """What goes on in one of the processes."""

    def __init__(self, folder: Path, records: int, seed: int) -> None:
        self._folder = folder
        self._records = records
        self._stores: dict[str, Store] = {}
        self._names = by_popularity(records)
        dice = random.Random(seed)  # noqa: S311 - no secret
        picks = zipfian(self._names, PICKS, seed)
        self._plans = {
            workload: [(name, dice.random() < writes) for name in picks]
            for workload, writes in WRITES.items()
        }
        self._values = itertools.cycle([record(n, visits=1) for n in range(1000)])

    def open(self, name: str) -> Store:
        if name not in self._stores:
            peer = PEERS_OF_PROCESSES[name]
            store = self._stores[name] = peer.open(home(self._folder, peer))
            if peer.alone:
                store.set_many({key(n): record(n) for n in range(self._records)})
        return self._stores[name]

    def work(self, task: Task) -> Done:
        count, begin = 0, task.begin
        try:
            store = self.open(task.peer)
            piece = self._warming if task.workload == "warm" else self._mixed
            gc.freeze()  # so that no peer pays for what the others keep in this process
            size = 1  # operations between two looks at the clock
            time.sleep(max(0, task.begin - time.monotonic()))
            begin = now = time.monotonic()
            while now < begin + task.seconds and (done := piece(store, task, count, size)):
                count += done
                before, now = now, time.monotonic()
                if now - before < PIECE_SECONDS and size < PIECE_MAX:
                    size *= 2
        except Exception as error:  # noqa: BLE001 - what a peer raises is part of the result
            return Done(count, time.monotonic() - begin, type(error).__name__)
        return Done(count, time.monotonic() - begin)

    def _warming(self, store: Store, task: Task, count: int, size: int) -> int:
        at = count % task.at_most
        names = self._names[at : min(at + size, task.at_most)] if count < 2 * task.at_most else []
        for name in names:
            store.get(name)
        return len(names)

    def _mixed(self, store: Store, task: Task, count: int, size: int) -> int:
        write = self._modify if task.workload == "F" else self._update
        at = count % PICKS
        piece = self._plans[task.workload][at : at + size]
        get = store.get
        for name, writes in piece:
            if writes:
                write(store, name)
            else:
                get(name)
        return len(piece)

    def _update(self, store: Store, name: str) -> None:
        store.set(name, next(self._values))

    def _modify(self, store: Store, name: str) -> None:
        value = dict(store.get(name))
        value["visits"] += 1
        store.set(name, value)


def _main(folder: Path, records: int, seed: int, boss: Any) -> None:
    worker = Worker(folder, records, seed)
    while (task := boss.recv()) is not None:
        boss.send(worker.work(task))


@dataclass(frozen=True)
class Crowd:
    """The processes, by the connections to them."""

    workers: list[Connection[Any, Any]]

    def work(self, many: int, peer: str, workload: str, seconds: float, at_most: int = 0) -> float:
        """Have so many of them work at once: operations a second of all, or WorkFailed."""
        chosen = self.workers[:many]
        task = Task(peer, workload, time.monotonic() + 0.05, seconds, at_most)
        for worker in chosen:
            worker.send(task)
        total, errors = 0.0, set()
        for worker in chosen:
            if not worker.poll(seconds + PATIENCE):
                raise WorkFailed(f"{peer} hangs")
            done: Done = worker.recv()
            total += done.count / max(done.seconds, 1e-9)
            errors.add(done.error)
        if errors := errors - {""}:
            raise WorkFailed(f"raises {', '.join(sorted(errors))}")
        return total


class WorkFailed(Exception):
    """A peer did not bear it."""


@contextlib.contextmanager
def crowd(folder: Path, records: int, many: int) -> Iterator[Crowd]:
    """So many processes, which work on the peers that are served in `folder`."""
    spawn = get_context("spawn")
    ends = [spawn.Pipe() for _ in range(many)]
    processes = [
        spawn.Process(target=_main, args=(folder, records, seed, theirs), daemon=True)
        for seed, (_, theirs) in enumerate(ends)
    ]
    for process in processes:
        process.start()
    try:
        yield Crowd([ours for ours, _ in ends])
        for ours, _ in ends:
            ours.send(None)
        for process in processes:
            process.join(timeout=10)
    finally:
        for process in processes:
            process.kill()
            process.join()
