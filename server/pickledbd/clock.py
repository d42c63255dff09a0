"""The daemon's clock: milliseconds since 1970, which nobody sets while it runs.

May live here: that clock, and how it goes on in the next daemon. It is what the system's clock told
at the start, counted on from there by one that also counts while the machine sleeps
(CLOCK_BOOTTIME, where there is one). What must outlive a daemon (deadlines, when a write was sent)
is told by it. So:

- a step of the system's clock, forth or back, changes nothing in a running daemon;
- a daemon that is started again before the machine is takes the clock of the one before over,
  exactly: `told` says how far it was ahead of the counter, and by which boot of the machine;
- after another boot the system's clock is believed, but never before the newest time on record.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_COUNTER = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_ahead_ns = time.time_ns() - time.clock_gettime_ns(_COUNTER)


_held = False
_moment = 0  # what it was seen to show since it is held


def now_ms() -> int:
    """What the clock shows."""
    global _moment  # noqa: PLW0603 - a process has one clock
    if _moment:
        return _moment
    shown = (_ahead_ns + time.clock_gettime_ns(_COUNTER)) // 1_000_000
    if _held:
        _moment = shown
    return shown


def hold() -> None:
    """Have it show the same until `let_go`: no time passes within a command."""
    global _held  # noqa: PLW0603 - a process has one clock
    _held = True


def let_go() -> None:
    """Have it go on."""
    global _held, _moment  # noqa: PLW0603 - a process has one clock
    _held = False
    _moment = 0


def told() -> dict[str, Any]:
    """What the next daemon needs to go on with this clock."""
    return {"boot": _boot(), "ahead_ns": _ahead_ns, "now": now_ms()}


def go_on(before: Mapping[str, Any] | None, newest: int = 0) -> None:
    """Go on with the clock that `before` was `told` by, or at `newest` at the least.

    To be called before anything is told by it.
    """
    global _ahead_ns  # noqa: PLW0603 - a process has one clock
    if before is not None:
        if before["boot"] == _boot() != "" and before["now"] <= _shown(before["ahead_ns"]):
            _ahead_ns = before["ahead_ns"]
        newest = max(newest, before["now"])
    _ahead_ns += max(0, newest - now_ms()) * 1_000_000


def _shown(ahead_ns: int) -> int:
    shown: int = (ahead_ns + time.clock_gettime_ns(_COUNTER)) // 1_000_000
    return shown


def _boot() -> str:
    """Which boot of the machine this is; "" if the system does not tell."""
    with suppress(OSError):
        return _BOOT_ID.read_text(encoding="ascii").strip()
    return ""
