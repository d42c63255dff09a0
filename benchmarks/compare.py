"""Compare pickledbd with all its peers: every comparison, or those that are named.

    python benchmarks/compare.py [--quick] [--write] [NAME...]

The peers are started here; what is missing is told at once. `--quick` takes two minutes and tells
whether all run; figures for the README are those of a run without it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import bench_async
import bench_batches
import bench_cache_cost
import bench_first_use
import bench_seed
import bench_single
import bench_threads
import bench_together
import bench_ycsb
from harness import Report

COMPARISONS: dict[str, Callable[[bool], Report]] = {
    "single": bench_single.run,
    "ycsb": bench_ycsb.run,
    "threads": bench_threads.run,
    "batches": bench_batches.run,
    "async": bench_async.run,
    "seed": bench_seed.run,
    "first_use": bench_first_use.run,
    "cache_cost": bench_cache_cost.run,
    "together": bench_together.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(COMPARISONS))
    parser.add_argument("--quick", action="store_true", help="two minutes for all")
    parser.add_argument("--write", action="store_true", help="put the results into README.md")
    options = parser.parse_args()
    if unknown := set(options.names) - set(COMPARISONS):
        parser.error(f"there is no {', '.join(sorted(unknown))}, but {', '.join(COMPARISONS)}")
    for name in options.names or COMPARISONS:
        begin = time.monotonic()
        report = COMPARISONS[name](options.quick)
        print(f"## {name}\n\n{report.text}\n", flush=True)
        print(f"{name} took {time.monotonic() - begin:.0f} s", file=sys.stderr)
        if options.write:
            report.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
