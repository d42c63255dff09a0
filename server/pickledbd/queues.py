"""Who waits for a lock: in which order, by which connection, and for how long.

May live here: those who wait, of all locks. Whether a lock is free, and what becomes of those
whose time is over, is the matter of `locks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from pickledbd.ties import Ties
from pickledbd.wheel import Wheel

Peer = bytes

Ask = tuple[str, int]
"""A holder, and its number of the ask."""


@dataclass(slots=True)
class Waiter:
    """An ask that waits, and the request to be answered."""

    name: str
    ask: Ask
    ttl_ms: int
    peer: Peer
    request_id: int
    since: int
    until: int | None
    order: int = 0
    """Among those who have asked in the same millisecond."""
    is_late: bool = False
    """Whether its time is over, but it is its turn."""


class Queues:
    """Those who wait, a queue for each lock that anybody waits for."""

    def __init__(self) -> None:
        self._waiting: dict[Ask, Waiter] = {}
        self._queues: dict[str, dict[Ask, Waiter]] = {}  # never empty ones
        self._unsorted: set[str] = set()  # queues in which somebody stands behind others
        self._orders = count()
        self._asked_by: Ties[Ask, Peer] = Ties()
        self._patience: Wheel[Ask] = Wheel()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, name: str) -> bool:
        """Whether anybody waits for the lock of that name."""
        return name in self._queues

    def of(self, peer: Peer) -> int:
        """How many asks of this connection wait."""
        return self._asked_by.count(peer)

    def get(self, ask: Ask) -> Waiter | None:
        return self._waiting.get(ask)

    def join(self, waiter: Waiter) -> None:
        """Have `waiter` wait, from the place that its ask had if it waited already."""
        waiter.order = next(self._orders)
        before = self.leave(waiter.ask)
        if before is not None:
            waiter.since, waiter.order = min(_turn(waiter), _turn(before))
        self.put_back(waiter)

    def put_back(self, waiter: Waiter) -> None:
        """Have `waiter` wait where it did before."""
        self._waiting[waiter.ask] = waiter
        self._asked_by.tie(waiter.ask, waiter.peer)
        if waiter.until is not None:
            self._patience.add(waiter.ask, waiter.until)
        queue = self._queues.setdefault(waiter.name, {})
        last = next(reversed(queue.values()), None)
        queue[waiter.ask] = waiter
        if last is not None and _turn(waiter) < _turn(last):
            self._unsorted.add(waiter.name)

    def leave(self, ask: Ask) -> Waiter | None:
        """Have `ask` wait no longer; who that was, if it did."""
        waiter = self._waiting.pop(ask, None)
        if waiter is not None:
            self._asked_by.untie(ask)
            if waiter.until is not None:
                self._patience.discard(ask, waiter.until)
            queue = self._queues[waiter.name]
            del queue[ask]
            if not queue:
                del self._queues[waiter.name]
                self._unsorted.discard(waiter.name)
        return waiter

    def gone(self, peer: Peer) -> None:
        """The connection of `peer` was lost."""
        for ask in self._asked_by.of(peer):
            self.leave(ask)

    def front(self, name: str) -> Waiter:
        """Whose turn it is, of those who wait."""
        queue = self._queues[name]
        if name in self._unsorted:
            self._unsorted.discard(name)
            in_turn = sorted(queue.items(), key=lambda each: _turn(each[1]))
            queue = self._queues[name] = dict(in_turn)
        return next(iter(queue.values()))

    @property
    def next(self) -> int | None:
        """When there may be somebody `impatient`; None if never."""
        return self._patience.next

    def impatient(self, now: int) -> list[Waiter]:
        """Those who would wait until `now` at most, each once; they still wait."""
        return [self._waiting[ask] for ask in self._patience.take(now, len(self._waiting) + 1)]

    def prolong(self, waiter: Waiter, until: int) -> None:
        """Have one who was impatient wait until then."""
        waiter.until = until
        self._patience.add(waiter.ask, until)


def _turn(waiter: Waiter) -> tuple[int, int]:
    """By what those who wait are served."""
    return waiter.since, waiter.order
