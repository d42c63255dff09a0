"""The wheel beside a dict of names and times, with a clock that the test turns.

However names are added, moved, forgotten and taken: what is due is counted and found, what is not
stays, nothing is found twice, and who sleeps until `next` misses nothing.
"""

from __future__ import annotations

import random
from sys import getsizeof

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from machines import run_machine
from pickledbd import wheel
from pickledbd.wheel import FAR_MS, Wheel

START = 1_700_000_000_000 // FAR_MS * FAR_MS
"""The beginning of a bucket for later, so that the distances below fall on and beside such."""

NAMES = [f"n{n}" for n in range(12)]
names = st.sampled_from(NAMES)
# Near and far, at the edges between them, and over already
DISTANCES = [-FAR_MS, -1, 0, 1, 2, FAR_MS - 1, FAR_MS, 2 * FAR_MS - 1, 2 * FAR_MS, 3 * FAR_MS]
times = st.sampled_from([*DISTANCES, 2 * FAR_MS + 1, 3 * FAR_MS - 1, 9 * FAR_MS, 10**12])
steps = st.sampled_from([0, 1, 2, FAR_MS - 1, FAR_MS, FAR_MS + 1, 2 * FAR_MS, 5 * FAR_MS])


class Clock:
    def __init__(self):
        self.now = START

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(wheel, "now_ms", made)
    return made


@pytest.fixture
def _small(monkeypatch):
    """So that a few names are many in a bucket."""
    monkeypatch.setattr(wheel, "LARGE", 2)
    monkeypatch.setattr(wheel, "SHARDS", 4)
    monkeypatch.setattr(wheel, "STALE", 2)


@pytest.fixture
def _sharded(monkeypatch):
    monkeypatch.setattr(wheel, "LARGE", 64)
    monkeypatch.setattr(wheel, "SHARDS", 16)


class Turning(RuleBasedStateMachine):
    clock: Clock

    def __init__(self):
        super().__init__()
        self.clock.now = START
        self.wheel = Wheel()
        self.known = {}
        self.used = [START]  # times that were used, so that names share them

    @property
    def now(self):
        return self.clock.now

    def due(self):
        return {name for name, at in self.known.items() if at <= self.now}

    @rule(by=steps)
    def time_goes_by(self, by):
        self.clock.now += by

    @rule(name=names, distance=times)
    def add(self, name, distance):
        self.add_at(name, self.now + distance)
        self.used.append(self.now + distance)

    @rule(name=names, which=st.integers(0, 40))
    def add_at_a_time_that_others_have(self, name, which):
        self.add_at(name, self.used[which % len(self.used)])

    @precondition(lambda self: self.known)
    @rule(which=st.integers(0, len(NAMES)))
    def add_again(self, which):
        """As a value that is replaced and lives as long as before."""
        name = list(self.known)[which % len(self.known)]
        self.add_at(name, self.known[name])

    def add_at(self, name, at):
        """As the store does: what had another time is forgotten first."""
        before = self.known.get(name)
        if before is not None and before != at:
            self.wheel.discard(name, before)
        self.wheel.add(name, at)
        self.known[name] = at

    @precondition(lambda self: self.known)
    @rule(which=st.integers(0, len(NAMES)))
    def discard(self, which):
        name = list(self.known)[which % len(self.known)]
        self.wheel.discard(name, self.known.pop(name))

    @rule(name=names, distance=times)
    def discard_what_has_another_time_or_none(self, name, distance):
        if self.known.get(name) != self.now + distance:
            self.wheel.discard(name, self.now + distance)

    @rule(most=st.integers(1, 4))
    def take(self, most):
        taken = self.wheel.take(self.now, most)
        assert len(taken) <= most
        assert len(set(taken)) == len(taken)
        assert set(taken) <= self.due()
        for name in taken:
            del self.known[name]

    @rule()
    def take_all_that_is_due(self):
        taken = []
        for _ in range(1000):
            after = self.wheel.next
            if after is None or after > self.now:
                break
            taken += self.wheel.take(self.now, 3)
        else:
            pytest.fail("it is never done")
        assert sorted(taken) == sorted(self.due())
        for name in taken:
            del self.known[name]

    @rule()
    def look_how_many_are_due(self):
        """At times only, as it moves buckets on."""
        assert self.wheel.overdue(self.now) == len(self.due())

    @invariant()
    def who_sleeps_until_next_misses_nothing(self):
        if self.known:
            assert self.wheel.used
            assert self.wheel.next is not None
            assert self.wheel.next <= min(self.known.values())

    @invariant()
    def nothing_is_left_of_what_is_gone(self):
        for level in (self.wheel._near, self.wheel._far):
            assert all(bucket.count for bucket in level.buckets.values())
            assert level.buckets.keys() <= set(level.times)
            assert len(level.times) <= 2 * len(level.buckets) + wheel.STALE

    def teardown(self):
        """Whoever sleeps from `next` to `next` gets each in its time, and comes to an end."""
        for _ in range(1000):
            after = self.wheel.next
            if after is None:
                break
            self.clock.now = max(self.now, after)
            self.take_all_that_is_due()
        assert not self.wheel.used
        assert self.known == {}
        assert self.wheel.overdue(self.now + 10**13) == 0


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("examples", [150, pytest.param(10_000, marks=pytest.mark.long)])
def test_whatever_is_added_moved_and_forgotten_each_is_due_once_at_its_time(clock, examples):
    run_machine(Turning, examples, clock=clock)


