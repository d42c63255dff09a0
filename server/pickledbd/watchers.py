"""Who waits for a change: the parked `watch` requests, found by what wakes or ends them.

May live here: those requests, and the names of watchers that have left. What they are answered is
the matter of `watches`.

Requests for one prefix are a *group*. A change wakes groups, not their requests one by one: it
costs the same however many there are, and nothing more until those of the group are answered.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from pickledbd.ties import Ties

Peer = bytes

Name = tuple[Peer, int]
"""Of a parked request: who asked, and its number."""

LEFT_MAX = 10_000
"""Watchers that have left, which are remembered."""

HEAD = 64
"""Characters of a prefix by which it is looked up; the rest of a longer one is compared. A change
makes as many look-ups as there are lengths of prefixes, so they must not be of any length."""


@dataclass(slots=True)
class Group:
    """Parked requests for one prefix."""

    prefix: str
    since: int = 0
    """Once it is woken: the sequence up to which there was nothing for it."""
    names: dict[Name, None] = field(default_factory=dict)


class Watchers:
    """The parked requests."""

    def __init__(self) -> None:
        self._groups: dict[Name, Group] = {}
        self._asleep: dict[str, dict[str, Group]] = {}  # by the head of the prefix, and by it
        self._lengths: dict[int, int] = {}  # of heads, each with their number
        self._woken: deque[Group] = deque()
        self._asked_by: Ties[Name, Peer] = Ties()
        self._of_watcher: Ties[Name, str] = Ties()
        self._left: dict[str, None] = {}  # watchers, the newest last

    def __len__(self) -> int:
        return len(self._groups)

    def of(self, peer: Peer) -> int:
        """How many are parked by this connection."""
        return self._asked_by.count(peer)

    def park(self, name: Name, prefix: str, watcher: str) -> None:
        """Have a request wait for a change of the prefix, unless it does already."""
        if name in self._groups:
            return
        head = prefix[:HEAD]
        asleep = self._asleep.get(head)
        if asleep is None:
            asleep = self._asleep[head] = {}
            self._lengths[len(head)] = self._lengths.get(len(head), 0) + 1
        group = asleep.setdefault(prefix, Group(prefix))
        group.names[name] = None
        self._groups[name] = group
        self._asked_by.tie(name, name[0])
        self._of_watcher.tie(name, watcher)

    def wake(self, key: str, since: int) -> None:
        """Have those woken who wait for a change of `key`, of which this is the first `since`."""
        found: list[Group] = []
        for length in self._lengths:
            asleep = self._asleep.get(key[:length])
            if asleep is not None and length <= len(key):  # else it was looked up already
                found += [group for prefix, group in asleep.items() if key.startswith(prefix)]
        for group in found:
            self._rouse(group, since)

    def wake_all(self, since: int) -> None:
        """Have all woken."""
        for group in [group for asleep in self._asleep.values() for group in asleep.values()]:
            self._rouse(group, since)

    def _rouse(self, group: Group, since: int) -> None:
        self._lose(group)
        group.since = since
        self._woken.append(group)

    @property
    def restless(self) -> bool:
        """Whether somebody was woken."""
        return bool(self._woken)

    def take(self) -> tuple[Name, Group] | None:
        """One of those who were woken, who waits no longer; None if there is none."""
        while self._woken:
            group = self._woken[0]
            if len(group.names) <= 1:
                self._woken.popleft()
            if group.names:
                name, _ = group.names.popitem()  # its end is found without a look at the rest
                self._forget(name)
                return name, group
        return None

    def has_left(self, watcher: str) -> bool:
        return watcher in self._left

    def leave(self, watcher: str) -> list[Name]:
        """Have the requests of a watcher wait no longer, nor what may be on its way; these."""
        self._left[watcher] = None
        if len(self._left) > LEFT_MAX:
            del self._left[next(iter(self._left))]
        left = self._of_watcher.of(watcher)
        for name in left:
            self._forget(name)
        return left

    def gone(self, peer: Peer) -> None:
        """The connection of `peer` was lost."""
        for name in self._asked_by.of(peer):
            self._forget(name)

    def _forget(self, name: Name) -> None:
        group = self._groups.pop(name)
        self._asked_by.untie(name)
        self._of_watcher.untie(name)
        group.names.pop(name, None)
        if not group.names:
            self._lose(group)

    def _lose(self, group: Group) -> None:
        """Have a group no longer among those which are asleep."""
        head = group.prefix[:HEAD]
        asleep = self._asleep.get(head)
        if asleep is None or asleep.get(group.prefix) is not group:
            return
        del asleep[group.prefix]
        if not asleep:
            del self._asleep[head]
            self._lengths[len(head)] -= 1
            if not self._lengths[len(head)]:
                del self._lengths[len(head)]
