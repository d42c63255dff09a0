"""Measure what the cache costs where it does not help: at a set, and at a get of what is read once.

    python benchmarks/bench_cache_cost.py [--quick] [--write]

Two daemons and two clients, one with its default cache and one with `cache_bytes=0`, in turn.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial

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
    started,
    targets,
)
from records import key, record

from pickledbd_client import PickleDB


def run(quick: bool) -> Report:
    rounds, count = (20, 100) if quick else (60, 1000)
    with tempfile.TemporaryDirectory() as folder:
        ours = [f"{folder}/cached", f"{folder}/uncached"]
        commands = [
            [sys.executable, "-m", "pickledbd", f"{path}.db", "--bind", f"ipc://{path}"]
            for path in ours
        ]
        with started(commands[0]), started(commands[1]):
            cached = PickleDB(f"ipc://{ours[0]}")
            uncached = PickleDB(f"ipc://{ours[1]}", cache_bytes=0)
            contenders: dict[str, Callable[[], float]] = {}
            for name, db in (("cached", cached), ("uncached", uncached)):
                db.set_many({key(n): record(n) for n in range((rounds + 1) * count)})
                contenders[f"get/{name}"] = partial(_get, db, itertools.count(), count)
                contenders[f"set/{name}"] = partial(_set, db, itertools.count(), count)
            in_turn(contenders, 1, "warming")
            figures = in_turn(contenders, rounds, "cache cost")
            cached.close()
            uncached.close()
    lines = ["| p50, µs | with a cache | `cache_bytes=0` |", "|---|---:|---:|"]
    for what, name in (("get of a key never read before", "get"), ("set", "set")):
        medians = [statistics.median(figures[f"{name}/{c}"]) for c in ("cached", "uncached")]
        lines.append(f"| {what} | {number(medians[0])} | {number(medians[1])} |")
    told = "\n".join(
        [
            *lines,
            "",
            targets([_target(figures, "set", "writes"), _target(figures, "get", "uncached reads")]),
            "",
            f"{rounds} rounds of {count:,} each; {machine()}.",
        ]
    )
    return Report("cache_cost", told)


def _get(db: PickleDB, numbers: Iterator[int], count: int) -> float:
    names = iter([key(next(numbers)) for _ in range(count)])
    return statistics.median(latencies(lambda: db.get(next(names)), count))


def _set(db: PickleDB, numbers: Iterator[int], count: int) -> float:
    items = iter([(key(n), record(n, visits=1)) for n in itertools.islice(numbers, count)])
    return statistics.median(latencies(lambda: db.set(*next(items)), count))


def _target(figures: Figures, name: str, what: str) -> Target:
    ratios = divided(figures[f"{name}/cached"], figures[f"{name}/uncached"])
    return Target(f"{what}: with a cache ÷ without", ratios, at_most=1.05)


if __name__ == "__main__":
    sys.exit(command_line(__doc__, run))
