"""`lock()`: locks that all clients of a database share.

May live here: how a lock is taken and given back, and the objects that users see. What has to go
on by itself while a lock is held is the keeper's. A lock is re-entrant: who holds it gets it
again at once, and gives it back with the last of its releases. That is the thread or the task
that took it; but the end of a `with` block gives back what its beginning took, in whichever it is,
and `release` also what was taken by the same object, in one that has ended.

Ctrl+C, the exception of any signal's handler, may come at every call and at the first step of a
function. So what changes who holds what is one step, or is done within a `try` whose `except`
makes good what may be half done: not a context manager, whose functions are called before its
`try` and after it.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

from pickledbd_client import calls
from pickledbd_client.calls import Call
from pickledbd_client.held import Held, Here, Mine
from pickledbd_client.keeper import Keeper
from pickledbd_client.route import Route, generation, leave
from pickledbd_protocol import (
    InvalidKey,
    LockLost,
    PickleDBError,
    ProtocolError,
    RequestTimeout,
    Unavailable,
    encode_key,
    shown,
)


class Locks:
    """The locks of a handle."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self._closed = False
        self._here: dict[int, Here] = {}  # by generation; empty until there is a lock

    def here(self) -> Here:
        """Those of this process. In one step, whoever else is at it: another thread, a signal."""
        number = generation()
        here = self._here.get(number)
        if here is None:
            leave(list(self._here.values()))
            new = Here(self._route)
            # Its thread keeps the keeper alive, but not this. At the program's end it goes on, as
            # an atexit handler may hold a lock; then the process does not, and nor do its locks
            weakref.finalize(self, new.keeper.close).atexit = False
            here = self._here.setdefault(number, new)
        return here

    def keeper(self) -> Keeper:
        """This process's."""
        return self.here().keeper

    def demand_open(self) -> None:
        """Unavailable if its handle was closed."""
        if self._closed:
            raise self._route.closed()

    def patience(self, timeout: float | None) -> float | None:
        """How long to wait for the answer of a daemon that waits for `timeout` seconds itself."""
        return self._route.patience(timeout)

    def close(self, *, wait: bool = True) -> None:
        """Let go of all that is held; `wait`: until that is done."""
        self._closed = True
        here = self._here.get(generation())
        if here is not None:
            here.keeper.close(wait=wait)


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
        self._taken: list[Held] = []  # by this, the first first
        try:
            encode_key(self.name)
        except InvalidKey:
            raise InvalidKey(f"no lock can be named {shown(self.name)}: a lone surrogate") from None
        calls.ttl_ms(ttl, f"lock {shown(self.name)}")
        if timeout is not None:
            calls.wait_ms(timeout, f"lock {shown(self.name)}")

    def _mine(self) -> Mine:
        """What the calling thread or task holds."""
        raise NotImplementedError

    # Taking it

    def _again(self, mine: Mine) -> Held | None:
        """What is held already, to be counted once more."""
        self._locks.demand_open()
        held = mine.get(self.name)
        if held is not None:
            if held.lost:
                raise self._lost(held, "it was taken again")
            self._remember(held)
        return held

    def _new(self, mine: Mine) -> Held:
        keeper = self._locks.keeper()
        return Held(keeper.new(self.name, self._ttl), keeper, mine)

    def _asking(self, held: Held) -> Call[int | None]:
        """What asks for it."""
        held.keeper.expect(held.lease)
        return calls.lock(
            self.name,
            held.keeper.holder,
            held.ask,
            ttl=self._ttl,
            wait=self._timeout,
            patience=self._locks.patience(self._timeout),
        )

    def _got(self, held: Held, mine: Mine, token: int | None) -> Held:
        if token is None:
            held.keeper.forget(held.lease)
            self._locks.demand_open()  # else that is why
            raise RequestTimeout(f"lock {shown(self.name)} was not free within {self._timeout} s")
        self._locks.demand_open()
        held.token = token
        held.keeper.keep(held.lease)
        self._remember(held)
        mine[self.name] = held
        return held

    def _remember(self, held: Held) -> None:
        for each in [each for each in list(self._taken) if each.times == 0]:
            self._forget(each)  # another object has given it back
        if held not in self._taken:
            self._taken.append(held)

    def _failed(self, held: Held, error: BaseException) -> None:
        """It was not taken: have it free, if the daemon may have it otherwise."""
        no_answer = (Unavailable, RequestTimeout, ProtocolError)
        if isinstance(error, PickleDBError) and not isinstance(error, no_answer):
            held.keeper.forget(held.lease)  # it was refused
        self._give_up(held)

    # Giving it back

    def _find(self, *, entered: bool) -> Held | None:
        """What is to be given back; `entered`: by the end of a block that has begun somewhere.

        If it has begun here it ends here, whatever was released within it.
        """
        mine = self._mine()
        begun_here = entered and self in mine.blocks
        if begun_here:
            mine.blocks.remove(self)
        held = mine.get(self.name)
        if held is not None or begun_here:
            return held
        keeper = self._locks.keeper()  # else it is one of the parent's, in a forked child
        taken = [each for each in list(self._taken) if each.times and each.keeper is keeper]
        left = [each for each in taken if each.is_left()]
        held = next(iter(left or (taken if entered else [])), None)
        began_in = None if held is None else held.mine()
        if entered and began_in is not None and self in began_in.blocks:
            began_in.blocks.remove(self)
        return held

    def _released(self, held: Held, was_held: bool) -> None:
        held.keeper.forget(held.lease)
        self._over(held)
        if not was_held:
            held.lease.has_ended = True
            raise self._lost(held, "it was released")

    def _interrupted(self, held: Held | None, *, entered: bool) -> None:
        """Once less, or free, whatever became of its release; None if that had not begun."""
        held = held or self._find(entered=entered)
        if held is None:
            return
        if held.times > 1:
            held.times -= 1
            return
        self._give_up(held)

    def _not_begun(self, mine: Mine, times: int) -> None:
        """The beginning of a block failed, before which `mine` had it so many times."""
        mine.blocks.remove(self)
        if self._times(mine) > times:  # interrupted when all was done
            self._interrupted(mine[self.name], entered=False)

    def _not_ended(self, held: Held | None, error: BaseException, *, entered: bool) -> None:
        """To give it back failed; with LockLost and nothing found, there was none to be given."""
        if held is not None or not isinstance(error, LockLost):
            self._interrupted(held, entered=entered)

    def _give_up(self, held: Held) -> None:
        held.keeper.give_up(held.lease)
        self._over(held)

    def _over(self, held: Held) -> None:
        """It is held here no more."""
        held.times = 0
        mine = held.mine()
        if mine is not None and mine.get(self.name) is held:
            mine.pop(self.name, None)
        self._forget(held)

    def _forget(self, held: Held) -> None:
        with contextlib.suppress(ValueError):
            self._taken.remove(held)

    def _times(self, mine: Mine) -> int:
        held = mine.get(self.name)
        return 0 if held is None else held.times

    def _not_held(self) -> LockLost:
        return LockLost(f"lock {shown(self.name)} is not held here")

    def _lost(self, held: Held, event: str) -> LockLost:
        if held.lease.has_ended:
            return LockLost(
                f"lock {shown(self.name)} was lost before {event}: its connection was lost, or it "
                f"was not renewed within its {held.ttl} s, so others may have held it meanwhile"
            )
        return LockLost(
            f"lock {shown(self.name)} may have been lost before {event}: the daemon has not been "
            f"heard of for its {held.ttl} s"
        )


