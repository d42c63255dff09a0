"""The valve: have libzmq accept one connection, and then none until it is told to again.

May live here: what that takes. libzmq knows no pause: to unbind ends the connections too, which are
children of the listener; and it accepts whatever comes, until it has no descriptor left and aborts.
But its I/O thread waits for the listening socket by epoll(7), and anybody in the process may say
what for: once only (EPOLLONESHOT), or nothing. What libzmq knows the socket by there is told in
/proc/self/fdinfo (proc(5)). Meanwhile who connects waits in the system's queue.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import re
import select
import time
from pathlib import Path

FOUND_SECONDS = 1.0
"""How long the I/O thread may take to wait for a new listening socket."""

_FDINFO = Path("/proc/self/fdinfo")
_MODIFY = 3  # EPOLL_CTL_MOD

IS_THERE = hasattr(select, "epoll") and _FDINFO.is_dir()
"""Whether there are valves; else, on other systems than Linux, they are always open."""


class _Event(ctypes.Structure):
    _pack_ = 1 if platform.machine() in ("x86_64", "AMD64") else 0  # as in <sys/epoll.h>
    _fields_ = (("events", ctypes.c_uint32), ("data", ctypes.c_uint64))


class Valve:
    """For one listening socket that libzmq has by this `descriptor`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._place: tuple[int, int] | None = None  # its epoll set, and its data there
        until = time.monotonic() + FOUND_SECONDS
        while IS_THERE and self._place is None and time.monotonic() < until:
            self._place = _find(descriptor)
            time.sleep(0 if self._place else 0.0005)
        self.let_one_in()

    def let_one_in(self) -> None:
        """Have the next one accepted, be it there already or not."""
        if self._place is not None:
            self._wait_for(select.EPOLLIN | select.EPOLLONESHOT)

    def shut(self) -> None:
        """Let nobody in, also where one might have come."""
        self._wait_for(0)

    def _wait_for(self, events: int) -> None:
        if self._place is not None:
            epoll, data = self._place
            event = ctypes.byref(_Event(events, data))
            ctypes.CDLL(None).epoll_ctl(epoll, _MODIFY, self._descriptor, event)


def _find(descriptor: int) -> tuple[int, int] | None:
    told = re.compile(rf"tfd:\s*{descriptor} events:\s*([0-9a-f]+) data:\s*([0-9a-f]+)")
    for each in _FDINFO.iterdir():
        with contextlib.suppress(OSError):
            found = told.search(each.read_text())
            if found is not None and int(found[1], 16) & select.EPOLLIN:
                return int(each.name), int(found[2], 16)
    return None
