"""What the daemon tells about itself, in `info` and to its service manager.

May live here: what has no room of its own to be counted in. On the way of each request stand plain
numbers: to count costs less than a tenth of a microsecond.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from pickledbd.limits import Limits
from pickledbd.slow import SlowLog
from pickledbd_protocol import COMMANDS

SLICES_MS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000)
"""The bounds by which the loop's slices are sorted: above all around those that it aims at."""


@dataclass
class Status:
    """Kept up by those who know: the loop, the engine, the saver."""

    location: str
    request_bytes: int
    slow: SlowLog = field(default_factory=SlowLog)
    limits: Limits = field(default_factory=Limits)
    endpoints: list[str] = field(default_factory=list)
    clients: int = 0
    unread_bytes: int = 0
    started: float = field(default_factory=time.monotonic)
    longest_slice_ms: float = 0.0
    last_save_time: float | None = None
    last_save_duration_ms: float | None = None
    last_save_error: str | None = None
    requests: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COMMANDS, 0))
    """By command. One in parts counts when its last part has come."""
    errors: Counter[str] = field(default_factory=Counter)
    """Requests that were answered by an error, by its code."""
    connections_accepted: int = 0
    connections_refused: int = 0
    hung_up: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    large_batches: int = 0
    saves: int = 0
    saves_failed: int = 0
    save_seconds: float = 0.0
    busy_seconds: float = 0.0
    slices: list[int] = field(default_factory=lambda: [0] * (len(SLICES_MS) + 1))
    """How many were at most as long as each of SLICES_MS, and longer than the one before."""
    libzmq: str = ""
    """The version of the library that the loop uses."""

    def slice(self, seconds: float) -> None:
        """Note for how long the loop kept everybody waiting."""
        milliseconds = seconds * 1000
        self.busy_seconds += seconds
        self.slices[bisect_left(SLICES_MS, milliseconds)] += 1
        self.longest_slice_ms = max(self.longest_slice_ms, milliseconds)
