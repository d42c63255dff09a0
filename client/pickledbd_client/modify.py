"""`modify()`: read, change, write, again and again until nobody has interfered.

May live here: what is asked next, without I/O. A generator yields the calls to be asked, and
seconds to be waited; PickleDB and AsyncPickleDB hand in their own ways to do both.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Awaitable, Callable, Generator
from typing import Any

from pickledbd_client import calls
from pickledbd_client.calls import Call
from pickledbd_protocol import Conflict, InvalidValue, shown

PAUSE_SECONDS = 0.001
PAUSE_SECONDS_MAX = 0.1
"""The longest pause after the first attempt that failed, which doubles with each, up to this. The
pause itself is random ("full jitter": M. Brooker, "Exponential Backoff And Jitter", 2015)."""

Steps = Generator[Call[Any] | float, Any, Any]


def modify(
    key: str, fn: Callable[[Any], Any], default: Any, tries: int, token: int | None
) -> Steps:
    """Returns what `fn` made of the value. Conflict after so many `tries`, one at least."""
    if type(tries) is not int or tries < 1:
        raise InvalidValue(
            f"modify of key {shown(key)}: tries is how often at most, an int of at least 1, "
            f"not {tries!r}"
        )
    longest = PAUSE_SECONDS
    for attempt in range(tries):
        if attempt:
            yield random.uniform(0, longest)  # noqa: S311 - no secret
            longest = min(2 * longest, PAUSE_SECONDS_MAX)
        value, version = yield calls.get_versioned(key)
        changed = fn(value if version else copy.deepcopy(default))
        if (yield calls.cas(key, version, changed, keep_ttl=True, token=token)):
            return changed
    raise Conflict(
        f"modify of key {shown(key)} gave up after {tries} tries: each time somebody else had "
        "changed it meanwhile; nothing was changed"
    )


def drive(steps: Steps, request: Callable[[Call[Any]], Any], sleep: Callable[[float], Any]) -> Any:
    """Take all `steps`; what they return."""
    answer = None
    try:
        while True:
            step = steps.send(answer)
            answer = sleep(step) if isinstance(step, float) else request(step)
    except StopIteration as end:
        return end.value


async def drive_async(
    steps: Steps,
    request: Callable[[Call[Any]], Awaitable[Any]],
    sleep: Callable[[float], Awaitable[Any]],
) -> Any:
    """The same, where asking and waiting are awaited."""
    answer = None
    try:
        while True:
            step = steps.send(answer)
            answer = await (sleep(step) if isinstance(step, float) else request(step))
    except StopIteration as end:
        return end.value
