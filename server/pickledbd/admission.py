"""Admission: how many connections are accepted, and how fast.

May live here: when the daemon stops accepting and begins again, and whom it sends away to have
room. What is not accepted waits in the system's queue, so nobody is refused by this.

libzmq aborts the process where it has no descriptor for a connection that it accepts, which it does
by a thread of its own, some fifty thousand a second. So there is a margin, to be used up while the
loop is busy elsewhere; and not more than so many are accepted at a time, which also leaves
processor time to those who are there already.
"""

from __future__ import annotations

import logging
import math
import resource
from itertools import islice
from pathlib import Path

from pickledbd.connections import Connections
from pickledbd.limits import Limits
from pickledbd.listeners import Listeners

log = logging.getLogger(__name__)

RESERVE = 32
"""Descriptors that are left for files: data file, journals, annex, lock files."""

AHEAD = 1000
"""Connections beyond the clients that are served: each is told that it is one too many."""

WINDOW_SECONDS = 0.1
ACCEPTED_A_WINDOW = 250
"""Who comes beyond these in such a while waits for the next."""

SILENT_SECONDS = 2.0
"""Where there is no room, a connection that has never asked anything is kept for so long."""

HUNG_UP_AT_ONCE = 50

HELD_SECONDS = 0.5

REFUSED_SECONDS = 1.0
"""How long after it was told that it is one too many a connection is kept."""

LOG_SECONDS = 10.0


class Admission:
    """Decides who is accepted, by the descriptors that this process may have."""

    def __init__(self, connections: Connections, listeners: Listeners, limits: Limits) -> None:
        free = _descriptors_left() - RESERVE
        margin = max(min(free // 3, 16_384), 32)
        self.most = max(1, min(limits.clients + AHEAD, free - margin))
        """Connections that are accepted."""
        self.clients = min(limits.clients, max(1, self.most - self.most // 8))
        """Connections that are served."""
        self._connections = connections
        connections.most = self.clients
        self._listeners = listeners
        self._a_window = min(ACCEPTED_A_WINDOW, max(8, margin // 2))
        self._window_ends = 0.0
        self._accepted = 0  # before this window
        self._is_full = False
        self._held_until = 0.0
        self._log_at = -math.inf
        if self.clients < limits.clients:
            log.info(
                "%d clients are served at a time, for want of descriptors (RLIMIT_NOFILE)",
                self.clients,
            )

    def hold(self, now: float) -> None:
        """Accept nothing for a moment: what a process has sent that is kept out is taken first."""
        self._held_until = now + HELD_SECONDS
        self._listeners.pause()

    def look(self, now: float) -> float:
        """Accept, or do not, from now on; when to be called again at the latest."""
        connections, listeners = self._connections, self._listeners
        if now >= self._window_ends:
            if connections.accepted == self._accepted and not listeners.paused:
                return math.inf
            self._accepted, self._window_ends = connections.accepted, now + WINDOW_SECONDS
        rushed = connections.accepted - self._accepted >= self._a_window
        # Once it is, until there is room again for some
        full = len(connections) >= self.most - self._is_full * (self.most // 10)
        if full:
            self._make_room(now)
            if not self._is_full and now >= self._log_at:
                self._log_at = now + LOG_SECONDS
                log.warning(
                    "%d connections are open, so further ones have to wait (%s)",
                    len(connections),
                    connections.most_of(),
                )
        self._is_full = full
        held = rushed or connections.uncounted or now < self._held_until
        if listeners.paused and not (full or held):
            listeners.resume()
        elif not listeners.paused and (full or rushed):
            listeners.pause()
        return self._window_ends if listeners.paused else math.inf

    def _make_room(self, now: float) -> None:
        """Hang up on those who only hold a place, the oldest first."""
        places = (
            each
            for each in self._connections
            if each.peer is None and now - each.since > SILENT_SECONDS
        )
        for connection in islice(places, HUNG_UP_AT_ONCE):
            self._connections.hang_up(connection, "asked nothing, where others have to wait")


def _descriptors_left() -> int:
    """How many further ones this process may have."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        most = 2**20
    for directory in (Path("/proc/self/fd"), Path("/dev/fd")):
        if directory.is_dir():
            return most - sum(1 for _ in directory.iterdir())
    return most
