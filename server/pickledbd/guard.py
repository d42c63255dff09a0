"""The guard: memory that grows by what no message explains, and who has it grow.

May live here: the looks at this process's memory, and at who sends. libzmq keeps the frames of a
message until its last has come, however many there are, and tells nobody (ZMQ_MAXMSGSIZE is for
each frame); and it takes in what comes while the loop is busy. So the guard looks, some times a
second, at the memory of this process. Where it has grown by more than is known of, it has epoll(7)
tell on which connections bytes arrive: who sends again and again and never ends a message is hung
up on, once that is more than a message may have. libzmq then gives its memory back.

Who merely sends a large message, slowly, is left alone, and so is who only reads. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Callable

from pickledbd.connections import Connection, Connections

LOOK_SECONDS, SUSPECTING_SECONDS = 0.15, 0.02
"""Between two looks; and while memory grows."""

STRANGE_BYTES = 16 * 2**20
"""Growth that gives reason to look at who sends."""

SPARE_BYTES = 64 * 2**20
"""Growth that nobody is blamed for, beside a message of everybody who is sending one."""

LARGE_BYTES = 2**20
LARGE_MAX = 4
"""Messages of at least so many bytes may each be as many as that, for one connection, before they
are taken in."""

HITS = 3
"""Looks between which bytes came, and no message, that make a suspect."""

PATIENCE = 10
"""Looks without a suspect after which growth is taken to have another reason."""

WATCHED_A_LOOK = 1000
"""Connections that are begun to be watched in one look."""

TRIM_SECONDS = 2.0
"""How long after it has hung up on somebody the allocator is to give back what libzmq has given
back to it by then."""

_EDGES = getattr(select, "EPOLLET", 0)


class Guard:
    """Hangs up on those who fill the memory."""

    def __init__(
        self,
        connections: Connections,
        request_bytes: int,
        *,
        explained: Callable[[], int],
        sent: Callable[[bytes], int],
    ) -> None:
        """`explained`: bytes of memory that are known to be used. `sent`: messages, to a peer."""
        self.looks = 1
        """How many there were."""
        self._connections = connections
        self._request_bytes = request_bytes
        self._explained = explained
        self._sent = sent
        self.due = 0.0
        """When to `look`, by time.monotonic()."""
        self._resident = self._unexplained = math.inf  # at the last look
        self._grown = 0.0
        self._epoll: select.epoll | None = None  # while memory grows
        self._watched: dict[int, Connection] = {}
        self._hits: Counter[Connection] = Counter()
        self._large: Counter[Connection] = Counter()  # bytes since the last look
        self._told: dict[Connection, int] = {}  # what they had been sent
        self._strange_looks = 0
        self._trim_at = math.inf
        self._statm = -1
        with contextlib.suppress(OSError):
            self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        self._relax()
        if self._statm >= 0:
            os.close(self._statm)
            self._statm = -1

    def heard_large(self, connection: Connection, size: int) -> None:
        """A message of at least LARGE_BYTES was taken in."""
        self._large[connection] += size

    def watch(self) -> None:
        """There are connections."""
        if self.due == math.inf and self._statm >= 0:
            self.due = 0.0

    def look(self, now: float) -> None:
        """Look, unless there is nobody to look at."""
        if self._statm < 0 or not self._connections:
            self.due = math.inf
            return
        self._look()
        self.due = now + (LOOK_SECONDS if self._epoll is None else SUSPECTING_SECONDS)

    def _look(self) -> None:
        if time.monotonic() >= self._trim_at:
            self._trim_at = math.inf
            _trim()
        resident = int(os.pread(self._statm, 100, 0).split()[1]) * _PAGE
        unexplained = resident - self._explained()
        # What was stored and is not any more explains nothing, and may still be resident; but then
        # the process has not grown by it
        more = min(unexplained - self._unexplained, resident - self._resident)
        self._unexplained, self._resident = unexplained, resident
        self._grown = max(0.0, self._grown + more)
        if self._grown >= STRANGE_BYTES:
            self._suspect()
        elif self._epoll is not None:
            self._relax()
        self._large.clear()
        self.looks += 1

    def _suspect(self) -> None:
        self._watch()
        suspects = [each for each, hits in self._hits.items() if hits >= HITS]
        heavy = list(self._large)
        if suspects or heavy:
            self._strange_looks = 0
        else:
            self._strange_looks += 1
            if self._strange_looks >= PATIENCE:
                self._grown = 0.0
                self._relax()
            return
        allowed = SPARE_BYTES
        allowed += self._request_bytes * (len(suspects) + LARGE_MAX * len(heavy))
        if self._grown <= allowed:
            return
        if suspects:
            culprit = max(suspects, key=lambda each: self._hits[each])
            why = "sends a message that never ends"
        else:
            culprit = max(heavy, key=lambda each: self._large[each])
            why = "sends large messages faster than they can be taken in"
        why += f", by which the daemon's memory grew by {self._grown / 2**20:.0f} MiB"
        self._connections.hang_up(culprit, why, ban=True)
        self._hits.pop(culprit, None)
        self._large.pop(culprit, None)
        self._grown = 0.0
        self._trim_at = time.monotonic() + TRIM_SECONDS

    def _watch(self) -> None:
        """Note on which connections bytes came since the last look, and no message."""
        if self._epoll is None:
            self._epoll = select.epoll()
        else:
            for descriptor, _ in self._epoll.poll(0, len(self._watched) + 1):
                connection = self._watched.get(descriptor)
                if connection is not None:
                    self._judge(connection)
        there = set(self._connections)
        for connection in [each for each in self._hits if each not in there]:
            del self._hits[connection]
        for descriptor in [d for d, each in self._watched.items() if each not in there]:
            self._told.pop(self._watched.pop(descriptor), None)
        begun = 0
        for connection in there:
            if self._watched.get(connection.descriptor) is connection:
                continue
            # Edges of either kind: bytes that libzmq has read already are told so, too, since the
            # connection can be written to
            with contextlib.suppress(OSError):
                edges = select.EPOLLIN | select.EPOLLOUT | _EDGES
                self._epoll.register(connection.descriptor, edges)
            self._watched[connection.descriptor] = connection
            self._told[connection] = self._sent_to(connection)
            begun += 1
            if begun >= WATCHED_A_LOOK:
                break
        if begun:
            self._epoll.poll(0, len(self._watched) + 1)  # that they can be written to

    def _judge(self, connection: Connection) -> None:
        told, self._told[connection] = self._told[connection], self._sent_to(connection)
        if connection.heard == self.looks:
            self._hits.pop(connection, None)
        elif told == self._told[connection]:  # else it may merely have read
            self._hits[connection] += 1

    def _sent_to(self, connection: Connection) -> int:
        return 0 if connection.peer is None else self._sent(connection.peer)

    def _relax(self) -> None:
        """Watch nobody any more."""
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        self._watched.clear()
        self._told.clear()
        self._hits.clear()
        self._strange_looks = 0


def _trim() -> None:
    """Have the C library's allocator give unused memory back to the system (malloc_trim(3)).

    That takes some tens of milliseconds and more, so a thread does it, without Python's lock.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        threading.Thread(target=trim, args=(0,), daemon=True).start()


_PAGE = os.sysconf("SC_PAGE_SIZE")
