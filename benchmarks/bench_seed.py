"""Measure pickleDB's own table, beside pickleDB 1.0: load, retrieve and save of a million entries.

    python benchmarks/bench_seed.py [--entries 1000000] [--rounds 3] [--quick] [--write]

As in the README of pickleDB, where it has 1, 10 and 50 million entries: all are set, all are read,
all are saved. Whole processes, one at a time, each with an empty file. pickledbd sets and reads
10,000 in a request, as who has so many does; pickleDB has only loops.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from harness import (
    Figures,
    Report,
    Target,
    divided,
    in_turn,
    machine,
    number,
    resident,
    started,
    targets,
)
from peers import PICKLEDB
from stores import pickledb_folder

from pickledbd_client import PickleDB

ENTRIES = 1_000_000

THEIRS = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from pickledb import PickleDB
db, entries = PickleDB(sys.argv[2]), int(sys.argv[3])
clock, times = time.perf_counter, [time.perf_counter()]
for n in range(entries):
    db.set(f"key{n}", f"value{n}")
times.append(clock())
for n in range(entries):
    db.get(f"key{n}")
times.append(clock())
assert db.save()
times.append(clock())
"""

OURS = """
import os, sys, time
from pickledbd_client import PickleDB
db, entries, batch = PickleDB(sys.argv[2], timeout=600), int(sys.argv[3]), 10_000
clock, times = time.perf_counter, [time.perf_counter()]
for at in range(0, entries, batch):
    db.set_many({f"key{n}": f"value{n}" for n in range(at, min(entries, at + batch))})
times.append(clock())
for at in range(0, entries, batch):
    assert db.get_many([f"key{n}" for n in range(at, min(entries, at + batch))])
times.append(clock())
assert db.save()
times.append(clock())
"""

TELL = """
import json
pid = os.getpid()
rss = next(line for line in open(f"/proc/{pid}/status") if line.startswith("VmRSS")).split()[1]
print(json.dumps([b - a for a, b in zip(times, times[1:])] + [int(rss) * 1024]))
"""

WHAT = ("set all, s", "read all, s", "save, s", "memory, MiB")


def whole(code: str, *arguments: str) -> list[float]:
    """Seconds of the three steps, and the resident bytes then, of a process of its own."""
    command = [sys.executable, "-c", code + TELL, *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    told: list[float] = json.loads(output.splitlines()[-1])
    return told


def ours(entries: int) -> list[float]:
    """With the memory of the daemon, where the entries are."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        endpoint = f"ipc://{Path(folder).resolve()}/s"
        with started([sys.executable, "-m", "pickledbd", f"{folder}/my.db", "--bind", endpoint]):
            told = whole(OURS, "", endpoint, str(entries))
            db = PickleDB(endpoint)
            told[-1] = resident(db.info()["pid"])
            db.close()
    return told


def theirs(entries: int) -> list[float]:
    """The same of pickleDB 1.0, in its one process."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        return whole(THEIRS, str(pickledb_folder("1.0")), f"{folder}/my.db", str(entries))


def run(quick: bool, entries: int = ENTRIES, rounds: int = 3) -> Report:
    if quick:
        entries, rounds = 100_000, 2
    taken: dict[str, list[list[float]]] = {"pickledbd": [], PICKLEDB: []}

    def take(name: str, measure: partial[list[float]]) -> float:
        taken[name].append(measure())
        return sum(taken[name][-1][:3])

    contenders = {
        "pickledbd": partial(take, "pickledbd", partial(ours, entries)),
        PICKLEDB: partial(take, PICKLEDB, partial(theirs, entries)),
    }
    in_turn(contenders, rounds, f"{entries:,} entries")
    figures: Figures = {}
    lines = [f"| {entries:,} entries | {' | '.join(WHAT)} |", "|---|---:|---:|---:|---:|"]
    for name, told in taken.items():
        columns = [list(column) for column in zip(*told, strict=True)]
        columns[-1] = [size / 2**20 for size in columns[-1]]
        figures |= {f"{name}/{what}": column for what, column in zip(WHAT, columns, strict=True)}
        cells = " | ".join(number(statistics.median(column)) for column in columns)
        lines.append(f"| {name} | {cells} |")
    rows = [
        Target(
            f"{what.split(',')[0]}: pickledbd ÷ {PICKLEDB}",
            divided(figures[f"pickledbd/{what}"], figures[f"{PICKLEDB}/{what}"]),
        )
        for what in WHAT
    ]
    told_ = "\n".join([*lines, "", targets(rows), "", f"{rounds} rounds; {machine()}."])
    return Report("seed" if quick or entries == ENTRIES else f"seed {entries}", told_)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--entries", type=int, default=ENTRIES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    report = run(options.quick, options.entries, options.rounds)
    print(report.text)
    if options.write:
        report.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
