"""The checker of histories: what it accepts, what it rejects, and the same by brute force."""

from __future__ import annotations

from itertools import chain, combinations, permutations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from linearizable import Operation, by_key, described, unexplained


def op(kind, start, end, *, value=None, result=None):
    return Operation("k", kind, value, result, start, end)


def set_(value, start, end):
    return op("set", start, end, value=value, result=True)


def get(result, start, end):
    return op("get", start, end, result=result)


def pop(result, start, end):
    return op("pop", start, end, result=result)


def remove(result, start, end):
    return op("remove", start, end, result=result)


def setdefault(value, result, start, end):
    return op("setdefault", start, end, value=value, result=result)


GOOD = {
    "nothing happened": [],
    "one after the other": [set_(1, 0, 1), get(1, 2, 3), remove(True, 4, 5), get(None, 6, 7)],
    "a read beside a write sees the old": [set_(1, 0, 1), set_(2, 2, 5), get(1, 3, 4)],
    "a read beside a write sees the new": [set_(1, 0, 1), set_(2, 2, 5), get(2, 3, 4)],
    "old, then new, beside a write": [set_(1, 0, 9), get(None, 1, 2), get(1, 3, 4)],
    "writes side by side, in either order": [set_(1, 0, 4), set_(2, 0, 4), get(1, 5, 6)],
    "of two pops one has it": [set_(1, 0, 1), pop(1, 2, 5), pop(None, 2, 5)],
    "the pop that asked later has it": [set_(1, 0, 1), pop(None, 2, 5), pop(1, 3, 4)],
    "popped before the set was answered": [set_(1, 0, 9), pop(1, 1, 2), get(None, 3, 4)],
    "one setdefault wins": [setdefault(1, 2, 0, 3), setdefault(2, 2, 0, 3), get(2, 4, 5)],
    "an answerless write took effect late": [set_(1, 0, None), get(None, 1, 2), get(1, 3, 4)],
    "an answerless write never did": [set_(1, 0, None), get(None, 1, 2), get(None, 3, 4)],
    "an answerless pop took it": [set_(1, 0, 1), pop(None, 2, None), get(None, 3, 4)],
    "an answerless setdefault": [setdefault(1, None, 0, None), get(None, 1, 2), pop(1, 3, 4)],
    "end and start at one moment": [set_(1, 0, 1), get(None, 1, 2)],
}

BAD = {
    "a stale read": [set_(1, 0, 1), set_(2, 2, 3), get(1, 4, 5)],
    "a lost update": [set_(1, 0, 1), get(None, 2, 3)],
    "a lost update, seen before": [set_(1, 0, 9), get(1, 1, 2), get(None, 3, 4)],
    "read before it was set": [get(1, 0, 1), set_(1, 2, 3)],
    "read though nobody set it": [get(1, 0, 1)],
    "new, then old": [set_(1, 0, 1), set_(2, 2, 9), get(2, 3, 4), get(1, 5, 6)],
    "popped twice": [set_(1, 0, 1), pop(1, 2, 5), pop(1, 2, 5)],
    "popped, and still there": [set_(1, 0, 1), pop(1, 2, 3), get(1, 4, 5)],
    "popped by nobody, and gone": [set_(1, 0, 1), pop(None, 2, 3), get(None, 4, 5)],
    "removed twice": [set_(1, 0, 1), remove(True, 2, 3), remove(True, 4, 5)],
    "two setdefaults win": [setdefault(1, 1, 0, 3), setdefault(2, 2, 0, 3)],
    "a setdefault that changed it": [set_(1, 0, 1), setdefault(2, 2, 2, 3)],
    "an answerless write cannot be early": [get(1, 0, 1), set_(1, 2, None)],
    "an answerless pop takes once": [
        *(set_(1, 0, 1), pop(None, 2, None), get(None, 3, 4)),
        *(set_(1, 5, 6), get(None, 7, 8)),
    ],
    "readers who disagree": [
        *(set_(1, 0, 9), set_(2, 0, 9)),
        *(get(1, 1, 2), get(2, 3, 4), get(1, 5, 6)),
    ],
}


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD)
def test_a_good_history_is_accepted(history):
    assert unexplained(history) is None


