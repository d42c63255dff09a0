"""Measure a save of ten million keys: what it costs, and what others notice of it.

    python benchmarks/bench_save.py [--keys 10000000] [--rounds 3] [--write]

One daemon in its default durability serves the keys. Four client processes read and write in lock
step, in turn without and during a save. Then the save is measured alone, in turn with what any
program would do with the same data as a dict: orjson.dumps, write and fsync.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import orjson
from harness import machine, resident, started, write_section

from pickledbd_client import PickleDB

CLIENTS = 4
SECONDS = 3.0
"""How long the throughput without a save is measured in each round."""


def build(path: Path, keys: int) -> None:
    """Write a data file of small entries as the daemon does."""
    with path.open("wb") as file:
        separator = b"{\n"
        for start in range(0, keys, 10_000):
            lines = (
                b'"key:%08d":{"n":%d}' % (n, n) for n in range(start, min(keys, start + 10_000))
            )
            file.write(separator + b",\n".join(lines))
            separator = b",\n"
        file.write(b"\n}\n")


def client(endpoint: str, keys: int, count: Any, stop: Event, seed: int) -> None:
    """Ask one thing after the other, every fourth a write, and count."""
    moments = random.Random(seed)  # noqa: S311 - no secret
    with_own_count = count.get_obj()
    db = PickleDB(endpoint, timeout=60)
    while not stop.is_set():
        for _ in range(20):
            key = f"key:{moments.randrange(keys):08d}"
            if moments.random() < 0.25:  # noqa: PLR2004 - every fourth
                db.set(key, {"n": -1})
            else:
                db.get(key)
        with_own_count.value += 20
    db.close()


def bare(content: Any, path: Path) -> float:
    """Seconds to dump, write and fsync a dict, as a program would."""
    begin = time.perf_counter()
    text = orjson.dumps(content)
    with path.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - begin


def save_alone(
    db: PickleDB, folder: Path, keys: int, rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of saves while nobody asks, and of what a program would do with its dict."""
    content = {f"key:{n:08d}": {"n": n} for n in range(keys)}
    alone, bares = [], []
    for _ in range(rounds):
        db.set("key:00000000", {"n": random.random()})  # noqa: S311 - no secret
        begin = time.perf_counter()
        db.save()
        alone.append(time.perf_counter() - begin)
        bares.append(bare(content, folder / "bare.json"))
    return alone, bares


class Highest(threading.Thread):
    """Watches the highest resident memory of a process, in bytes."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._ended = threading.Event()
        self.bytes = resident(pid)

    def run(self) -> None:
        while not self._ended.wait(0.02):
            self.bytes = max(self.bytes, resident(self._pid))

    def end(self) -> int:
        self._ended.set()
        self.join()
        return self.bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--keys", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as directory:
        told = measure(Path(directory).resolve(), options.keys, options.rounds)
    print(told)
    if options.write:
        write_section("save", told)
    return 0


def measure(folder: Path, keys: int, rounds: int) -> str:
    path = folder / "my.db"
    build(path, keys)
    endpoint = f"ipc://{folder}/s"
    spawn = multiprocessing.get_context("spawn")
    begin = time.perf_counter()
    command = [sys.executable, "-m", "pickledbd", str(path), "--bind", endpoint]
    with started(command):
        loaded = time.perf_counter() - begin
        db = PickleDB(endpoint, timeout=600)
        pid = db.info()["pid"]
        before = resident(pid)

        counts = [spawn.Value("q", 0) for _ in range(CLIENTS)]
        stop = spawn.Event()
        clients = [
            spawn.Process(target=client, args=(endpoint, keys, count, stop, seed))
            for seed, count in enumerate(counts)
        ]
        for one in clients:
            one.start()
        while not all(count.value for count in counts):
            time.sleep(0.1)

        def total() -> int:
            return sum(count.value for count in counts)

        ratios, slices, slices_without, durations, added = [], [], [], [], []
        for number in range(rounds):
            print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
            db.info(reset=True)
            start, at = total(), time.perf_counter()
            time.sleep(SECONDS)
            without = (total() - start) / (time.perf_counter() - at)
            slices_without.append(db.info(reset=True)["longest_slice_ms"])
            highest = Highest(pid)
            highest.start()
            memory = highest.bytes
            start, at = total(), time.perf_counter()
            db.save()
            took = time.perf_counter() - at
            ratios.append((total() - start) / took / without)
            durations.append(took)
            added.append((highest.end() - memory) / before)
            slices.append(db.info(reset=True)["longest_slice_ms"])
        print(file=sys.stderr)
        stop.set()
        for one in clients:
            one.join()

        alone, bares = save_alone(db, folder, keys, rounds)
        db.close()

    def spread(values: list[float]) -> str:
        return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    file_bytes = path.stat().st_size / keys
    rows = [
        (f"throughput of {CLIENTS} clients during a save ÷ without", spread(ratios), "≥ 0.60"),
        ("`longest_slice_ms` during a save", spread(slices), "≤ 5"),
        ("the same without a save", spread(slices_without), ""),
        ("memory that a save adds ÷ the daemon's", f"{max(added):.3f}", "≤ 0.15"),
        ("seconds of a save, nobody asking", spread(alone), ""),
        ("seconds of dumps + write + fsync of a dict", spread(bares), ""),
        ("the save ÷ that", spread([a / b for a, b in zip(alone, bares, strict=True)]), "≤ 4"),
        (f"seconds of a save while {CLIENTS} clients ask", spread(durations), ""),
        (f"bytes of memory a key (in the file {file_bytes:.0f})", f"{before / keys:.0f}", ""),
        ("seconds until it is served", f"{loaded:.1f}", ""),
    ]
    lines = ["| | measured | target |", "|---|---:|---:|"]
    lines += [f"| {name} | {value} | {target} |" for name, value, target in rows]
    return "\n".join([*lines, "", f"{keys:,} keys, {rounds} rounds; {machine()}."])


if __name__ == "__main__":
    sys.exit(main())
