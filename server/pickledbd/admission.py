"""Admission: how many connections are accepted, and how fast.

May live here: when the next one is accepted, and whom the daemon sends away to have room. They are
accepted one by one (`valve`): only when one is known of, and there is room, the next. So a flood of
them waits in the system's queue, where it costs nobody anything, and libzmq, which aborts the
process where it has no descriptor for a connection, always has one.
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
from pickledbd.valve import IS_THERE

log = logging.getLogger(__name__)

RESERVE = 40
"""Descriptors that are left for files: data file, journals, annex, lock files; and for looks."""

AHEAD = 1000
"""Connections beyond the clients that are served: each is told that it is one too many."""

WINDOW_SECONDS = 0.1
ACCEPTED_A_WINDOW = 250
"""Who comes beyond these in such a while waits for the next: each costs the others something."""

FULL_SECONDS = 0.02
"""How soon it is looked again whether there is room."""

SILENT_SECONDS = 2.0
"""Where there is no room, a connection that has never asked anything is kept for so long."""

HUNG_UP_AT_ONCE = 50

HELD_SECONDS = 0.5
"""How long nobody is accepted where a process is kept out from now on, which may try again."""

REFUSED_SECONDS = 1.0
"""How long after it was told that it is one too many a connection is kept."""

LOG_SECONDS = 10.0


class Admission:
    """Decides who is accepted, by the descriptors that this process may have."""

    def __init__(self, connections: Connections, listeners: Listeners, limits: Limits) -> None:
        free = _descriptors_left() - RESERVE
        if not IS_THERE:  # they are accepted while the loop is busy elsewhere
            free -= max(min(free // 3, 16_384), 32)
        self._most = max(1, min(limits.clients + AHEAD, free))  # that are accepted
        self.clients = limits.clients
        """Connections that are served."""
        if free < limits.clients + AHEAD:
            self.clients = min(limits.clients, max(1, self._most - self._most // 8))
        self._connections = connections
        connections.most = self.clients
        self._listeners = listeners
        self._known = 0  # of those that were made
        self._of_window = 0
        self._window_ends = self._held_until = 0.0
        self.is_waiting = False
        """Whether the next one is not accepted yet."""
        self._is_full = False
        self._log_at = -math.inf
        if self.clients < limits.clients:
            log.info(
                "%d clients are served at a time, for want of descriptors (RLIMIT_NOFILE)",
                self.clients,
                extra={"event": "clients_limited", "clients": self.clients},
            )

    def hold(self, now: float) -> None:
        """Accept nobody for a moment."""
        self._held_until = now + HELD_SECONDS
        self.is_waiting = True
        self._listeners.shut()

    def upkeep(self) -> None:
        """Accept the next one, whatever became of the one before."""
        if not self.is_waiting:
            self._listeners.let_one_in()

    def look(self, now: float) -> float:
        """One was `made`: accept the next, or do not yet; when to be called again at the latest."""
        connections = self._connections
        if now >= self._window_ends:
            self._of_window, self._window_ends = 0, now + WINDOW_SECONDS
        self._of_window += connections.made - self._known
        self._known = connections.made
        # Once it is, until there is room again for some
        full = len(connections) >= self._most - self._is_full * (self._most // 10)
        if full:
            self._make_room(now, tell=not self._is_full)
        self._is_full = full
        self.is_waiting = (
            full
            or self._of_window >= ACCEPTED_A_WINDOW
            or connections.uncounted
            or now < self._held_until
        )
        if self.is_waiting:
            return now + FULL_SECONDS
        self._listeners.let_one_in()
        return math.inf

    def _make_room(self, now: float, *, tell: bool) -> None:
        """Hang up on those who only hold a place, the oldest first."""
        if tell and now >= self._log_at:
            self._log_at = now + LOG_SECONDS
            most = self._connections.most_of()
            told = {"event": "connections_wait", "count": len(self._connections), "most": most}
            log.warning(
                "%d connections are open, so further ones have to wait (%s)",
                told["count"],
                most,
                extra=told,
            )
        places = (
            each
            for each in self._connections
            if each.peer is None and not each.is_out and now - each.since > SILENT_SECONDS
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
