"""A client that goes on as always beside those who abuse the daemon, and what it notices."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pickledbd_client import PickleDB
from support import PATIENCE

MUCH, SECONDS = 20, 5.0
"""How much worse its p99 may become: so many times as long, or so many seconds. Tests are no
benchmarks, and run beside each other (benchmarks/abuse.py has the figures)."""

PAUSE = 0.002
"""Seconds between its calls: it is to notice what others do, not to keep a processor busy."""


class Bystander:
    """Reads and writes in lock-step, asking the daemon each time. No call of it may fail."""

    def __init__(self, daemon):
        self._db = PickleDB(daemon.endpoint, cache_bytes=0, timeout=PATIENCE)
        self._p99s = []
        self._count = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._db.close()

    def works(self, seconds):
        """Do so for a while; its p99, in seconds."""
        took = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._count += 1
            begun = time.perf_counter()
            self._db.set("bystander", self._count)
            assert self._db.get("bystander") == self._count
            took.append((time.perf_counter() - begun) / 2)
            time.sleep(PAUSE)
        took.sort()
        self._p99s.append(took[int(0.99 * len(took))])
        return self._p99s[-1]

    def keys(self):
        """What there is."""
        return self._db.all()

    def was_hardly_disturbed(self):
        """Compare its last while with its first."""
        normal, *_, abused = self._p99s
        assert abused < max(MUCH * normal, SECONDS), (normal, abused)
        return True


def resident(daemon):
    """MiB of memory of a daemon."""
    pages = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def grown(daemon, before):
    """By how many MiB it has more than `before`."""
    return resident(daemon) - before
