"""Refused connections, in the log: from where, and why, without being flooded by them.

What comes again from the same address for the same reason is counted, and told once a while.
"""

from __future__ import annotations

import logging
import time

from pickledbd.status import Status

log = logging.getLogger(__name__)

WHILE_SECONDS = 60.0

DIFFERENT = 10
"""Addresses and reasons that are told in a while; of the others only how many they are."""


class Refusals:
    """Those of one daemon."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._again: dict[tuple[str, str], int] = {}
        self._others = 0
        self._until = 0.0

    def note(self, who: str, endpoint: str, why: str) -> None:
        """A connection of `who` was refused."""
        self._status.connections_refused += 1
        self.tell()
        what = (who.rpartition(":")[0] or who, why)  # from whatever port
        if what in self._again:
            self._again[what] += 1
        elif len(self._again) < DIFFERENT:
            self._again[what] = 0
            told = {"event": "refused", "peer": who, "endpoint": endpoint, "why": why}
            log.warning("refused %s at %s: %s", who, endpoint, why, extra=told)
        else:
            self._others += 1

    def tell(self) -> None:
        """Tell what was counted, if it is time; to be called now and then."""
        now = time.monotonic()
        if now < self._until:
            return
        for (where, why), times in self._again.items():
            if times:
                told = {"event": "refused_again", "peer": where, "count": times, "why": why}
                log.warning("refused %s %d more times: %s", where, times, why, extra=told)
        if self._others:
            others = {"event": "refused_others", "count": self._others}
            log.warning("refused %d connections of others", self._others, extra=others)
        self._again.clear()
        self._others = 0
        self._until = now + WHILE_SECONDS
