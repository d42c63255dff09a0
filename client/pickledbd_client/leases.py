"""Leases: what is known of a lock's time, on this side.

May live here: the record of an ask and the clock it is kept by, without I/O. The daemon counts a
lock's ttl from when it grants or renews it, which is never before it was asked to. So counted from
the asking, no lease is thought to live longer than it does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

RENEWALS = 3
"""How often a lock is renewed within its ttl."""

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock() -> float:
    """Seconds, which go on while the machine sleeps, as they do for the daemon of another."""
    return time.clock_gettime(_CLOCK)


@dataclass(eq=False, slots=True)
class Lease:
    """An ask for a lock, and what came of it. Each change is one assignment, for any thread."""

    name: str
    ttl: float
    ask: int
    since: float = 0.0
    """When it was asked for, or asked to be renewed, the last time that this was answered."""
    due: float = 0.0
    """When it is to be renewed."""
    is_granted: bool = False
    has_ended: bool = False
    """Whether the daemon has told so."""
    is_given_up: bool = False
    holder: Callable[[], object] = object
    """A weak reference to what could give it back."""

    @property
    def period(self) -> float:
        """How long after one renewal the next is due."""
        return self.ttl / RENEWALS

    def is_over(self, now: float) -> bool:
        """Whether by then it is not known to be held any more."""
        return self.has_ended or now >= self.since + self.ttl

    def begin(self) -> None:
        """It is about to be asked for."""
        self.since = clock()

    def grant(self) -> None:
        """It was granted just now.

        Or a while ago, if the process was halted: whoever was long in waiting for the answer has
        it renewed at once, which tells.
        """
        now = clock()
        self.due = self.since + self.period
        if self.due <= now:
            self.since = self.due = now
        self.is_granted = True

    def renew(self, asked_at: float) -> None:
        """It was renewed by what was asked then."""
        self.since = asked_at
        self.due = asked_at + self.period

    def give_up(self) -> None:
        """Nobody wants it any more. What the daemon made of it ends within a ttl from now."""
        self.since = clock()
        self.is_given_up = True
