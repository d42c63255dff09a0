"""Measure batches: many keys set and read at once, beside all peers.

    python benchmarks/bench_batches.py [--quick] [--write]

Batches of 10 to 100,000 keys, each in the way that the peer's documentation has for many; and
200,000 keys in one update.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

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
    spread,
    targets,
)
from peers import (
    CACHED,
    ECHO,
    MEMCACHED_NOREPLY,
    PEERS,
    PICKLEDB,
    REDIS,
    REDIS_CACHED,
    REDIS_CACHED_ALL,
    REDIS_PIPELINE,
    UNCACHED,
    opened,
    versions,
)
from records import key, record
from stores import Store

LEFT_OUT = (ECHO, UNCACHED, REDIS_CACHED, REDIS_CACHED_ALL, MEMCACHED_NOREPLY)
AT_ONCE = (CACHED, REDIS, REDIS_PIPELINE, PICKLEDB)
"""Those that are compared in the one large update too."""


def rate(call: Callable[[], object], size: int, seconds: float) -> float:
    """Keys a second, of as many calls as end in that time, and one at least."""
    begin, calls = time.perf_counter(), 0
    while True:
        call()
        calls += 1
        if (took := time.perf_counter() - begin) >= seconds:
            return calls * size / took


def run(quick: bool) -> Report:
    rounds, seconds = (2, 0.03) if quick else (9, 0.3)
    sizes = [10, 100, 1000] if quick else [10, 100, 1000, 100_000]
    large = 50_000 if quick else 200_000
    chosen = [peer for name, peer in PEERS.items() if name not in LEFT_OUT]
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder), chosen) as stores:
        for size in sizes:
            contenders = _contenders(stores, size, seconds)
            figures |= in_turn(contenders, rounds, f"batches of {size:,}")
        items = {key(n): record(n) for n in range(large)}
        updates = {
            f"{name}/update": partial(rate, partial(stores[name].set_many, items), large, 0)
            for name in AT_ONCE
        }
        figures |= in_turn(updates, rounds, f"{large:,} keys in one update")
    lines = []
    for what, column in (("set at once", "set"), ("read at once", "get")):
        lines += [
            f"| {what}, keys/s | {' | '.join(f'{size:,}' for size in sizes)} |",
            "|---|" + "---:|" * len(sizes),
        ]
        for name in stores:
            medians = (number(_median(figures, f"{name}/{column}/{size}")) for size in sizes)
            lines.append(f"| {name} | {' | '.join(medians)} |")
        lines.append("")
    lines += [f"| {large:,} keys in one update | keys/s |", "|---|---:|"]
    lines += [f"| {name} | {spread(figures[f'{name}/update'])} |" for name in AT_ONCE]
    told = "\n".join(
        [
            *lines,
            "",
            targets(_targets(figures, large)),
            "",
            f"{measured(rounds, seconds)} (one call at least); {versions()}.",
        ]
    )
    drawn = {}
    for column, title in (("set", "set at once"), ("get", "read at once")):
        drawn[f"batches_{column}.svg"] = partial(
            plots.lines,
            title=f"Keys {title}: keys a second (more is better)",
            x=sizes,
            x_label="keys in a batch",
            figures={
                name: [_median(figures, f"{name}/{column}/{size}") for size in sizes]
                for name in stores
            },
        )
    return Report("batches", told, drawn)


def _contenders(
    stores: dict[str, Store], size: int, seconds: float
) -> dict[str, Callable[[], float]]:
    """Setting comes before getting, so that what is read is there."""
    items = {key(n): record(n) for n in range(size)}
    names = list(items)
    for store in stores.values():
        store.set_many(items)
    contenders: dict[str, Callable[[], float]] = {}
    for name, store in stores.items():
        contenders[f"{name}/set/{size}"] = partial(
            rate, partial(store.set_many, items), size, seconds
        )
        contenders[f"{name}/get/{size}"] = partial(
            rate, partial(store.get_many, names), size, seconds
        )
    return contenders


def _median(figures: Figures, name: str) -> float:
    return statistics.median(figures[name])


def _targets(figures: Figures, large: int) -> list[Target]:
    rows = [
        Target(
            f"1,000 keys {what} ÷ {REDIS}'s {theirs}",
            divided(figures[f"{CACHED}/{column}/1000"], figures[f"{REDIS}/{column}/1000"]),
            at_least=2.5,
        )
        for what, column, theirs in (("set", "set", "mset"), ("read", "get", "mget"))
    ]
    update = figures[f"{CACHED}/update"]
    what = f"{large:,} keys in one update"
    return [
        *rows,
        Target(
            f"{what} (this, or the next)",
            [one / 1e6 for one in update],
            at_least=1,
            unit="million keys/s",
        ),
        Target(
            f"{what} ÷ {REDIS_PIPELINE}",
            divided(update, figures[f"{REDIS_PIPELINE}/update"]),
            at_least=3,
        ),
    ]


if __name__ == "__main__":
    sys.exit(command_line(__doc__, run))
