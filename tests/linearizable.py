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


# The same for all commands on a single key, which may expire

ABSENT = None
NEVER = float("inf")

Held = tuple[Any, float, float] | None
"""A value, and between which moments it expires; None if there is no such key."""

LATE = 0.01
"""How long after its time a key may be there at most. Who asks later must not find it, however busy
the machine; this is for what clocks differ."""


def versions_of(history: list[Operation]) -> dict[Any, Any]:
    """Of the versions that somebody was told, the values. One value has one, and the other way."""
    values: dict[Any, Any] = {}
    for operation in history:
        if operation.kind == "get_versioned" and operation.end is not None:
            value, version = operation.result
            assert values.setdefault(version, value) == value, f"{version} is of two values"
    by_value = {value: version for version, value in values.items()}
    assert len(by_value) == len(values), "a value has two versions"
    assert values.get(0) is None, "what is there has version 0"
    return values


def unexplained_expiring(
    history: list[Operation], versions: dict[Any, Any], late: float = LATE
) -> Operation | None:
    """As `unexplained`, for all commands on a key that is not there at first.

    What `value` and `result` are beside those kinds: set_ttl [value, ttl], True; expire ttl,
    whether it is there; persist nothing, whether it was to expire; ttl nothing, the seconds or
    None; incr the number to be added, the sum; exists; get_versioned nothing, [value, version]; cas
    [version, value] or [version, value, ttl], whether it was swapped. `versions`: `versions_of` it.

    A key that was set to expire is gone so long after that took effect: not before, and not later
    than `late` after. At what moment it took effect is not known, so neither is when it is gone;
    that happens by itself, like an operation that may take effect from the first of these moments
    on. It need not be done before somebody finds it gone.
    """
    events = sorted(
        [(op.start, 0, n) for n, op in enumerate(history)]
        + [(op.end, 1, n) for n, op in enumerate(history) if op.end is not None]
    )
    situations: set[tuple[Held, frozenset[int]]] = {(ABSENT, frozenset())}
    endless = frozenset(n for n, op in enumerate(history) if op.end is None)
    under_way: set[int] = set()
    for now, is_end, number in events:
        if not is_end:
            under_way.add(number)
            continue
        reached: set[tuple[Held, frozenset[int]]] = set()
        seen = set(situations)
        to_do = list(situations)
        while to_do:
            held, done = to_do.pop()
            if number in done:
                reached.add((held, done - {number}))
                continue
            following: list[tuple[Held, frozenset[int]]] = []
            for other in under_way - done:
                operation = history[other]
                after = _after(operation, held, versions, now, late)
                if held in after and _changed_nothing(operation):
                    # It is as well done now. A key that may be gone, and that nobody has found
                    # gone, can still be so to whoever comes next
                    following = [(held, done | {other})]
                    break
                following += [
                    (changed, done | {other})
                    for changed in after
                    if changed != held or operation.end is not None
                ]
            to_do += [one for one in following if one not in seen]
            seen.update(following)
        if not reached:
            return history[number]
        situations = _most_open(reached, endless)
        under_way.remove(number)
    return None


def _most_open(
    situations: set[tuple[Held, frozenset[int]]], endless: frozenset[int]
) -> set[tuple[Held, frozenset[int]]]:
    """Without those in which the same is held, and more of what has no end has taken effect.

    It need not have; so whatever can follow on these can follow on the others as well.
    """
    alike: defaultdict[tuple[Held, frozenset[int]], list[frozenset[int]]] = defaultdict(list)
    for held, done in sorted(situations, key=lambda one: len(one[1])):
        known = alike[held, done - endless]
        if not any(fewer <= done for fewer in known):
            known.append(done)
    return {(held, done) for (held, _), known in alike.items() for done in known}


def _changed_nothing(operation: Operation) -> bool:
    """Whether its answer tells that it changed nothing, whenever it took effect."""
    if operation.end is None:
        return False
    if operation.kind in ("remove", "pop", "expire", "persist", "cas"):
        return not operation.result
    if operation.kind == "setdefault":
        return bool(operation.result != operation.value)
    return operation.kind in ("get", "exists", "get_versioned", "ttl")


def _after(
    operation: Operation, held: Held, versions: dict[Any, Any], now: float, late: float
) -> list[Held]:
    """What may be held after `operation`; nothing if it would have been answered otherwise."""
    found: list[Held] = []
    if held is None or operation.start <= held[2] + late:
        found.append(held)
    if held is not None and now >= held[1]:
        found.append(ABSENT)
    after: list[Held] = []
    for before in found:
        result, changed = _answered(operation, before, versions)
        if operation.end is None or _is_answer(operation.result, result):
            after.append(changed)
    return after


def _answered(operation: Operation, held: Held, versions: dict[Any, Any]) -> tuple[Any, Held]:  # noqa: C901, PLR0911, PLR0912 - a branch for each kind
    """What it is answered, and what is held then."""
    kind, asked = operation.kind, operation.value
    value, *expiry = (None, NEVER, NEVER) if held is None else held
    if kind == "get":
        return value, held
    if kind == "exists":
        return held is not None, held
    if kind == "set":
        return True, (asked, NEVER, NEVER)
    if kind == "set_ttl":
        return True, (asked[0], *_expiry(operation, asked[1]))
    if kind == "setdefault":
        return (asked, (asked, NEVER, NEVER)) if held is None else (value, held)
    if kind == "remove":
        return held is not None, None
    if kind == "pop":
        return value, None
    if kind == "incr":
        added = (value or 0) + asked
        return added, (added, expiry[0], expiry[1])
    if kind == "get_versioned":
        return [value, None if held is None else ...], held
    if kind == "cas":
        version, new, *ttl = asked
        if (versions.get(version, ...) if version else None) != value:
            return False, held
        return True, (new, *_expiry(operation, *ttl))
    if kind == "expire":
        return held is not None, held and (value, *_expiry(operation, asked))
    if kind == "persist":
        return expiry[0] < NEVER, held and (value, NEVER, NEVER)
    if kind == "ttl":
        if expiry[0] == NEVER:
            return None, held
        ended = NEVER if operation.end is None else operation.end
        return (expiry[0] - ended, expiry[1] - operation.start), held
    raise ValueError(f"unknown kind of operation: {kind}")


def _expiry(operation: Operation, ttl: float = NEVER) -> tuple[float, float]:
    return operation.start + ttl, (NEVER if operation.end is None else operation.end) + ttl


def _is_answer(told: Any, expected: Any) -> bool:
    """Whether `told` is what was expected: of versions and times, as far as that is known."""
    if isinstance(expected, list):
        return bool(told[0] == expected[0] and (told[1] == 0) == (expected[1] is None))
    if isinstance(expected, tuple):
        # Times on the wire are in milliseconds, rounded up
        return told is not None and bool(expected[0] - 0.002 <= told <= expected[1] + 0.002)
    return bool(told == expected)
