"""Is a history of one key's operations linearizable: can one order of them explain every answer?

An operation took effect at one moment between its start and its end. One without an answer took
effect at any time after its start, or never. The key behaves as a variable does; a value that is
not there is None here.

After Wing and Gong (1993), in the form of Lowe's just-in-time linearization (Testing for
linearizability, 2017): the events are gone through in the order of their times, together with all
*situations* that are possible then. A situation is the key's value, and which of the operations
under way have taken effect already. When one ends it must have taken effect: each situation
where it has not is replaced by those that are reached from it by letting operations under way
take effect, one after the other, this one last. Situations that are equal are one (the
memoisation), so the work grows with how much goes on at the same time, and only in proportion
to the history's length. Where no situation is left, no order explains what was answered.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Operation:
    """What a client did to `key`, from when to when."""

    key: str
    kind: str
    """set, get, remove, pop or setdefault."""
    value: Any
    """What was to be set."""
    result: Any
    """What was answered: of remove whether it was there, else the value or None."""
    start: float
    end: float | None
    """None if there was no answer."""


Situation = tuple[Any, frozenset[int]]
"""The key's value, and the operations under way that have taken effect."""


def unexplained(history: list[Operation], initial: Any = None) -> Operation | None:
    """The operation by whose end no order explains the answers any more; None if one does.

    All are of one key, which has the value `initial` at first.
    """
    # At the same moment starts come first: only what ended before another began precedes it.
    events = sorted(
        [(op.start, 0, n) for n, op in enumerate(history)]
        + [(op.end, 1, n) for n, op in enumerate(history) if op.end is not None]
    )
    situations: set[Situation] = {(initial, frozenset())}
    under_way: set[int] = set()
    for _, is_end, number in events:
        if not is_end:
            under_way.add(number)
            continue
        situations = _having_done(number, situations, under_way, history)
        if not situations:
            return history[number]
        under_way.remove(number)
    return None


def _having_done(
    number: int, situations: set[Situation], under_way: set[int], history: list[Operation]
) -> set[Situation]:
    """The situations reached from `situations` in which operation `number` has taken effect.

    It has ended, so it need not be remembered in them any more.
    """
    reached: set[Situation] = set()
    seen = set(situations)
    to_do = list(situations)
    while to_do:
        value, done = to_do.pop()
        if number in done:
            reached.add((value, done - {number}))
            continue
        following: list[Situation] = []
        for other in under_way - done:
            after = _apply(history[other], value)
            if after and _only_looked(history[other]):
                # It has to be done and changes nothing: as well now, before all others.
                following = [(value, done | {other})]
                break
            following += [(changed, done | {other}) for changed in after]
        to_do += [one for one in following if one not in seen]
        seen.update(following)
    return reached


def _only_looked(operation: Operation) -> bool:
    """Whether its answer tells that it changed nothing, whenever it took effect."""
    if operation.end is None:
        return False
    if operation.kind in ("remove", "pop"):
        return not operation.result
    return operation.kind == "get"


def _apply(operation: Operation, value: Any) -> list[Any]:
    """The value after `operation`; none if it would have been answered otherwise."""
    if operation.kind == "set":
        result, after = operation.result, operation.value
    elif operation.kind == "get":
        result, after = value, value
    elif operation.kind == "remove":
        result, after = value is not None, None
    elif operation.kind == "pop":
        result, after = value, None
    elif operation.kind == "setdefault":
        result = after = operation.value if value is None else value
    else:
        raise ValueError(f"unknown kind of operation: {operation.kind}")
    return [after] if operation.end is None or result == operation.result else []


def by_key(history: list[Operation]) -> dict[str, list[Operation]]:
    """The histories of the single keys: the whole is linearizable if each of them is."""
    histories = defaultdict(list)
    for operation in history:
        histories[operation.key].append(operation)
    return dict(histories)


def described(history: list[Operation], around: Operation, margin: int = 12) -> str:
    """The part of one key's history that ends when `around` does, a line an operation."""
    ended = [op for op in history if op.start <= (around.end or op.start)]
    ended.sort(key=lambda op: op.end or float("inf"))
    place = ended.index(around)
    lines = [f"no order explains the answers of {around.key}; the last of these is impossible:"]
    for op in [*ended[place + 1 :], *ended[max(0, place - margin) : place + 1]]:
        end = "no answer" if op.end is None else f"{op.end:.6f}"
        lines.append(f"  {op.start:.6f} - {end}  {op.kind} {op.value!r} -> {op.result!r}")
    return "\n".join(lines)
