"""Measure the memory and the load time of a daemon beside those of pickleDB 1.0.

    python benchmarks/bench_memory.py [--keys 1000000] [--rounds 5] [--write]

Whole processes with the same file: a daemon until it says that it serves, and a Python that has
loaded the file with pickleDB 1.0. pickleDB is installed for it with pip, in a temporary directory.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson
from harness import machine, resident, write_section

PICKLEDB = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pickledb import PickleDB
db = PickleDB(sys.argv[2])
assert len(db.all()) == int(sys.argv[3])
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def build(path: Path, keys: int) -> None:
    """Write a data file of small nested values, as a daemon's save would."""
    with path.open("wb") as file:
        for n in range(keys):
            value = {"id": n, "name": f"user {n}", "tags": ["a", "b"], "at": {"x": n % 7, "y": 1.5}}
            file.write((b"{\n" if n == 0 else b",\n") + b'"user:%d":' % n + orjson.dumps(value))
        file.write(b"\n}\n")


def run(command: list[str]) -> tuple[float, int]:
    """Seconds until it says a line, and its resident bytes then."""
    begin = time.perf_counter()
    peer = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        if peer.stdout is None or not peer.stdout.readline():
            raise RuntimeError(f"{command} did not start")
        return time.perf_counter() - begin, resident(peer.pid)
    finally:
        peer.terminate()
        peer.communicate(timeout=60)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        told = measure(Path(directory), options.keys, options.rounds)
    print(told)
    if options.write:
        write_section("memory", told)
    return 0


def measure(folder: Path, keys: int, rounds: int) -> str:
    packages, path = folder / "packages", folder / "my.db"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(packages)]
    subprocess.run([*pip, "pickledb==1.0"], check=True)
    build(path, keys)
    ours = [sys.executable, "-m", "pickledbd", str(path)]
    theirs = [sys.executable, "-c", PICKLEDB, str(packages), str(path), str(keys)]
    taken: dict[str, list[tuple[float, int]]] = {"daemon": [], "pickleDB 1.0": []}
    for number in range(rounds):
        print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
        taken["daemon"].append(run(ours))
        taken["pickleDB 1.0"].append(run(theirs))
    print(file=sys.stderr)
    lines = ["| | seconds until loaded | resident MiB |", "|---|---:|---:|"]
    for name, found in taken.items():
        seconds = statistics.median(one for one, _ in found)
        size = statistics.median(one for _, one in found) / 2**20
        lines.append(f"| {name} | {seconds:.2f} | {size:.0f} |")
    for what, index, target in (("load time", 0, 0.8), ("memory", 1, 0.4)):
        ratios = [a[index] / b[index] for a, b in zip(*taken.values(), strict=True)]
        lines.append(
            f"| **{what}, daemon ÷ pickleDB** | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | target ≤ {target} |"
        )
    size = path.stat().st_size / 2**20
    return "\n".join([*lines, "", f"{keys:,} keys, {size:.0f} MiB, {rounds} rounds; {machine()}."])


if __name__ == "__main__":
    sys.exit(main())
