"""All commands on single keys, by threads, processes and tasks at once, are linearizable.

Keys expire meanwhile, requests time out and are cancelled, and the daemon is halted, stopped and
killed. First the checker of such histories.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import histories
from linearizable import (
    Operation,
    by_key,
    described,
    unexplained_expiring,
    versions_of,
)
from support import PATIENCE, Daemon, seeded

# The checker

V = {"v1": 1, "v2": 2}


def op(kind, value, result, start, end):
    return Operation("k", kind, value, result, start, end)


def set_(value, start, end, ttl=None):
    if ttl is None:
        return op("set", value, True, start, end)
    return op("set_ttl", [value, ttl], True, start, end)


def get(result, start, end):
    return op("get", None, result, start, end)


GOOD = {
    "there before, gone after": [set_(1, 0, 1, 5), get(1, 4, 5), get(None, 6.1, 6.2)],
    "gone at some moment in between": [set_(1, 0, 1, 5), get(1, 4, 5.5), get(None, 5.2, 5.6)],
    "set just before its answer": [set_(1, 0, 4, 5), get(1, 8, 9)],
    "a set has it live on": [set_(1, 0, 1, 5), set_(2, 2, 3), get(2, 99, 100)],
    "a set had it live on before it ended": [set_(1, 0, 1, 5), set_(2, 2, 98), get(2, 99, 100)],
    "an incr does not": [set_(1, 0, 1, 5), op("incr", 1, 2, 2, 3), get(None, 7, 8)],
    "an incr of what was gone": [set_(1, 0, 1, 5), op("incr", 1, 1, 7, 8), get(1, 99, 100)],
    "persist came first": [set_(1, 0, 1, 5), op("persist", None, True, 2, 9), get(1, 99, 100)],
    "expire": [set_(1, 0, 1), op("expire", 2, True, 2, 3), get(None, 6, 7)],
    "expire that was not answered": [
        set_(1, 0, 1),
        op("expire", 2, None, 2, None),
        get(None, 9, 9),
    ],
    "expire that never was": [set_(1, 0, 1), op("expire", 2, None, 2, None), get(1, 99, 99)],
    "a time": [set_(1, 0, 1, 5), op("ttl", None, 2.5, 3, 3)],
    "no time": [set_(1, 0, 1), op("ttl", None, None, 3, 3), get(1, 4, 4)],
    "swapped": [set_(1, 0, 1), op("cas", ["v1", 2], True, 2, 3), get(2, 4, 5)],
    "swapped, and expires": [op("cas", [0, 2, 5], True, 2, 3), get(2, 4, 5), get(None, 9, 9)],
    "not swapped, it was gone": [set_(1, 0, 1, 5), op("cas", ["v1", 2], False, 5.5, 9)],
    "one of two swaps": [
        *(set_(1, 0, 1), op("cas", ["v1", 2], True, 2, 9), op("cas", ["v1", 3], False, 2, 9))
    ],
    "versions": [set_(1, 0, 1), op("get_versioned", None, [1, "v1"], 2, 3)],
    "no version": [op("get_versioned", None, [None, 0], 2, 3)],
    "two incrs": [op("incr", 1, 2, 0, 9), op("incr", 1, 1, 0, 9)],
}

BAD = {
    "gone too early": [set_(1, 0, 1, 5), get(None, 4, 4.9)],
    "there too late": [set_(1, 0, 1, 5), get(1, 6.1, 6.2)],
    "there again": [set_(1, 0, 1, 5), get(None, 5.1, 5.2), get(1, 5.3, 5.4)],
    "a set did not have it live on": [set_(1, 0, 1, 5), set_(2, 2, 3), get(None, 99, 100)],
    "an incr had it live on": [set_(1, 0, 1, 5), op("incr", 1, 2, 2, 3), get(2, 7, 8)],
    "an incr of what was gone": [set_(1, 0, 1, 5), op("incr", 1, 2, 7, 8)],
    "persist of what was gone": [set_(1, 0, 1, 5), op("persist", None, True, 7, 8)],
    "persist of what stays": [set_(1, 0, 1), op("persist", None, True, 7, 8)],
    "persist did nothing": [*(set_(1, 0, 1, 5), op("persist", None, True, 2, 3), get(None, 7, 8))],
    "expire too early": [set_(1, 0, 1), op("expire", 2, True, 2, 3), get(None, 3.5, 3.9)],
    "expire did nothing": [set_(1, 0, 1), op("expire", 2, True, 2, 3), get(1, 6, 7)],
    "expire of nothing": [op("expire", 2, True, 2, 3)],
    "a time that is wrong": [set_(1, 0, 1, 5), op("ttl", None, 1.5, 3, 3)],
    "a time of what stays": [set_(1, 0, 1), op("ttl", None, 1.5, 3, 3)],
    "no time of what expires": [set_(1, 0, 1, 5), op("ttl", None, None, 3, 3)],
    "swapped what was another": [set_(1, 0, 1), op("cas", ["v2", 2], True, 2, 3)],
    "not swapped though it was that": [set_(1, 0, 1), op("cas", ["v1", 2], False, 2, 3)],
    "swapped what was gone": [set_(1, 0, 1, 5), op("cas", ["v1", 2], True, 7, 8)],
    "swapped nothing, which was there": [set_(1, 0, 1), op("cas", [0, 2], True, 2, 3)],
    "swapped twice": [
        *(set_(1, 0, 1), op("cas", ["v1", 2], True, 2, 9), op("cas", ["v1", 3], True, 2, 9))
    ],
    "swapped, and lost": [set_(1, 0, 1), op("cas", ["v1", 2], True, 2, 3), get(1, 4, 5)],
    "a version of what is not there": [op("get_versioned", None, [1, "v1"], 2, 3)],
    "version 0 of what is there": [set_(1, 0, 1), op("get_versioned", None, [1, 0], 2, 3)],
    "there, and not there": [set_(1, 0, 1), op("exists", None, False, 2, 3)],
    "an incr was lost": [op("incr", 1, 1, 0, 9), op("incr", 1, 1, 0, 9)],
    "an incr that was not answered, twice": [
        *(op("incr", 1, None, 0, None), op("incr", 1, 3, 2, 3))
    ],
}


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD)
def test_a_good_history_is_accepted(history):
    assert unexplained_expiring(history, V) is None


@pytest.mark.parametrize("history", BAD.values(), ids=BAD)
def test_a_bad_history_is_rejected(history):
    assert unexplained_expiring(history, V) is not None


def test_versions_are_told_apart():
    good = [op("get_versioned", None, [n, f"v{n}"], 0, 1) for n in (1, 2, 1)]
    assert versions_of(good) == {"v1": 1, "v2": 2}
    for told in ([1, "v2"], [3, "v1"], [5, 0]):
        with pytest.raises(AssertionError):
            versions_of([*good, op("get_versioned", None, told, 0, 1)])


_KINDS = st.sampled_from(list(histories.KINDS))


def _answered_by_a_dict(asked):  # noqa: C901, PLR0912 - a branch for each kind
    """What a variable that expires answers, each operation being applied at a moment of its own."""
    value, deadline = None, None
    told = []
    for moment, start, end, kind, new, ttl in sorted(asked, key=lambda each: each[0]):
        if deadline is not None and deadline <= moment:
            value = deadline = None
        there, result, given = value is not None, value, None
        if kind in ("set", "set_ttl"):
            given, result = (new, True) if kind == "set" else ([new, ttl], True)
            value, deadline = new, moment + ttl if kind == "set_ttl" else None
        elif kind == "exists":
            result = there
        elif kind == "setdefault":
            given = new
            value = result = value if there else new
        elif kind in ("remove", "pop"):
            result = there if kind == "remove" else value
            value = deadline = None
        elif kind == "incr":
            given, value = 1, (value or 0) + 1
            result = value
        elif kind == "get_versioned":
            result = [value, f"v{value}" if there else 0]
        elif kind == "cas":
            given = [f"v{new - 1}" if new % 2 else 0, new]
            result = value == (new - 1 if new % 2 else None)
            if result:
                value, deadline = new, None
        elif kind == "expire":
            given, result = ttl, there
            deadline = moment + ttl if there else None
        elif kind == "persist":
            result = deadline is not None
            deadline = None
        elif kind == "ttl":
            result = None if deadline is None else deadline - moment
        told.append(op(kind, given, result, start, end))
    return told


_ASKED = st.tuples(st.floats(0, 10), st.floats(0, 1), st.floats(0, 1), _KINDS).map(
    lambda t: (t[0], t[0] - t[1], t[0] + t[2], t[3])
)
_MORE = st.tuples(st.integers(1, 4), st.floats(0.5, 5))
_VERSIONS = {f"v{n}": n for n in range(100)}


@settings(max_examples=200)
@given(st.lists(st.tuples(_ASKED, _MORE).map(lambda t: (*t[0], *t[1])), max_size=12))
def test_whatever_a_variable_answered_at_some_moment_in_between_is_accepted(asked):
    history = _answered_by_a_dict(asked)
    impossible = unexplained_expiring(history, _VERSIONS)
    assert impossible is None, described(history, impossible)


@settings(max_examples=200)
@given(
    st.lists(
        # nothing is asked in the very moment in which something expires
        st.tuples(_KINDS, st.tuples(st.integers(1, 4), st.sampled_from([0.5, 1.5, 2.5]))),
        min_size=1,
        max_size=8,
    ),
    st.data(),
)
def test_one_wrong_answer_among_right_ones_is_found(kinds, data):
    """One after the other, each at once: there is just one order, and one right answer to each."""
    asked = [(n, n, n, kind, *more) for n, (kind, more) in enumerate(kinds)]
    history = _answered_by_a_dict(asked)
    at = data.draw(st.integers(0, len(history) - 1))
    right = history[at]
    if right.kind in ("set", "set_ttl"):
        return  # there is no other answer
    if right.kind == "get_versioned":
        wrong = [50, "v50"]
    elif right.kind == "ttl":
        wrong = 90.0
    else:
        wrong = not right.result if isinstance(right.result, bool) else 50
    history[at] = Operation("k", right.kind, right.value, wrong, right.start, right.end)
    assert unexplained_expiring(history, _VERSIONS) is history[at]


# The daemon


class Crowd:
    """Processes that note what they are answered, and what happens to their daemon."""

    def __init__(self, location, processes):
        self.location = location
        self.random = seeded()
        self.daemon = Daemon(location)
        # some know the path, others the endpoint
        targets = [str(location), self.daemon.endpoint]
        self.origin = time.monotonic()
        self.paths = [location.with_name(f"history.{n}") for n in range(processes)]
        self.processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    histories.__file__,
                    *(str(n), targets[n % 2], str(path), str(self.origin), str(2 * processes)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for n, path in enumerate(self.paths)
        ]
        for process in self.processes:
            assert process.stdout.readline() == "ready\n"

    def pause(self, seconds):
        threading.Event().wait(seconds * (0.5 + self.random.random()))

    # What happens

    def kill(self):
        self.daemon.kill()
        self.daemon = Daemon(self.location)

    def stop(self):
        self.daemon.stop()
        self.daemon = Daemon(self.location)

    def halt(self):
        """What times out meanwhile is applied afterwards."""
        os.kill(self.daemon.pid, signal.SIGSTOP)
        self.pause(4 * histories.IMPATIENT)
        os.kill(self.daemon.pid, signal.SIGCONT)

    def end(self):
        """Have them end; the history."""
        try:
            for process in self.processes:
                process.stdin.close()
            for process in self.processes:
                assert process.wait(2 * PATIENCE) == 0
        finally:
            for process in self.processes:
                process.kill()
                process.wait(PATIENCE)
                process.stdout.close()
        history = []
        for path in self.paths:
            with path.open() as lines:
                history += [Operation(*json.loads(line)) for line in lines]
        return history


def check(history, last):
    """`last`: reads of all that there was in the end, by another client."""
    versions = versions_of(history)
    there = {operation.key: operation for operation in last}
    histories_by_key = by_key(history)
    assert there.keys() <= histories_by_key.keys()
    begun, ended = last[0].start if last else 0, last[0].end if last else 0
    for key, operations in histories_by_key.items():
        gone = Operation(key, "get", None, None, begun, ended)
        operations.append(there.get(key, gone))
        impossible = unexplained_expiring(operations, versions)
        assert impossible is None, described(operations, impossible)


def live_through(location, processes, rounds):
    crowd = Crowd(location, processes)
    try:
        for _ in range(rounds):
            for happens in (crowd.kill, crowd.halt, crowd.stop):
                crowd.pause(0.4)
                happens()
        crowd.pause(0.4)
    finally:
        history = crowd.end()
    crowd.kill()
    with contextlib.closing(crowd.daemon.client()) as db:
        begun = time.monotonic()
        content = db.db
        ended = time.monotonic()
    last = [Operation(key, "get", None, value, begun, ended) for key, value in content.items()]
    begun = time.monotonic()
    check(history, last)
    crowd.daemon.check_and_stop()
    answered = Counter(each.kind for each in history if each.end is not None)
    endless = sum(each.end is None for each in history)
    seconds = time.monotonic() - begun
    print(f"{dict(answered)}, {endless} without an answer, checked in {seconds:.1f} s")  # noqa: T201 - what a long run came to
    return answered, endless


def test_all_that_is_done_to_single_keys_is_linearizable(location):
    answered, endless = live_through(location, 2, 1)
    assert set(answered) == set(histories.KINDS)
    assert endless > 0


@pytest.mark.long
def test_all_that_is_done_to_single_keys_is_linearizable_for_long(location):
    answered, endless = live_through(location, 4, 60)
    assert min(answered.values()) > 1_000
    assert endless > 100