@pytest.mark.parametrize("history", BAD.values(), ids=BAD)
def test_a_bad_history_is_rejected(history):
    assert unexplained(history) is not None


def test_it_is_told_which_answer_is_impossible():
    history = [set_(1, 0, 1), set_(2, 2, 3), get(1, 4, 5), get(2, 6, 7), set_(3, 8, None)]
    assert unexplained(history) is history[2]
    assert described(history, history[2]).splitlines()[-1].endswith("get None -> 1")


def test_each_key_has_a_history_of_its_own():
    history = [set_(1, 0, 1), Operation("other", "get", None, None, 2, 3), get(1, 4, 5)]
    assert by_key(history) == {"k": [history[0], history[2]], "other": [history[1]]}


def test_it_starts_from_the_value_that_was_there():
    assert unexplained([get(7, 0, 1)], initial=7) is None
    assert unexplained([get(None, 0, 1)], initial=7) is not None


def test_the_work_does_not_grow_with_the_square_of_a_historys_length():
    """Five who write without pause, each overlapping with all others, and as many who read."""
    history = [set_(n, n, n + 5) for n in range(2_000)]
    history += [get(n, n + 5, n + 5.5) for n in range(2_000)]
    assert unexplained(history) is None


# The same by brute force: every order of every choice of the operations without an answer

_VALUES = st.sampled_from([None, 1, 2])
_SETS = st.sampled_from([1, 2])


@st.composite
def _operations(draw):
    kind = draw(st.sampled_from(["set", "get", "remove", "pop", "setdefault"]))
    start = draw(st.integers(0, 8))
    end = draw(st.none() | st.integers(start, 9))
    value = draw(_SETS) if kind in ("set", "setdefault") else None
    result = {"set": st.just(True), "remove": st.booleans(), "setdefault": _SETS}.get(kind, _VALUES)
    return op(kind, start, end, value=value, result=draw(result))


def _replays(order):
    """Whether a dict answers these operations in this order as they were answered."""
    held = {}
    for each in order:
        if each.kind == "set":
            held["k"] = each.value
            answer = True
        elif each.kind == "get":
            answer = held.get("k")
        elif each.kind == "remove":
            answer = held.pop("k", None) is not None
        elif each.kind == "pop":
            answer = held.pop("k", None)
        else:
            answer = held.setdefault("k", each.value)
        if each.end is not None and answer != each.result:
            return False
    return True


def _by_brute_force(history):
    answered = [each for each in history if each.end is not None]
    answerless = [each for each in history if each.end is None]
    chosen = chain.from_iterable(combinations(answerless, n) for n in range(len(answerless) + 1))
    return any(
        _replays(order)
        for some in chosen
        for order in permutations([*answered, *some])
        if not any(
            later.end is not None and later.end < earlier.start
            for earlier, later in combinations(order, 2)
        )
    )


@settings(max_examples=500)
@given(st.lists(_operations(), max_size=5))
@example(BAD["new, then old"])
@example(GOOD["an answerless write took effect late"])
def test_it_says_what_brute_force_says(history):
    assert (unexplained(history) is None) == _by_brute_force(history)


# More at once than eight processes ask of a key; the work doubles with each that overlaps
@given(st.lists(_operations(), max_size=10), st.randoms(use_true_random=False))
def test_whatever_a_dict_answered_at_some_moment_in_between_is_accepted(history, random):
    """The answers are made by applying each at one moment between its start and its end."""
    moments = [random.uniform(o.start, 10 if o.end is None else o.end) for o in history]
    held = None
    answered = []
    for _, each in sorted(zip(moments, history, strict=True), key=lambda pair: pair[0]):
        result = {
            "set": True,
            "remove": held is not None,
            "setdefault": each.value if held is None else held,
        }.get(each.kind, held)
        held = {"set": each.value, "setdefault": result, "get": held}.get(each.kind)
        answered.append(op(each.kind, each.start, each.end, value=each.value, result=result))
    assert unexplained(answered) is None
