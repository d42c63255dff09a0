"""What the benchmarks share: peers started here, measured in turn, told as medians and ratios.

The machine drifts, so a number means something only beside another of the same run. Each round
measures every contender once, in turn; a ratio is taken within each round, and the median of
the rounds is told with its spread.
"""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson
import zmq

from pickledbd_protocol import __version__

README = Path(__file__).with_name("README.md")


def machine() -> str:
    """What this was measured on, in one line."""
    model = "unknown processor"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.split(":")[1].strip()
                break
    return (
        f"{os.cpu_count()} cores ({model}), {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, pyzmq {zmq.__version__}, libzmq {zmq.zmq_version()}, "
        f"orjson {orjson.__version__}, pickledbd {__version__}"
    )


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[str]:
    """A peer that says one line when it is ready; that line. It is ended afterwards."""
    peer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        if peer.stdout is None or not (line := peer.stdout.readline()):
            raise RuntimeError(f"{command} did not start")
        yield line
    finally:
        peer.terminate()
        peer.communicate(timeout=60)


def latencies(operation: Callable[[], object], count: int) -> list[float]:
    """Microseconds of each of `count` calls, one after the other."""
    clock = time.perf_counter_ns
    taken = []
    for _ in range(count):
        begin = clock()
        operation()
        taken.append((clock() - begin) / 1000)
    return taken


@dataclass
class Row:
    """A contender's figures: microseconds, and its ratio to the baseline round by round."""

    name: str
    p50: float
    p99: float
    ratio: float
    lowest: float
    highest: float


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    baseline_of: Mapping[str, str],
    *,
    rounds: int,
    count: int,
) -> list[Row]:
    """Measure all `contenders` in turn, `count` calls a round; ratios of p50 to their baselines."""
    taken: dict[str, list[list[float]]] = {name: [] for name in contenders}
    for operation in contenders.values():
        latencies(operation, count)  # a warm-up round that is not counted
    for number in range(rounds):
        print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
        order = list(contenders.items())
        for name, operation in order if number % 2 else reversed(order):
            taken[name].append(latencies(operation, count))
    print(file=sys.stderr)
    medians = {name: [statistics.median(one) for one in all_] for name, all_ in taken.items()}
    rows = []
    for name in contenders:
        everything = sorted(value for one in taken[name] for value in one)
        ratios = [
            ours / theirs
            for ours, theirs in zip(medians[name], medians[baseline_of[name]], strict=True)
        ]
        rows.append(
            Row(
                name,
                statistics.median(everything),
                everything[len(everything) * 99 // 100],
                statistics.median(ratios),
                min(ratios),
                max(ratios),
            )
        )
    return rows


def table(rows: list[Row], baseline: str) -> str:
    """The rows as a Markdown table."""
    lines = [
        f"| | p50, µs | p99, µs | p50 ÷ {baseline} | lowest to highest round |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.name} | {row.p50:.0f} | {row.p99:.0f} | {row.ratio:.2f} "
        f"| {row.lowest:.2f} to {row.highest:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def write_section(name: str, text: str) -> None:
    """Put `text` between the marks of section `name` in benchmarks/README.md."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, rest = README.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    README.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")


def resident(pid: int) -> int:
    """The resident memory of a process, in bytes."""
    with Path(f"/proc/{pid}/status").open(encoding="utf-8") as status:
        for line in status:
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
    return 0
