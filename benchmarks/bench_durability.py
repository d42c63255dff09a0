"""Measure what durability costs a write, and what writes that come together save.

    python benchmarks/bench_durability.py [--rounds 30] [--seconds 0.5] [--write]

Daemons of all three durabilities run side by side; one client, then sixteen, write in lock step
to each in turn. The disk's own fsync is measured in the same run: how much sixteen clients gain
depends on it, since the less it takes the sooner the processors are what limits.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from harness import machine, started, write_section

from pickledbd_client import PickleDB

VALUE = {"name": "Ann", "age": 31, "tags": ["a", "b"], "active": True}
MANY = 16


def client(number: int, endpoints: list[str], turn: Any, counts: Any, stop: Event) -> None:
    """Write in lock step to the daemon whose turn it is, if this client takes part."""
    dbs = [PickleDB(endpoint, timeout=60) for endpoint in endpoints]
    for serial in itertools.count():
        daemon, clients = divmod(turn.value, MANY + 1)
        if serial % 10 == 0 and stop.is_set():
            return
        if number < clients:
            dbs[daemon].set(f"key:{number}:{serial % 100}", VALUE)
            counts[number] += 1
        else:
            time.sleep(0.05)


def fsync_us(folder: Path) -> float:
    """Microseconds of an append of 200 bytes and its fdatasync."""
    file = os.open(folder / "probe", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    taken = []
    for _ in range(200):
        begin = time.perf_counter()
        os.write(file, b"x" * 200)
        os.fdatasync(file)
        taken.append((time.perf_counter() - begin) * 1e6)
    os.close(file)
    return statistics.median(taken)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--fsync-ms", type=float, default=0, help="strace delays each fdatasync")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as directory:
        told = measure(Path(directory).resolve(), options)
    print(told)
    if options.write:
        write_section("durability", told)
    return 0


def measure(folder: Path, options: argparse.Namespace) -> str:
    modes = ["save", "journal", "fsync"]
    slower: list[str] = []
    if options.fsync_ms:
        delay = f"inject=fdatasync:delay_enter={int(options.fsync_ms * 1000)}"
        slower = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "--seccomp-bpf"]
        slower += ["-e", "trace=fdatasync", "-e", delay]
    endpoints = [f"ipc://{folder}/{mode}" for mode in modes]
    spawn = multiprocessing.get_context("spawn")
    rates: dict[tuple[str, int], list[float]] = {
        (mode, clients): [] for mode in modes for clients in (1, MANY)
    }
    with contextlib.ExitStack() as stack:
        for mode, endpoint in zip(modes, endpoints, strict=True):
            command = [sys.executable, "-m", "pickledbd", f"{folder}/{mode}.db"]
            command += ["--bind", endpoint, "--durability", mode]
            stack.enter_context(started([*slower, *command] if mode == "fsync" else command))
        turn, counts = spawn.RawValue("q", 0), spawn.RawArray("q", MANY)
        stop = spawn.Event()
        writers = [
            spawn.Process(target=client, args=(n, endpoints, turn, counts, stop))
            for n in range(MANY)
        ]
        for writer in writers:
            writer.start()
        for number in range(options.rounds + 1):
            print(f"\rround {number} of {options.rounds}", end="", file=sys.stderr, flush=True)
            order = list(rates.items())
            for (mode, clients), taken in order if number % 2 else reversed(order):
                turn.value = modes.index(mode) * (MANY + 1) + clients
                time.sleep(0.2)
                start, at = sum(counts[:]), time.perf_counter()
                time.sleep(options.seconds)
                rate = (sum(counts[:]) - start) / (time.perf_counter() - at)
                if number:  # the first round warms up
                    taken.append(rate)
        print(file=sys.stderr)
        turn.value = 0
        stop.set()
        for writer in writers:
            writer.join()
        disk = fsync_us(folder)

    def ratio(ours: tuple[str, int], theirs: tuple[str, int]) -> str:
        found = [a / b for a, b in zip(rates[ours], rates[theirs], strict=True)]
        return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"

    lines = ["| durability | 1 client, writes/s | 16 clients, writes/s |", "|---|---:|---:|"]
    for mode in modes:
        one, many = (statistics.median(rates[mode, count]) for count in (1, MANY))
        lines.append(f"| {mode} | {one:,.0f} | {many:,.0f} |")
    lines += [
        "",
        "| | measured | target |",
        "|---|---:|---:|",
        f"| one client, journal ÷ save | {ratio(('journal', 1), ('save', 1))} | ≥ 0.9 |",
        f"| fsync, 16 clients ÷ one | {ratio(('fsync', MANY), ('fsync', 1))} | ≥ 8 |",
        f"| 16 clients, fsync ÷ save | {ratio(('fsync', MANY), ('save', MANY))} | |",
        "",
        f"An append and its fdatasync alone take {disk:.0f} µs here"
        + (f", each fdatasync delayed by {options.fsync_ms:g} ms more" if slower else "")
        + f". {options.rounds} rounds of {options.seconds:g} s; {machine()}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
