"""What the daemon tells about itself, in `info` and to its service manager."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from pickledbd.limits import Limits


@dataclass
class Status:
    """Kept up by those who know: the loop, the engine, the saver."""

    location: str
    request_bytes: int
    limits: Limits = field(default_factory=Limits)
    endpoints: list[str] = field(default_factory=list)
    clients: int = 0
    hung_up: int = 0
    unread_bytes: int = 0
    started: float = field(default_factory=time.monotonic)
    longest_slice_ms: float = 0.0
    last_save_time: float | None = None
    last_save_duration_ms: float | None = None
    last_save_error: str | None = None

    def slice(self, seconds: float) -> None:
        """Note for how long the loop kept everybody waiting."""
        self.longest_slice_ms = max(self.longest_slice_ms, seconds * 1000)
