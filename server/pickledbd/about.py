"""What the daemon tells of itself: to whoever connects, and to who asks.

May live here: the answers to `hello` and `info` (SPEC.md). All of it is known by others.
"""

from __future__ import annotations

import os
import time
from typing import Any

from pickledbd.clock import now_ms
from pickledbd.journal import Journal
from pickledbd.parking import Parking
from pickledbd.saver import Saver
from pickledbd.status import Status
from pickledbd.store import Store
from pickledbd_protocol import PROTOCOL_VERSION, ProtocolError, __version__

FEATURES = ["repeats", "parts", "gather", "atomic", "expiry", "locks", "watch", "globs"]
"""What this daemon can do beyond the first protocol version 1 (SPEC.md, The first exchange)."""


class About:
    """What can be told."""

    def __init__(
        self, store: Store, journal: Journal, saver: Saver, parking: Parking, status: Status
    ) -> None:
        self._store = store
        self._journal = journal
        self._saver = saver
        self._parking = parking
        self._status = status

    def hello(self, versions: list[int]) -> dict[str, Any]:
        """The answer to a greeting. ProtocolError if it speaks none of the `versions`."""
        if PROTOCOL_VERSION not in versions:
            raise ProtocolError(
                f"this daemon ({__version__}) speaks protocol version {PROTOCOL_VERSION}, "
                f"the client {versions}: use the same pickledbd release on both sides"
            )
        return {
            "version": PROTOCOL_VERSION,
            "server": __version__,
            "pid": os.getpid(),
            "location": self._status.location,
            "limits": {
                "request_bytes": self._status.request_bytes,
                "key_bytes": self._status.limits.key_bytes,
                "value_bytes": self._status.limits.value_bytes,
            },
            "durability": self._journal.durable,
            "features": FEATURES,
            "now": now_ms(),
            "counters": self._store.counters.told,
        }

    def info(self, *, reset: bool) -> dict[str, Any]:
        """The answer to `info`; with `reset` what is longest begins anew."""
        status = self._status
        told: dict[str, Any] = {
            "pid": os.getpid(),
            "version": __version__,
            "protocol": PROTOCOL_VERSION,
            "location": status.location,
            "endpoints": status.endpoints,
            "keys": len(self._store),
            "clients": status.clients,
            "durability": self._journal.durable,
            "dirty": self._saver.dirty,
            "uptime": round(time.monotonic() - status.started, 3),
            "last_save_time": status.last_save_time,
            "last_save_duration_ms": status.last_save_duration_ms,
            "last_save_status": self._saver.last_status,
            "last_save_error": status.last_save_error,
            "saving": self._saver.saving,
            "journal_bytes": self._journal.size,
            "writes_refused": self._saver.refusing,
            "locks": len(self._store.locks),
            "waiting": len(self._parking),
            "longest_slice_ms": round(status.longest_slice_ms, 3),
            "memory_bytes": self._store.size.bytes,
            "unread_bytes": status.unread_bytes,
            "hung_up": status.hung_up,
            "limits": {"request_bytes": status.request_bytes, **status.limits.told()},
        }
        if reset:
            status.longest_slice_ms = 0.0
        return told