class Lock(BaseLock):
    """`with db.lock(name) as held:` see PickleDB.lock."""

    def acquire(self) -> Held:
        """Wait for the lock. RequestTimeout if it was not free in time."""
        mine = self._mine()
        held = self._again(mine)
        if held is not None:
            held.times += 1
            return held  # at once: nothing that could be interrupted comes between
        held = self._new(mine)
        try:
            return self._got(held, mine, self._request(self._asking(held)))
        except BaseException as error:
            self._failed(held, error)
            raise

    def __enter__(self) -> Held:
        mine = self._mine()
        mine.blocks.append(self)
        times = self._times(mine)
        try:
            return self.acquire()
        except BaseException:
            self._not_begun(mine, times)
            raise

    def release(self) -> None:
        """Give it back. LockLost if it was not held any more."""
        self.__exit__(None, None, None, False)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        entered: bool = True,
    ) -> None:
        held: Held | None = None
        try:
            held = self._find(entered=entered)
            if held is None:
                raise self._not_held()
            if held.times > 1:
                held.times -= 1
                return
            self._released(held, self._request(held.keeper.release(held.lease)))
        except BaseException as error:
            self._not_ended(held, error, entered=entered)
            # If there is another exception, that is what the user is to hear of
            if exc_type is None or not isinstance(error, Exception):
                raise

    def _mine(self) -> Mine:
        return self._locks.here().of_thread()
