"""The valve: have libzmq accept nothing for a while, and accept again.

May live here: what that takes. libzmq knows no pause: to unbind ends the connections too, which are
children of the listener. But its I/O thread waits for the listening socket by epoll(7), as for all
others, and anybody in the process may take a descriptor out of an epoll set and put it back; what
libzmq knows it by there is told in /proc/self/fdinfo (proc(5)). Meanwhile who connects waits in the
system's queue. Where that is not to be had, on other systems than Linux, a valve stays open.
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
_ADD, _DELETE = 1, 2  # EPOLL_CTL_ADD, EPOLL_CTL_DEL


class _Event(ctypes.Structure):
    _pack_ = 1 if platform.machine() in ("x86_64", "AMD64") else 0  # as in <sys/epoll.h>
    _fields_ = (("events", ctypes.c_uint32), ("data", ctypes.c_uint64))


class Valve:
    """For one listening socket that libzmq has by this `descriptor`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._place: tuple[int, int] | None = None  # its epoll set, and its data there
        until = time.monotonic() + FOUND_SECONDS
        while _FDINFO.is_dir() and self._place is None and time.monotonic() < until:
            self._place = _find(descriptor)
            time.sleep(0 if self._place else 0.0005)
        self._is_shut = False

    def shut(self) -> bool:
        """Let nobody in; whether that can be done."""
        if self._place is not None and not self._is_shut:
            self._is_shut = self._control(_DELETE)
        return self._is_shut

    def open(self) -> None:
        """Let in who waits, and who comes. To be done before libzmq is told to listen no more."""
        if self._is_shut:
            self._is_shut = not self._control(_ADD)

    def _control(self, what: int) -> bool:
        assert self._place is not None  # noqa: S101 - nobody asks else
        epoll, data = self._place
        event = ctypes.byref(_Event(select.EPOLLIN, data))
        return bool(ctypes.CDLL(None).epoll_ctl(epoll, what, self._descriptor, event) == 0)


def _find(descriptor: int) -> tuple[int, int] | None:
    told = re.compile(rf"tfd:\s*{descriptor} events:\s*([0-9a-f]+) data:\s*([0-9a-f]+)")
    for each in _FDINFO.iterdir():
        with contextlib.suppress(OSError):
            found = told.search(each.read_text())
            if found is not None and int(found[1], 16) & select.EPOLLIN:
                return int(each.name), int(found[2], 16)
    return None
