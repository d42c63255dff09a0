"""Work that takes long, done in short steps between the turns of the loop.

A task is a generator. Each step ends with a `yield`: of nothing where it can go on at once, or of
a Future where it has to wait for a thread. What blocks (writing, syncing, renaming) runs in
threads, which hold no lock of Python's meanwhile; everything else is the loop's thread.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, ParamSpec, TypeVar

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

Task = Generator[Future[Any] | None, None, T]

Pause = Future[None]
"""What a task waits for that no thread does; whoever made it tells when it is over."""


class Worker:
    """A thread that does one thing after the other."""

    def __init__(self, name: str, wake: Callable[[], object]) -> None:
        """`wake` is called, in any thread, whenever something is done."""
        self._wake = wake
        self._threads = ThreadPoolExecutor(1, f"pickledbd-{name}")

    def do(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a call that blocks done."""
        future = self._threads.submit(function, *args, **kwargs)
        future.add_done_callback(lambda _future: self._wake())
        return future

    def close(self) -> None:
        """Wait until all is done, and end the thread."""
        self._threads.shutdown()


class Tasks:
    """The tasks there are, taken in turns."""

    def __init__(self) -> None:
        self._tasks: deque[tuple[Task[None], Future[Any] | None]] = deque()

    def add(self, task: Task[None]) -> None:
        """Have `task` done."""
        self._tasks.append((task, None))

    def __bool__(self) -> bool:
        return bool(self._tasks)

    @property
    def ready(self) -> bool:
        """Whether there is something to do now."""
        return any(awaited is None or awaited.done() for _, awaited in self._tasks)

    def run(self, seconds: float) -> None:
        """Go on with what can go on, for about so long."""
        until = time.monotonic() + seconds
        waiting = 0
        while waiting < len(self._tasks):
            task, awaited = self._tasks.popleft()
            if awaited is not None and not awaited.done():
                self._tasks.append((task, awaited))
                waiting += 1
                continue
            waiting = 0
            try:
                self._tasks.append((task, next(task)))
            except StopIteration:
                pass
            except Exception:
                # A task tells of what may fail; this is a fault, and the others must go on.
                log.exception("a task of the daemon failed", extra={"event": "fault"})
            if time.monotonic() >= until:
                return

    def finish(self, progress: Callable[[], None] = lambda: None) -> None:
        """Do all there is, and wait for it."""
        while self._tasks:
            self.run(1.0)
            progress()
            if self._tasks and not self.ready:
                # Not for long: some wait for what only `progress` brings about
                wait([a for _, a in self._tasks if a is not None], 0.05, "FIRST_COMPLETED")


def result(future: Future[T]) -> Task[T]:
    """What `future` ends with, for a task that waits for it by `yield from`."""
    yield future
    return future.result()
