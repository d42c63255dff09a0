"""Measure 16 threads of one process, 95 % get and 5 % set, beside all peers.

    python benchmarks/bench_threads.py [--quick] [--write]

The threads share one object of each peer, as its documentation says that they may.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import plots
from harness import Report, Target, command_line, divided, in_turn, measured, number, targets
from peers import (
    CACHED,
    MEMCACHED_NOREPLY,
    MEMCACHED_OF_THREADS,
    PEERS,
    REDIS,
    REDIS_CACHED,
    REDIS_CACHED_ALL,
    REDIS_PIPELINE,
    UNCACHED,
    opened,
    versions,
)
from records import by_popularity, record, zipfian
from stores import THREADS_MAX, Store

WRITE_EVERY = 20

PATIENCE = 60.0

LEFT_OUT = (REDIS_PIPELINE, MEMCACHED_NOREPLY, REDIS_CACHED, REDIS_CACHED_ALL)
"""Variants; and redis-py's cache: 16 threads that shared it hung within seconds, both times it was
tried (redis-py 8.1 with redis 7.0), one of them waiting for an answer.
"""


def rate(store: Store, plans: list[list[str]], seconds: float) -> float:
    """Operations a second of all threads, each with a plan of names."""
    counts = [0] * len(plans)
    errors: list[threading.ExceptHookArgs] = []
    threading.excepthook = errors.append
    ready = threading.Barrier(len(plans) + 1)
    ended = threading.Event()

    def work(index: int, plan: list[str]) -> None:
        store.get(plan[0])  # what a thread needs of its own, it has now
        ready.wait(PATIENCE)
        value = record(index)
        while not ended.is_set():
            for at in range(0, len(plan), WRITE_EVERY):
                for name in plan[at + 1 : at + WRITE_EVERY]:
                    store.get(name)
                store.set(plan[at], value)
                counts[index] += WRITE_EVERY
                if ended.is_set():
                    break

    threads = [
        threading.Thread(target=work, args=(index, plan), daemon=True)
        for index, plan in enumerate(plans)
    ]
    for thread in threads:
        thread.start()
    ready.wait(PATIENCE)
    begin, start = time.perf_counter(), sum(counts)
    time.sleep(seconds)
    done, took = sum(counts) - start, time.perf_counter() - begin
    ended.set()
    for thread in threads:
        thread.join()
    if errors:
        raise RuntimeError("a thread failed") from errors[0].exc_value
    return done / took


def run(quick: bool) -> Report:
    rounds, seconds, records = (2, 0.1, 1000) if quick else (9, 1.0, 10_000)
    peers = PEERS | {MEMCACHED_OF_THREADS.name: MEMCACHED_OF_THREADS}
    chosen = [peer for name, peer in peers.items() if name not in LEFT_OUT]
    names = by_popularity(records)
    plans = [zipfian(names, 2000, seed) for seed in range(THREADS_MAX)]
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder), chosen) as stores:
        for name, store in stores.items():
            print(f"\r\033[Kwarming {name}", end="", file=sys.stderr, flush=True)
            store.set_many({key: record(n) for n, key in enumerate(names)})
            for key in names:
                store.get(key)
        contenders = {name: partial(rate, store, plans, seconds) for name, store in stores.items()}
        figures = in_turn(contenders, rounds, "threads")
    medians = {name: statistics.median(taken) for name, taken in figures.items()}
    lines = ["| 16 threads | operations/s |", "|---|---:|"]
    lines += [f"| {name} | {number(median)} |" for name, median in medians.items()]
    rows = [
        Target(f"{ours} ÷ {REDIS}", divided(figures[ours], figures[REDIS]))
        for ours in (CACHED, UNCACHED)
    ]
    of_rounds = measured(rounds, seconds)
    told = "\n".join(
        [
            *lines,
            "",
            targets(rows),
            "",
            f"{records:,} records, all read once before; {of_rounds}; {versions()}.",
        ]
    )
    draw = partial(
        plots.bars,
        title="16 threads of one process (more is better)",
        groups=["operations a second"],
        figures={name: [median] for name, median in medians.items()},
    )
    return Report("threads", told, {"threads.svg": draw})


if __name__ == "__main__":
    sys.exit(command_line(__doc__, run))
