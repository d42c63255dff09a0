"""Locks: who holds one, who waits for it, and until when.

May live here: the state and its rules (SPEC.md, Locks), no sockets and no files; the order of
those who wait is that of `queues`. A lock is named, and held by an *ask*, which its *holder*, a
process with a connection of its own, has numbered. It is a lease: it ends at its deadline unless
the holder keeps it, and at once when the holder's connection is lost, and is then given to the ask
that waits longest. Each grant has a *fencing token* that is higher than all before it, after
Kleppmann ("How to do distributed locking", 2016): a write that names the token is refused once the
lock is lost.

What a restart does, or a time in which the daemon was halted: locks that are held stay so, with
their time beginning anew, so that holders that live can come back. After a restart, who waited
asks again, and takes its place by when it first did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pickledbd.clock import now_ms
from pickledbd.queues import Ask, Peer, Queues, Waiter
from pickledbd.ties import Ties
from pickledbd.wheel import Wheel
from pickledbd_protocol import LockLost, ProtocolError, shown

GRANT_MS = 1000
"""How long a grant may take to be made durable, where its asker is not to wait any longer."""

HOLDERS_MAX = 1000
"""Holders that one connection keeps."""

OVER_MAX = 10_000
"""Asks that were released, or have ended, which are remembered."""


@dataclass(slots=True)
class Lock:
    """A lock that is held."""

    name: str
    holder: str
    ask: int
    token: int
    ttl_ms: int
    deadline: int = 0
    looked_at: int = 0
    """When it is to be looked whether it has ended."""
    is_spared: bool = False
    """Whether its time has begun anew since it was kept."""


Undo = Callable[[], None]


class Locks:
    """All locks of a daemon, by its clock."""

    def __init__(self) -> None:
        self.fence = 0
        """The highest token so far."""
        self.gave_up: list[Waiter] = []
        """Those who wait no longer, and have to be answered so."""
        self.changes = 0
        """How often a lock was granted, or ended."""
        self.grants_made = 0
        """How often one was granted, since the start."""
        self._held: dict[str, Lock] = {}
        self._by_ask: dict[Ask, Lock] = {}
        self._by_token: dict[int, Lock] = {}
        self._held_by: Ties[str, str] = Ties()  # names, to holders
        self._connections: Ties[str, Peer] = Ties()  # holders, to those of their own
        self._asked_by: Ties[Ask, Peer] = Ties()  # what holders without one hold, to who asked
        self._queues = Queues()
        self._over: dict[Ask, None] = {}  # the newest last
        self._ends: Wheel[str] = Wheel()  # locks
        self._free: dict[str, None] = {}  # names of those that may have to be given to somebody

    def __len__(self) -> int:
        return len(self._held)

    @property
    def waiting(self) -> int:
        """How many asks wait."""
        return len(self._queues)

    def waiting_of(self, peer: Peer) -> int:
        """How many asks of this connection wait."""
        return self._queues.of(peer)

    def knows(self, ask: Ask) -> bool:
        """Whether `ask` waits or was granted."""
        return ask in self._by_ask or self._queues.get(ask) is not None

    # Requests

    def ask(self, waiter: Waiter) -> int | None:
        """Have `waiter` wait, unless its ask was granted before: then its token."""
        held = self._by_ask.get(waiter.ask)
        before = self._queues.get(waiter.ask)  # by a connection that its client gave up
        if any(known is not None and known.name != waiter.name for known in (held, before)):
            raise ProtocolError(
                f"lock: ask {waiter.ask[1]} of this holder is not for {shown(waiter.name)}; "
                "each lock needs an ask of its own"
            )
        if held is not None and held.deadline > now_ms():
            self._tie(waiter)
            return held.token
        if held is not None:
            self._end(held)
        self._queues.join(waiter)
        if waiter.name not in self._held:
            self._free[waiter.name] = None
        return None

    def holds(self, ask: Ask) -> bool:
        """Whether `ask` was granted, and its time is not over."""
        held = self._by_ask.get(ask)
        return held is not None and held.deadline > now_ms()

    def _tie(self, waiter: Waiter) -> None:
        """Have a holder without a connection of its own hold no longer than that of its asker."""
        if waiter.ask[0] not in self._connections:
            self._asked_by.tie(waiter.ask, waiter.peer)

    def is_over(self, ask: Ask) -> bool:
        """Whether a request for it comes late: another connection was quicker with its release."""
        return ask in self._over

    def forget(self, ask: Ask) -> None:
        """Have `ask` wait no longer."""
        self._queues.leave(ask)

    def release(self, name: str, ask: Ask) -> tuple[bool, Undo | None]:
        """End what `ask` holds, or its waiting; whether it held it, and how to undo it."""
        self._over[ask] = None
        if len(self._over) > OVER_MAX:
            del self._over[next(iter(self._over))]
        waiter = self._queues.leave(ask)
        if waiter is not None:
            self.gave_up.append(waiter)
            return False, lambda: self._wait_again(waiter)
        lock = self._by_ask.get(ask)
        if lock is None or lock.name != name or lock.deadline <= now_ms():
            return False, None
        tied_to = self._asked_by.owner(ask)
        self._end(lock)
        return True, lambda: self._hold_again(lock, tied_to)

    def _wait_again(self, waiter: Waiter) -> None:
        self._over.pop(waiter.ask, None)
        self.gave_up.remove(waiter)
        self._queues.put_back(waiter)

    def _hold_again(self, lock: Lock, tied_to: Peer | None) -> None:
        self._over.pop((lock.holder, lock.ask), None)
        self._begin(lock)
        if tied_to is not None:
            self._asked_by.tie((lock.holder, lock.ask), tied_to)

    def keep(self, peer: Peer, holder: str, asks: Iterable[int]) -> list[int]:
        """Have these `asks` of a holder hold for another ttl; those that hold nothing any more.

        Whatever it holds ends with the connection of `peer`.
        """
        if self._connections.owner(holder) != peer and self._connections.count(peer) >= HOLDERS_MAX:
            raise ProtocolError(
                f"keep: one connection keeps at most {HOLDERS_MAX:,} holders; use fewer of them"
            )
        self._connections.tie(holder, peer)
        now = now_ms()
        lost = []
        for number in asks:
            lock = self._by_ask.get((holder, number))
            if lock is None:
                lost.append(number)
            else:  # also if it is late, as long as nobody else has it
                lock.deadline = now + lock.ttl_ms
                lock.is_spared = False
        return lost

    def demand(self, token: int) -> None:
        """LockLost unless `token` is that of a lock that is held."""
        lock = self._by_token.get(token)
        if lock is None or lock.deadline <= now_ms():
            raise LockLost(
                f"nothing was changed: the lock whose token is {token} is not held any more "
                "(it was released, or not renewed in time)"
            )

    # What comes of them

    @property
    def next(self) -> int | None:
        """When `overdue` is to be called; None if nothing is due."""
        return min(
            (at for at in (self._ends.next, self._queues.next) if at is not None), default=None
        )

    @property
    def busy(self) -> bool:
        """Whether there is anything at all."""
        return bool(self._held or self._queues or self._free)

    @property
    def ready(self) -> bool:
        """Whether there may be somebody to be granted something."""
        return bool(self._free)

    def overdue(self) -> list[Lock]:
        """End the locks whose time is over, and the waiting of whose it is; the former."""
        now = now_ms()
        ended = []
        for name in self._ends.take(now, len(self._held) + 1):
            lock = self._held.get(name)
            if lock is not None and lock.deadline <= now:
                self._end(lock)
                ended.append(lock)
            elif lock is not None:  # it was kept
                self._look_at(lock)
        for waiter in self._queues.impatient(now):
            is_next = waiter.name not in self._held and self._queues.front(waiter.name) is waiter
            if is_next and not waiter.is_late:
                waiter.is_late = True
                self._queues.prolong(waiter, now + GRANT_MS)
            else:
                self._queues.leave(waiter.ask)
                self.gave_up.append(waiter)
        return ended

    def gone(self, peer: Peer) -> list[Lock]:
        """The connection of `peer` was lost: end what it waits for and holds; the latter."""
        self._queues.gone(peer)
        ended = [
            self._by_ask[ask] for ask in self._asked_by.of(peer) if ask[0] not in self._connections
        ]
        for holder in self._connections.of(peer):
            self._connections.untie(holder)
            ended += [self._held[name] for name in self._held_by.of(holder)]
        for lock in ended:
            self._end(lock)
        return ended

    def grants(self) -> Iterator[tuple[Waiter, Lock, Undo]]:
        """Grant what is free to those who wait longest."""
        while self._free:
            name, _ = self._free.popitem()
            if name not in self._queues or name in self._held:
                continue
            waiter = self._queues.front(name)
            self._queues.leave(waiter.ask)
            now = now_ms()
            # Also where nothing was kept of those before, as in --durability save, it is higher
            self.fence = max(self.fence + 1, now * 1000)
            lock = Lock(name, *waiter.ask, self.fence, waiter.ttl_ms, now + waiter.ttl_ms)
            self._begin(lock)
            self._tie(waiter)
            self.grants_made += 1

            def undo(waiter: Waiter = waiter, lock: Lock = lock) -> None:
                self.grants_made -= 1
                self._end(lock)
                self._queues.put_back(waiter)

            yield waiter, lock, undo

    def _begin(self, lock: Lock) -> None:
        self.changes += 1
        self._held[lock.name] = lock
        self._by_ask[lock.holder, lock.ask] = lock
        self._by_token[lock.token] = lock
        self._held_by.tie(lock.name, lock.holder)
        self._free.pop(lock.name, None)
        self._look_at(lock)

    def _look_at(self, lock: Lock) -> None:
        lock.looked_at = lock.deadline
        self._ends.add(lock.name, lock.looked_at)

    def _end(self, lock: Lock) -> None:
        self._ends.discard(lock.name, lock.looked_at)
        self.changes += 1
        del self._held[lock.name]
        del self._by_ask[lock.holder, lock.ask]
        del self._by_token[lock.token]
        self._held_by.untie(lock.name)
        self._asked_by.untie((lock.holder, lock.ask))
        self._free[lock.name] = None

    # Over a restart

    def told(self) -> dict[str, Any]:
        """What the next daemon has to know."""
        return {"fence": self.fence, "locks": [told_of(lock) for lock in self._held.values()]}

    def restore(self, told: Mapping[str, Any]) -> None:
        """Know what was `told`, and hold what was held for another ttl."""
        self.fence = max(self.fence, told["fence"])
        for each in told["locks"]:
            self.granted(each)

    def granted(self, told: Mapping[str, Any]) -> None:
        """Know of a grant."""
        self.released(told["name"])
        self._begin(Lock(**told, deadline=now_ms() + told["ttl_ms"]))
        self.fence = max(self.fence, told["token"])

    def released(self, name: str) -> None:
        """Know that nobody holds it."""
        lock = self._held.get(name)
        if lock is not None:
            self._end(lock)

    def begin_anew(self) -> None:
        """Have the time of all that is held begin now, when it can be kept again.

        That is safe, since nothing of it was granted to anybody else. But each only once until it
        is kept: who is not there any more is not to hold it for ever.
        """
        for lock in self._held.values():
            if not lock.is_spared:
                lock.is_spared = True
                lock.deadline = now_ms() + lock.ttl_ms


def told_of(lock: Lock) -> dict[str, Any]:
    """What a record tells of a grant."""
    return {name: getattr(lock, name) for name in ("name", "holder", "ask", "token", "ttl_ms")}
