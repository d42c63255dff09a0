"""Measure one client that gets and sets small values, beside all peers.

    python benchmarks/bench_single.py [--quick] [--write]

Lock step, one key space, everybody in turn. A peer that answers in under 20 µs is timed over
passes of many calls, so that the clock is not what is measured.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import plots
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
from peers import (
    CACHED,
    ECHO,
    MEMCACHED,
    PEERS,
    PICKLEDB,
    REDIS,
    REDIS_CACHED_ALL,
    REDIS_PIPELINE,
    UNCACHED,
    opened,
    versions,
)
from records import FLAT, NESTED, SCALAR

FAST = 20.0  # µs
KEYS = [f"{kind}:{n}" for kind in ("scalar", "flat", "nested") for n in range(200)]
VALUES = {"scalar": SCALAR, "flat": FLAT, "nested": NESTED}
NESTED_AND_LOADS = "pickleDB 1.0 get + orjson.loads"

Pass = Callable[[list[str]], object]


def p50(one_pass: Pass, keys: list[str], seconds: float) -> float:
    """The median of microseconds a call, measured for so long."""
    clock = time.perf_counter_ns
    begin = clock()
    one_pass(keys)
    each = 1 if (clock() - begin) / len(keys) / 1000 > FAST else len(keys)
    passes = [keys[at : at + each] for at in range(0, len(keys), each)]
    taken = []
    until = clock() + int(seconds * 1e9)
    while clock() < until:
        for some in passes:
            begin = clock()
            one_pass(some)
            taken.append((clock() - begin) / each / 1000)
    return statistics.median(taken)


def getting(get: Callable[[str], Any]) -> Pass:
    def one_pass(keys: list[str]) -> None:
        for key in keys:
            get(key)

    return one_pass


def getting_and_loading(get: Callable[[str], Any], text: bytes) -> Pass:
    loads = orjson.loads

    def one_pass(keys: list[str]) -> None:
        for key in keys:
            get(key)
            loads(text)

    return one_pass


def setting(set_: Callable[[str, Any], object], value: Any) -> Pass:
    def one_pass(keys: list[str]) -> None:
        for key in keys:
            set_(key, value)

    return one_pass


def run(quick: bool) -> Report:
    rounds, seconds = (3, 0.02) if quick else (15, 0.2)
    chosen = [
        peer for peer in PEERS.values() if peer.name not in (REDIS_PIPELINE, REDIS_CACHED_ALL)
    ]
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder), chosen) as stores:
        passes: dict[str, tuple[Pass, str]] = {}
        for name, store in stores.items():
            for key in KEYS:
                store.set(key, VALUES[key.split(":")[0]])
            for kind in VALUES:
                passes[f"{name}/{kind}"] = getting(store.get), kind
            passes[f"{name}/set"] = setting(store.set, FLAT), "flat"
        loading = getting_and_loading(stores[PICKLEDB].get, orjson.dumps(NESTED))
        passes[f"{NESTED_AND_LOADS}/nested"] = loading, "nested"
        contenders = {
            name: partial(p50, one_pass, [key for key in KEYS if key.startswith(kind)], seconds)
            for name, (one_pass, kind) in passes.items()
        }
        figures = in_turn(contenders, rounds, "single")
    columns = [*VALUES, "set"]
    lines = [
        "| p50 of a call, µs | get of a scalar | of a flat dict | of a nested document | set |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in stores:
        medians = (number(statistics.median(figures[f"{name}/{column}"])) for column in columns)
        lines.append(f"| {name} | {' | '.join(medians)} |")
    told = "\n".join(
        [
            *lines,
            "",
            targets(_targets(figures)),
            "",
            f"{measured(rounds, seconds)}; {versions()}.",
        ]
    )
    shown = {
        name: [statistics.median(figures[f"{name}/{column}"]) for column in ("flat", "set")]
        for name in stores
    }
    draw = partial(
        plots.bars,
        title="One client: microseconds of a call (less is better)",
        groups=["get of a flat dict", "set"],
        figures=shown,
    )
    return Report("single", told, {"single.svg": draw})


def _targets(figures: Figures) -> list[Target]:
    def ratio(ours: str, theirs: str) -> list[float]:
        return divided(figures[ours], figures[theirs])

    rows = [
        Target(
            "cached get of a scalar ÷ pickleDB 1.0's",
            ratio(f"{CACHED}/scalar", f"{PICKLEDB}/scalar"),
            at_most=2,
        ),
        Target(
            "cached get of a flat dict ÷ pickleDB 1.0's",
            ratio(f"{CACHED}/flat", f"{PICKLEDB}/flat"),
            at_most=3.5,
        ),
        Target(
            "cached get of a nested document ÷ (pickleDB 1.0's + one orjson.loads)",
            ratio(f"{CACHED}/nested", f"{NESTED_AND_LOADS}/nested"),
            at_most=1.5,
        ),
    ]
    for peer in (REDIS, MEMCACHED):
        for kind in VALUES:
            what = f"{peer}'s get ÷ cached get ({kind})"
            rows.append(Target(what, ratio(f"{peer}/{kind}", f"{CACHED}/{kind}"), at_least=50))
    for what, column in (("uncached get of a flat dict", "flat"), ("set", "set")):
        ours = ratio(f"{UNCACHED}/{column}", f"{ECHO}/{column}")
        rows.append(Target(f"{what} ÷ bare echo", ours, at_most=1.1))
    return rows


if __name__ == "__main__":
    sys.exit(command_line(__doc__, run))
