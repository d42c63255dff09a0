"""`lock()`: locks that all clients of a database share.

May live here: which thread or task holds which lock of a handle, and the objects that users see.
What has to go on by itself while a lock is held is the keeper's. A lock is re-entrant: who holds
it gets it again at once, and gives it back with the last of its releases.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

from pickledbd_client import calls
from pickledbd_client.calls import Call
from pickledbd_client.keeper import Held, Keeper
from pickledbd_client.route import Route, generation, leave, making
from pickledbd_protocol import InvalidKey, LockLost, RequestTimeout, encode_key, shown


class Locks:
    """The locks of a handle."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self._generation = generation()
        self._closed = False
        self._keeper: Keeper | None = None  # until there is a lock
        self._of_thread = threading.local()
        self._of_task: weakref.WeakKeyDictionary[Any, dict[str, Held]] = weakref.WeakKeyDictionary()

    def keeper(self) -> Keeper:
        """This process's; a forked child has one of its own, and none of its parent's locks."""
        if self._closed:
            raise self._route.closed()
        if self._generation != generation() or self._keeper is None:
            with making:
                if self._generation != generation():
                    leave([self._keeper])
                    self._keeper = None
                    self._of_thread = threading.local()
                    self._of_task = weakref.WeakKeyDictionary()
                    self._generation = generation()  # last: what is above is read without this lock
                if self._keeper is None:
                    self._keeper = Keeper(self._route)
                    # Its thread keeps it alive, but not this
                    weakref.finalize(self, self._keeper.close)
        return self._keeper

    def of_thread(self) -> dict[str, Held]:
        """What the calling thread holds."""
        held: dict[str, Held] | None = getattr(self._of_thread, "held", None)
        if held is None:
            held = self._of_thread.held = {}
        return held

    def of_task(self, task: object) -> dict[str, Held]:
        """What a task holds."""
        return self._of_task.setdefault(task, {})

    def patience(self, timeout: float | None) -> float | None:
        """How long to wait for the answer of a daemon that waits for `timeout` seconds itself."""
        return self._route.patience(timeout)

    def close(self, *, wait: bool = True) -> None:
        """Let go of all that is held; `wait`: until that is done."""
        self._closed = True
        if self._keeper is not None:
            self._keeper.close(wait=wait)


class BaseLock:
    """What Lock and AsyncLock have in common."""

    def __init__(
        self,
        request: Callable[[Call[Any]], Any],
        locks: Locks,
        name: Any,
        ttl: float,
        timeout: float | None,
    ) -> None:
        """`request` asks a call, and returns its value or, of an AsyncLock, what awaits it."""
        self.name = str(name)
        self._request = request
        self._locks = locks
        self._ttl = ttl
        self._timeout = timeout
        try:
            encode_key(self.name)
        except InvalidKey:
            raise InvalidKey(f"no lock can be named {shown(self.name)}: a lone surrogate") from None
        calls.ttl_ms(ttl, f"lock {shown(self.name)}")
        if timeout is not None:
            calls.wait_ms(timeout, f"lock {shown(self.name)}")

    def _call(self, keeper: Keeper, held: Held) -> Call[int | None]:
        """What asks for it."""
        keeper.expect(held)
        return calls.lock(
            self.name,
            keeper.holder,
            held.ask,
            ttl=self._ttl,
            wait=self._timeout,
            patience=self._locks.patience(self._timeout),
        )

    def _got(self, keeper: Keeper, held: Held, token: int | None) -> Held:
        self._locks.keeper()  # is there no more if this was closed meanwhile
        if token is None:
            raise RequestTimeout(f"lock {shown(self.name)} was not free within {self._timeout} s")
        held.token = token
        keeper.keep(held)
        return held

    def _give_up(self, keeper: Keeper, held: Held, mine: dict[str, Held]) -> None:
        """Have it free, whatever the daemon made of the ask for it, or for its release.

        From an `except`, not a context manager: within the functions of such a one, which are
        called before its `try` and after it, a signal's handler may raise, too.
        """
        if mine.get(self.name) is held:
            del mine[self.name]
        keeper.give_up(held)

    def _again(self, mine: dict[str, Held]) -> Held | None:
        held = mine.get(self.name)
        if held is not None:
            self._demand(not held.lost, "it was taken again")
            held.times += 1
        return held

    def _last(self, mine: dict[str, Held]) -> Held | None:
        """What is to be released, if it was not taken more often than it was released."""
        held = mine.get(self.name)
        if held is None:
            raise LockLost(f"lock {shown(self.name)} is not held here")
        held.times -= 1
        if held.times:
            return None
        del mine[self.name]
        return held

    def _demand(self, was_held: bool, event: str = "it was released") -> None:
        if not was_held:
            raise LockLost(
                f"lock {shown(self.name)} was lost before {event}: it was not renewed "
                f"within its {self._ttl} s, so others may have held it meanwhile"
            )


class Lock(BaseLock):
    """`with db.lock(name) as held:` see PickleDB.lock."""

    def acquire(self) -> Held:
        """Wait for the lock. RequestTimeout if it was not free in time."""
        keeper = self._locks.keeper()
        mine = self._locks.of_thread()
        held = self._again(mine)
        if held is not None:
            return held
        held = keeper.new(self.name, self._ttl)
        try:
            token = self._request(self._call(keeper, held))
            mine[self.name] = self._got(keeper, held, token)
        except BaseException:
            self._give_up(keeper, held, mine)
            raise
        return held

    def release(self) -> None:
        """Give it back. LockLost if it was not held any more."""
        keeper = self._locks.keeper()
        mine = self._locks.of_thread()
        held = self._last(mine)
        if held is None:
            return
        try:
            was_held = self._request(keeper.drop(held))
        except BaseException:
            self._give_up(keeper, held, mine)
            raise
        self._demand(was_held)

    def __enter__(self) -> Held:
        return self.acquire()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.release()
        except Exception:
            if exc_type is None:  # else that is what the user is to hear of
                raise