@pytest.mark.parametrize("distance", [5, 3 * FAR_MS])
def test_a_hundred_thousand_of_one_moment_are_taken_a_few_at_a_time_and_none_twice(clock, distance):
    kept = Wheel()
    due_at = START + distance
    for name in range(100_000):
        kept.add(name, due_at)
    later = [due_at + 1, due_at + 5 * FAR_MS]
    for name, at in enumerate(later, 100_000):
        kept.add(name, at)
    clock.now = due_at - 1
    assert kept.overdue(clock.now) == 0
    assert kept.take(clock.now, 64) == []
    clock.now = due_at
    assert kept.overdue(clock.now) == 100_000
    kept.discard(7, due_at)
    taken = []
    calls = 0
    while kept.next <= clock.now:
        taken += kept.take(clock.now, 64)
        calls += 1
        assert len(taken) <= 64 * calls
        assert calls < 10_000
    assert sorted(taken) == [name for name in range(100_000) if name != 7]
    assert kept.overdue(clock.now) == 0
    assert kept.next == due_at + 1


def test_its_memory_is_given_back_name_by_name(clock):
    """However many there are of one time, no step of it deals with more than one."""
    kept = Wheel()
    for name in range(30):
        kept.add(("near", name % 3, name), START + 10 + name % 3)
        kept.add(("far", name), START + 3 * FAR_MS)
        kept.add(("due", name), START)
    kept.add("moving", START + 2 * FAR_MS)
    clock.now = START + FAR_MS
    kept.overdue(START + FAR_MS)
    steps = sum(1 for _ in kept.free())
    assert steps == 91
    assert not any((kept._near.buckets, kept._far.buckets, kept._due, kept._moving))


def size(kept):
    """The bytes of all that it is made of, without the names."""
    found = 0
    for level in (kept._near, kept._far):
        found += getsizeof(level.times) + 32 * len(level.times) + getsizeof(level.buckets)
    for buckets in (kept._near.buckets, kept._far.buckets, kept._due, kept._moving):
        for bucket in buckets.values():
            found += getsizeof(bucket) + getsizeof(bucket.times) + getsizeof(bucket._shards)
            found += sum(map(getsizeof, bucket._shards))
    return found


DAY = 86_400_000


@pytest.mark.parametrize(
    ("ttl", "apart", "most"),
    [
        (30 * DAY, 20, 300),  # many in a bucket, which is many dicts
        (30 * DAY, 20_000, 1000),  # each in a bucket of its own
        (FAR_MS, 20, 1000),  # each in that of its millisecond
    ],
)
@pytest.mark.parametrize("in_turn", [True, False])
@pytest.mark.usefixtures("_sharded")
def test_names_whose_time_moves_on_and_on_take_no_more_memory_than_they_are(
    clock, ttl, apart, most, in_turn
):
    """As sessions, each of which lives for so long after it was last used."""
    count = 500
    kept = Wheel()
    kept.add("first", START + 2 * FAR_MS)  # so that there is always one that is due before
    known = {}
    draw = random.Random(1)
    for n in range(40 * count):
        clock.now = START + FAR_MS + n * apart
        name = n % count if in_turn else draw.randrange(count)
        if name in known:
            kept.discard(name, known[name])
        known[name] = clock.now + ttl
        kept.add(name, known[name])
    assert size(kept) < most * count


def test_many_names_of_one_bucket_leave_no_room_behind(clock):
    kept = Wheel()
    names = range(20_000)
    for name in names:
        kept.add(name, START + DAY + name % 8192)
    for left in (10_000, 3_000, 100, 10, 1, 0):
        for name in names[left:]:
            kept.discard(name, START + DAY + name % 8192)
        names = names[:left]
        assert size(kept) < 500 * left + 2000, left
        clock.now += 1
    assert kept.next is None
