"""Measure how long a program waits for its first answer.

    python benchmarks/bench_first_use.py [--quick] [--write]

Whole processes: an import beside that of zmq and orjson alone; and, after the import, the time
until a path has answered its first get, where it has an owner and where it has none.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from harness import Report, Target, command_line, divided, in_turn, machine, number, targets

from pickledbd_client import PickleDB
from pickledbd_client.starting import is_free

NOTHING, BARE, OURS = "", "import zmq, orjson", "import pickledbd_client"

FIRST_GET = """
import sys, time
from pickledbd_client import PickleDB
begin = time.perf_counter()
PickleDB(sys.argv[1]).get("key")
print((time.perf_counter() - begin) * 1000)
"""

IDLE_EXIT = "0.2"
"""Seconds after which the owners that are started here end by themselves."""


def process_ms(code: str) -> float:
    """Milliseconds of a Python that runs `code`."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return (time.perf_counter() - begin) * 1000


def first_get_ms(path: Path) -> float:
    """Milliseconds until the first answer, of a process of its own."""
    told = subprocess.run(
        [sys.executable, "-c", FIRST_GET, str(path)],
        check=True,
        stdout=subprocess.PIPE,
        env=os.environ | {"PICKLEDBD_IDLE_EXIT": IDLE_EXIT},
    )
    return float(told.stdout)


def run(quick: bool) -> Report:
    rounds = 5 if quick else 31
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process compiles all of it anew
    with tempfile.TemporaryDirectory() as folder:
        fresh = (Path(folder) / f"{number}.db" for number in range(rounds + 1))
        owned = Path(folder) / "owned.db"
        os.environ["PICKLEDBD_IDLE_EXIT"] = IDLE_EXIT
        owner = PickleDB(owned)
        owner.set("key", 1)
        contenders: dict[str, Callable[[], float]] = {
            **{code: partial(process_ms, code) for code in (NOTHING, BARE, OURS)},
            "owned": partial(first_get_ms, owned),
            "none": lambda: first_get_ms(next(fresh)),
        }
        for code in (NOTHING, BARE, OURS):
            process_ms(code)  # what is compiled once
        figures = in_turn(contenders, rounds, "first use")
        owner.close()
        _wait_for_the_end(folder)
    bare = figures[NOTHING]
    imports = {
        code: [max(a - b, 0.01) for a, b in zip(figures[code], bare, strict=True)]
        for code in (BARE, OURS)
    }
    rows = [
        ("`import zmq, orjson`, over a Python that imports nothing", imports[BARE]),
        ("`import pickledbd_client`, over the same", imports[OURS]),
        ("first get of a path that has an owner, after the import", figures["owned"]),
        ("first get of a path that has none", figures["none"]),
    ]
    lines = ["| | ms |", "|---|---:|"]
    lines += [f"| {what} | {number(statistics.median(taken))} |" for what, taken in rows]
    found = [
        Target(
            "our import ÷ that of zmq and orjson", divided(*reversed(imports.values())), at_most=2
        ),
        Target("first get, an owner there", figures["owned"], at_most=20, unit="ms"),
        Target("first get, none there", figures["none"], at_most=500, unit="ms"),
    ]
    told = "\n".join(
        [*lines, "", targets(found), "", f"{rounds} rounds, whole processes; {machine()}."]
    )
    return Report("first_use", told)


def _wait_for_the_end(folder: str) -> None:
    """Until the last owner has ended by itself, so that it finds the folder still there."""
    databases = [lock.with_suffix("") for lock in Path(folder).glob("*.db.lock")]
    while not all(map(is_free, databases)):
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(command_line(__doc__, run))
