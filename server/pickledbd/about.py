"""What the daemon tells of itself: to whoever connects, and to who asks.

May live here: the answers to `hello` and `info` (SPEC.md), and the line that a service manager
shows. All of it is known by others.
"""

from __future__ import annotations

import os
import platform
import time
from typing import Any

import orjson

from pickledbd import logs, usage
from pickledbd.clock import now_ms
from pickledbd.journal import Journal
from pickledbd.parking import Parking
from pickledbd.saver import Saver
from pickledbd.status import SLICES_MS, Status
from pickledbd.store import Store
from pickledbd_protocol import PROTOCOL_VERSION, ProtocolError, __version__

FEATURES = ["repeats", "parts", "gather", "atomic", "expiry", "locks", "watch", "globs", "ttls"]
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

    def hello(self, versions: list[int], *, read_only: bool) -> dict[str, Any]:
        """The answer to a greeting. ProtocolError if it speaks none of the `versions`.

        `read_only`: whether who asks may only read.
        """
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
            "read_only": read_only,
            "now": now_ms(),
            "counters": self._store.counters.told,
        }

    def info(self, *, reset: bool, read_only: bool) -> dict[str, Any]:
        """The answer to `info`; with `reset` what is longest begins anew."""
        status = self._status
        told = {**self._state(read_only=read_only), **self._counts(), **self._process()}
        if reset:
            status.longest_slice_ms = 0.0
        return told

    def _state(self, *, read_only: bool) -> dict[str, Any]:
        """How things stand."""
        status = self._status
        return {
            "pid": os.getpid(),
            "version": __version__,
            "protocol": PROTOCOL_VERSION,
            "location": status.location,
            "endpoints": status.endpoints,
            "read_only": read_only,
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
            "limits": {"request_bytes": status.request_bytes, **status.limits.told()},
            "slow": status.slow.last(),
        }

    def _counts(self) -> dict[str, Any]:
        """What has happened since the start."""
        status = self._status
        bounds = [*map(str, SLICES_MS), "more"]
        return {
            "requests": {name: count for name, count in status.requests.items() if count},
            "errors": dict(status.errors),
            "slow_operations": status.slow.count,
            "connections_accepted": status.connections_accepted,
            "connections_refused": status.connections_refused,
            "hung_up": status.hung_up,
            "bytes_in": status.bytes_in,
            "bytes_out": status.bytes_out,
            "expired_keys": self._store.expired,
            "changes_told": self._store.feed.told,
            "locks_granted": self._store.locks.grants_made,
            "large_batches": status.large_batches,
            "saves": status.saves,
            "saves_failed": status.saves_failed,
            "save_seconds": round(status.save_seconds, 6),
            "journal_written": self._journal.written,
            "journal_syncs": self._journal.syncs,
            "log_lines_lost": logs.lost(),
            "busy_seconds": round(status.busy_seconds, 6),
            "slices": dict(zip(bounds, status.slices, strict=True)),
        }

    def _process(self) -> dict[str, Any]:
        """What the process takes, and is made of."""
        status = self._status
        return {
            "cpu_seconds": round(time.process_time(), 6),
            "resident_bytes": usage.resident_bytes(),
            "descriptors": usage.descriptors(status.clients),
            "descriptors_max": usage.descriptors_max(),
            "python": platform.python_version(),
            "libzmq": status.libzmq,
            "orjson": orjson.__version__,
        }

    def line(self) -> str:
        """What there is, and how it goes, for who asks `systemctl status`."""
        status, refusing = self._status, self._saver.refusing
        saved = "no save yet"
        if status.last_save_error is not None:
            saved = f"the last save failed: {status.last_save_error}"
        elif status.last_save_time is not None:
            at = time.localtime(status.last_save_time)
            saved = f"saved at {time.strftime('%Y-%m-%d %H:%M:%S %Z', at)}"
        parts = [
            f"{len(self._store):,} keys",
            f"{status.clients:,} clients",
            f"{self._saver.dirty:,} unsaved changes",
            saved,
        ]
        if refusing is not None:
            parts.insert(0, f"writes are refused: {refusing}")
        return "; ".join(parts)
