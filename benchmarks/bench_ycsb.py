"""Measure YCSB's workloads A, B, C and F by 1, 4 and 16 processes, beside all peers.

    python benchmarks/bench_ycsb.py [--quick] [--write]

Small documents, chosen by the zipfian distribution. Caches are warmed first: each process reads
all records, the popular ones first, until all are read or the time for it is over.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import plots
from crowd import PEERS_OF_PROCESSES, WRITES, Crowd, WorkFailed, crowd
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
    MEMCACHED_NOREPLY,
    REDIS,
    REDIS_CACHED,
    REDIS_CACHED_ALL,
    REDIS_PIPELINE,
    UNCACHED,
    Peer,
    home,
    serving,
    versions,
)
from records import key, record

MANY = (1, 4, 16)
TITLES = {
    "A": "A: half updates",
    "B": "B: 5 % updates",
    "C": "C: reads",
    "F": "F: half read-modify-writes",
}
ORDER = ("C", "B", "F", "A")
"""Those that write less come first, so that the caches that were warmed are warm for them."""


def run(quick: bool) -> Report:
    records, rounds, seconds, warm = (10_000, 1, 0.05, 0.1) if quick else (100_000, 5, 0.7, 25.0)
    left_out = (REDIS_PIPELINE, MEMCACHED_NOREPLY)
    peers = [peer for name, peer in PEERS_OF_PROCESSES.items() if name not in left_out]
    caches = {CACHED: records, REDIS_CACHED: 10_000, REDIS_CACHED_ALL: records}
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as directory, serving(folder := Path(directory), peers):
        _load(folder, peers, records)
        with crowd(folder, records, max(MANY)) as workers:
            rates = Rates(workers, seconds)
            for many in MANY:
                # Warm all that take part, for longer the more there are
                for name, items in caches.items():
                    workers.work(many, name, "warm", warm * many, items)
                chosen = [peer for peer in peers if many == 1 or not peer.alone]
                for workload in ORDER:
                    contenders = {
                        f"{peer.name}/{workload}/{many}": partial(
                            rates.take, peer.name, workload, many
                        )
                        for peer in chosen
                    }
                    figures |= in_turn(contenders, rounds, f"YCSB {workload} by {many}")
    lines = []
    for many in MANY:
        by = "1 process" if many == 1 else f"{many} processes"
        lines += [
            f"| operations/s of {by} | {' | '.join(TITLES.values())} |",
            "|---|---:|---:|---:|---:|",
        ]
        for peer in peers:
            cells = [f"{peer.name}/{workload}/{many}" for workload in WRITES]
            if cells[0] in figures:
                shown = (
                    rates.failures.get(c) or number(statistics.median(figures[c])) for c in cells
                )
                lines.append(f"| {peer.name} | {' | '.join(shown)} |")
        lines.append("")
    how = f"caches warmed for up to {warm:g} s a process; {measured(rounds, seconds)}"
    told = "\n".join(
        [
            *lines,
            targets(_targets(figures)),
            "",
            f"{records:,} records; {how}; {versions()}.",
        ]
    )
    drawn = {
        peer.name: [statistics.median(figures[f"{peer.name}/{workload}/4"]) for workload in WRITES]
        for peer in peers
        if not peer.alone
    }
    draw = partial(
        plots.bars,
        title="YCSB by 4 processes: operations a second (more is better)",
        groups=list(TITLES.values()),
        figures=drawn,
    )
    return Report("ycsb", told, {"ycsb.svg": draw})


def _load(folder: Path, peers: list[Peer], records: int) -> None:
    """Put the records into all that can be shared; the others get theirs in their one process."""
    items = {key(n): record(n) for n in range(records)}
    for peer in peers:
        if not peer.alone:
            print(f"\r\033[Kloading {peer.name}", end="", file=sys.stderr, flush=True)
            store = peer.open(home(folder, peer))
            store.set_many(items)
            store.close()


@dataclass
class Rates:
    """Has the processes work; what a peer does not bear is told instead of its rate."""

    workers: Crowd
    seconds: float
    failures: dict[str, str] = field(default_factory=dict)

    def take(self, peer: str, workload: str, many: int) -> float:
        """Operations a second; not a number once the peer failed."""
        name = f"{peer}/{workload}/{many}"
        if name not in self.failures:
            try:
                return self.workers.work(many, peer, workload, self.seconds)
            except WorkFailed as failure:
                self.failures[name] = str(failure)
        return math.nan


def _targets(figures: Figures) -> list[Target]:
    def row(
        ours: str, theirs: str, workload: str, many: int, at_least: float | None = None
    ) -> Target:
        ratios = divided(
            figures[f"{ours}/{workload}/{many}"], figures[f"{theirs}/{workload}/{many}"]
        )
        return Target(f"{workload}, {many} processes: {ours} ÷ {theirs}", ratios, at_least=at_least)

    return [
        row(CACHED, REDIS, "C", 4, 30),
        row(CACHED, "LMDB", "C", 4, 2),
        row(CACHED, "diskcache", "C", 4, 2),
        row(CACHED, REDIS, "B", 4, 3),
        row(CACHED, REDIS, "A", 4),
        row(CACHED, REDIS, "F", 4),
        *(row(UNCACHED, REDIS, workload, 16, 1) for workload in WRITES),
    ]


if __name__ == "__main__":
    sys.exit(command_line(__doc__, run))
