"""Measure what a bystander notices of others who abuse the daemon.

The bystander writes and reads in lock-step, one key, by a `PickleDB` that keeps nothing. For each
scenario it does so in turn, in one run: alone ("plain"), beside a process that is as hungry for the
processor and does not touch the daemon ("normal"), and beside the abuser. The abusers are those of
tests/abusing.py, of which most would take a processor for themselves; so "normal" is the fair
comparison. Also: how the daemon's memory grew.

    python benchmarks/abuse.py [--seconds 2] [--rounds 3] [--nice 0] [SCENARIO ...] [--write]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from harness import machine, resident, started, write_section

from pickledbd_client import PickleDB

ABUSING = Path(__file__).parents[1] / "tests" / "abusing.py"
SCENARIOS = (
    "in_flight",
    "never_reads",
    "slow_reader",
    "raw_flood",
    "full_flood",
    "silent_flood",
    "half_open",
    "never_ends",
    "many_frames",
    "parked",
    "parts",
)


@contextlib.contextmanager
def beside(scenario: str, path: Path, nice: int) -> Iterator[None]:
    """Have a scenario going on."""
    process = subprocess.Popen(
        [sys.executable, str(ABUSING), scenario, str(path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"ABUSER_NICE": str(nice)},
    )
    try:
        if process.stdout is not None:
            process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


def latencies(db: PickleDB, seconds: float) -> list[float]:
    """Seconds that each get and each set took."""
    took = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for call in (lambda: db.get("k"), lambda: db.set("k", 1)):
            begun = time.perf_counter()
            call()
            took.append(time.perf_counter() - begun)
    return took


def at(took: list[float], part: float) -> float:
    return sorted(took)[min(len(took) - 1, int(part * len(took)))] * 1e6


def measure(scenario: str, options: argparse.Namespace) -> str:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "s.sock"
        daemon = [sys.executable, "-m", "pickledbd", f"{directory}/my.db"]
        daemon += ["--bind", f"ipc://{path}", "--durability", options.durability]
        with (
            started(daemon),
            contextlib.closing(PickleDB(f"ipc://{path}", cache_bytes=0, timeout=60)) as db,
        ):
            db.set_many({f"key {n}": "x" * 100 for n in range(100_000)})
            db.set("large", "x" * 1_000_000)
            db.set("k", 1)
            pid = db.info()["pid"]
            latencies(db, 0.5)
            before = peak = resident(pid) / 2**20
            plain: list[float] = []
            normal: list[float] = []
            abused: list[float] = []
            for _ in range(options.rounds):
                plain += latencies(db, options.seconds / 2)
                with beside("nothing", path, options.nice):
                    normal += latencies(db, options.seconds)
                with beside(scenario, path, options.nice):
                    for _ in range(4):
                        abused += latencies(db, options.seconds / 4)
                        peak = max(peak, resident(pid) / 2**20)
                time.sleep(0.5)
            slice_ms = db.info()["longest_slice_ms"]
    ratio = at(abused, 0.99) / at(normal, 0.99)
    cells = [scenario.replace("_", " ")]
    cells += [f"{at(each, 0.5):,.0f} / {at(each, 0.99):,.0f}" for each in (plain, normal, abused)]
    cells += [f"{ratio:.1f}", f"{before:.0f} → {peak:.0f}", f"{slice_ms:.1f}"]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("scenarios", nargs="*", default=SCENARIOS)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nice", type=int, default=0, help="of the abusers")
    parser.add_argument("--durability", default="journal")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    head = [
        *("scenario", "plain p50 / p99, µs", "normal", "abused", "p99 abused : normal"),
        *("daemon's memory, MiB", "longest slice, ms"),
    ]
    rows = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    print("\n".join(rows), flush=True)
    for scenario in options.scenarios:
        rows.append(measure(scenario, options))
        print(rows[-1], flush=True)
    told = "\n".join(rows) + f"\n\n{options.rounds} rounds of {options.seconds:g} s; {machine()}."
    if options.write:
        write_section("abuse", told)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
