"""What this process takes of the machine, as the system tells it at little cost."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

_STATM = Path("/proc/self/statm")  # proc(5)
_DESCRIPTORS = Path("/proc/self/fd")


def resident_bytes() -> int | None:
    """Memory that it has; None where the system does not tell."""
    with suppress(OSError):
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def descriptors(connections: int) -> int | None:
    """How many it has open, of which so many are connections; None where that is not told.

    Linux before 6.2 tells by a list, of which 10,000 take 20 ms: it is asked once, and connections
    are what there may be many of.
    """
    with suppress(OSError):
        return _DESCRIPTORS.stat().st_size or connections + _others(connections)
    return None


def _others(connections: int) -> int:
    if not _found:
        _found.append(sum(1 for _ in _DESCRIPTORS.iterdir()) - connections)
    return _found[0]


_found: list[int] = []


def descriptors_max() -> int:
    """How many it may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
