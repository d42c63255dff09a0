"""What the benchmarks share: peers started here, measured in turn, told as medians and ratios.

The machine drifts, so a number means something only beside another of the same run. Each round
measures every contender once, in turn; a ratio is taken within each round, and the median of
the rounds is told with its spread.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import zmq

from pickledbd_protocol import __version__

README = Path(__file__).with_name("README.md")
PLOTS = Path(__file__).with_name("plots")

ECHO = """
import sys, zmq
router = zmq.Context().socket(zmq.ROUTER)
router.bind(sys.argv[1])
print("ready", flush=True)
while True:
    router.send_multipart(router.recv_multipart())
"""
"""A bare ZeroMQ round trip's other side: a ROUTER that sends back what it gets."""


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


def measured(rounds: int, seconds: float) -> str:
    """How long each contender was measured, and on what."""
    return f"{rounds} rounds of {seconds:g} s each; {machine()}"


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


@dataclass
class Report:
    """What a comparison found: the text of its section of the README, and pictures for it."""

    section: str
    text: str
    plots: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    """For each file in benchmarks/plots, what draws it."""

    def write(self) -> None:
        """Put the text into the README and draw the pictures."""
        write_section(self.section, self.text)
        PLOTS.mkdir(exist_ok=True)
        for name, draw in self.plots.items():
            draw(PLOTS / name)


def command_line(doc: str | None, run: Callable[[bool], Report]) -> int:
    """The main() of a comparison: `run(quick)`, then its report is shown, and written if asked."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0] if doc else None)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--write", action="store_true", help="put the result into README.md")
    options = parser.parse_args()
    report = run(options.quick)
    print(report.text)
    if options.write:
        report.write()
    return 0


Figures = dict[str, list[float]]
"""What each contender reached, a figure for each round."""


def in_turn(contenders: Mapping[str, Callable[[], float]], rounds: int, what: str) -> Figures:
    """Have each contender take its figure once a round, in alternating order."""
    taken: Figures = {name: [] for name in contenders}
    gc.collect()
    gc.freeze()  # so that no contender pays for what the others keep in this process
    for number in range(rounds):
        order = list(contenders.items())
        for done, (name, take) in enumerate(order if number % 2 else reversed(order)):
            at = f"{what}, round {number + 1} of {rounds}, {done + 1} of {len(order)}: {name}"
            print(f"\r\033[K{at}", end="", file=sys.stderr, flush=True)
            taken[name].append(take())
    print("\r\033[K", end="", file=sys.stderr, flush=True)
    return taken


def divided(ours: list[float], theirs: list[float]) -> list[float]:
    """The ratio of each round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def number(value: float) -> str:
    """A figure with three digits at least, and no more than say something."""
    for size, digits in ((100, 0), (10, 1), (1, 2)):
        if value >= size:
            return f"{value:,.{digits}f}"
    return f"{value:.3f}"


def spread(values: list[float]) -> str:
    """The median, and the lowest and the highest."""
    low, high = min(values), max(values)
    return f"{number(statistics.median(values))} ({number(low)} to {number(high)})"


@dataclass
class Target:
    """A ratio, round by round, beside what was aimed at."""

    what: str
    ratios: list[float]
    at_most: float | None = None
    at_least: float | None = None
    unit: str = "x"

    def row(self) -> str:
        """Its line of the table of targets."""
        median = statistics.median(self.ratios)
        if self.at_most is not None:
            aim, met = f"≤ {self.at_most:g} {self.unit}", median <= self.at_most
        elif self.at_least is not None:
            aim, met = f"≥ {self.at_least:g} {self.unit}", median >= self.at_least
        else:
            return f"| {self.what} | {spread(self.ratios)} {self.unit} | | |"
        return f"| {self.what} | {spread(self.ratios)} {self.unit} | {aim} | {_YES_NO[met]} |"


_YES_NO = {True: "yes", False: "**no**"}


def targets(rows: list[Target]) -> str:
    """The targets as a Markdown table."""
    return "\n".join(
        ["| | measured | target | met |", "|---|---:|---:|---|", *(r.row() for r in rows)]
    )
