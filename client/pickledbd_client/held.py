"""Who holds what in a process.

May live here: what users see of a lock that they hold, and the tables of what each thread and each
task holds. What nobody could give back any more is given up: the table of a thread ends with it,
that of a task with the task, and else only the object remembers a lock by which it was taken.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

from pickledbd_client.keeper import Keeper
from pickledbd_client.leases import Lease, clock
from pickledbd_client.route import Route
from pickledbd_protocol import shown


class Held:
    """A lock that is held: what `with db.lock(name) as held` gives."""

    def __init__(self, lease: Lease, keeper: Keeper, mine: Mine) -> None:
        self.name = lease.name
        self.ttl = lease.ttl
        self.ask = lease.ask
        self.token = 0
        """A fencing token: higher than those of all who held the lock before."""
        self.lease = lease
        lease.holder = weakref.ref(self)
        self.keeper = keeper
        self.mine = weakref.ref(mine)
        self.times = 1  # that it was taken and not released

    @property
    def lost(self) -> bool:
        """Whether the lock is not, or cannot be known to be, held any more.

        So it is when the daemon has told that it has ended, and when the daemon has not been heard
        of for its ttl: others may have it. Or it may have been halted, or started again, and then
        hold it for whom it had it before: if it tells so, `lost` is False again. The end of the
        block asks it, and raises LockLost only if the lock was not held until then.
        """
        return self.lease.is_over(clock())

    def is_left(self) -> bool:
        """Whether the thread or the task that took it has ended."""
        mine = self.mine()
        return mine is None or mine.has_ended()

    def __repr__(self) -> str:
        return (
            f"Held(name={shown(self.name)}, ttl={self.ttl!r}, token={self.token}, lost={self.lost})"
        )


class Mine(dict[str, Held]):
    """What a thread holds, or a task."""

    __slots__ = ("__weakref__", "_task", "blocks")

    def __init__(self, task: Any = None) -> None:
        super().__init__()
        self.blocks: list[object] = []
        """The locks of which it has begun a `with` block, and not ended it."""
        self._task = None if task is None else weakref.ref(task)  # else it would never be collected

    def has_ended(self) -> bool:
        """Whether the task has ended. A thread's table ends with it."""
        task = None if self._task is None else self._task()
        return task is not None and task.done()


class Here:
    """The locks of a handle in one process: a forked child has none of its parent's."""

    def __init__(self, route: Route) -> None:
        self.keeper = Keeper(route)
        self._of_thread = threading.local()
        self._of_task: weakref.WeakKeyDictionary[Any, Mine] = weakref.WeakKeyDictionary()

    def of_thread(self) -> Mine:
        """What the calling thread holds."""
        mine: Mine | None = getattr(self._of_thread, "mine", None)
        if mine is None:
            mine = self._of_thread.mine = Mine()
        return mine

    def of_task(self, task: object) -> Mine:
        """What a task holds; of none, nothing."""
        return Mine() if task is None else self._of_task.setdefault(task, Mine(task))
