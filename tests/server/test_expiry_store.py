"""Keys that expire, in the store beside a dict with deadlines, with a clock that the test turns.

Whatever is done, and undone, and whenever the time comes in between: what is due is gone at once,
what is not is there, the length is exact, nobody is forgotten by the wheel, and what the journal
tells comes to the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import orjson
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from machines import run_machine
from pickledbd import clock as clock_room
from pickledbd import records, table, wheel
from pickledbd import store as store_room
from pickledbd.batches import LARGE
from pickledbd.expiry import deadline_of, living, stamped, without
from pickledbd.handlers import READERS
from pickledbd.locks import Locks
from pickledbd.recovery import Recovered, _apply
from pickledbd.retries import Retries
from pickledbd.snapshot import texts as texts_of
from pickledbd.store import Store
from pickledbd.table import CHUNK, Table
from pickledbd.wheel import FAR_MS, Wheel

START = 1_700_000_000_000


class Clock:
    """In the place of the kernel's. It may be told to go forth when it is read for the nth time."""

    def __init__(self):
        self.now = START
        self.reads = 0
        self.jumps = {}

    def clock_gettime_ns(self, _counter):
        self.reads += 1
        self.now += self.jumps.pop(self.reads, 0)
        return self.now * 1_000_000

    def jump_at_read(self, number, by):
        self.jumps = {self.reads + number: by}


@pytest.fixture
def clock(monkeypatch):
    """What the daemon's clock counts by, in milliseconds."""
    made = Clock()
    monkeypatch.setattr(clock_room, "time", made)
    monkeypatch.setattr(clock_room, "_ahead_ns", 0)
    return made


@pytest.fixture
def _small(monkeypatch):
    """So that few keys are many: in a table, and in a bucket of the wheel."""
    monkeypatch.setattr(table, "CHUNK", 3)
    monkeypatch.setattr(store_room, "LOOKED_AT_ONCE", 2)
    monkeypatch.setattr(wheel, "LARGE", 2)
    monkeypatch.setattr(wheel, "SHARDS", 4)


KEYS = [f"k{n}" for n in range(8)]
keys = st.sampled_from(KEYS)
texts = st.sampled_from([b"1", b"2", b'"a"', b"[]"])
# Few, so that keys share their deadlines; around the widths of the wheel's buckets too
TTLS = [1, 2, 5, FAR_MS - 1, 2 * FAR_MS - 1, 2 * FAR_MS, 2 * FAR_MS + 3, 5 * FAR_MS]
ttls = st.sampled_from(TTLS)
items = st.dictionaries(keys, texts, max_size=6)


@dataclass(frozen=True)
class Item:
    text: bytes
    deadline: int | None = None


def all_expected(kept: Wheel):
    """Each name of a wheel with the times that it knows of it."""
    found = set()
    for level in (kept._near.buckets, kept._far.buckets, kept._due, kept._moving):
        for bucket in level.values():
            found |= {pair for shard in bucket._shards for pair in shard.items()}
    return found


class Expiring(RuleBasedStateMachine):
    """The store, and beside it a dict of Items in order, in which those that are due stay."""

    clock: Clock

    def __init__(self):
        super().__init__()
        self.store = Store()
        self.content = {}
        self.kept = {}  # as it was at the last commit
        self.marks = []  # where a command began, and what was there then
        self.folding = None
        self.replayed = Recovered(Table(), Retries(), Locks())

    # What is expected

    def is_due(self, item):
        return item.deadline is not None and item.deadline <= self.clock.now

    def alive(self):
        return {key: item for key, item in self.content.items() if not self.is_due(item)}

    def put(self, key, text, deadline=None):
        if key in self.content and self.is_due(self.content[key]):
            del self.content[key]  # it is a new one, which comes last
        self.content[key] = Item(text, deadline)

    def deadline(self, ttl):
        return None if ttl is None else self.clock.now + ttl

    def deadlines(self, keys, ttl):
        return {} if ttl is None else dict.fromkeys(keys, self.clock.now + ttl)

    # What is done

    @rule(by=st.one_of(st.integers(0, 6), st.sampled_from([FAR_MS, 3 * FAR_MS])))
    def time_goes_by(self, by):
        self.clock.now += by

    @rule(key=keys, text=texts, ttl=st.none() | ttls)
    def set(self, key, text, ttl):
        self.store.set(key, text, self.deadline(ttl))
        self.put(key, text, self.deadline(ttl))

    @rule(items=items, ttl=st.none() | ttls)
    def set_many(self, items, ttl):
        self.store.set_many(items, self.deadlines(items, ttl))
        for key, text in items.items():
            self.put(key, text, self.deadline(ttl))

    @rule(key=keys, ttl=st.none() | ttls)
    def expire_or_persist(self, key, ttl):
        if key in self.store:
            self.store.expire(key, self.deadline(ttl))
            self.content[key] = Item(self.content[key].text, self.deadline(ttl))

    @rule(key=keys)
    def remove(self, key):
        removed = self.alive().get(key)
        assert self.store.remove(key) == (removed and removed.text)
        self.content.pop(key, None)

    @precondition(lambda self: self.folding is None)
    @rule()
    def clear(self):
        self.store.clear()
        self.content.clear()

    @precondition(lambda self: self.folding is None)
    @rule()
    def look_at_the_last(self):
        assert self.store.last_key() == next(reversed(self.alive()), None)

    @precondition(lambda self: self.folding is None)
    @rule()
    def look_for_the_last(self):
        if self.store.find_last():
            self.look_at_the_last()

    @rule()
    def begin_a_command(self):
        self.marks.append((self.store.logged(), self.content.copy()))

    @precondition(lambda self: self.marks)
    @rule()
    def fail_a_command(self):
        start, self.content = self.marks.pop()
        self.store.roll_back(start)
        assert self.store.logged() == start

    @rule()
    def fail_the_turn(self):
        self.store.roll_back()
        assert self.store.logged() == 0
        self.content = self.kept.copy()
        self.marks.clear()

    @rule()
    def commit(self):
        if self.store.logged():
            told = self.store.effect(0)
            self.journal(told.sets, told.removed, clear=told.clear, expires=told.expires)
        self.store.commit()
        self.kept = self.content.copy()
        self.marks.clear()

    @precondition(lambda self: self.folding is None and not self.store.logged())
    @rule(most=st.integers(1, 5))
    def reap(self, most):
        behind = self.store.behind
        removed = self.store.reap(most)
        assert behind or not removed
        assert len(removed) <= most
        assert set(removed) <= {k for k, item in self.content.items() if self.is_due(item)}
        if removed:
            self.journal({}, removed)

    @precondition(lambda self: self.folding is None and not self.store.logged())
    @rule(items=items, ttl=st.none() | ttls)
    def adopt(self, items, ttl):
        deadline = self.deadline(ttl)
        batch = Table()
        stored = [t if deadline is None else stamped(t, deadline) for t in items.values()]
        batch.extend(list(items), stored)
        expires = {} if deadline is None else dict.fromkeys(items, deadline)
        self.adopted(batch, items, expires, deadline)
        self.folding = self.store.fold()

    def adopted(self, batch, items, expires, deadline):
        while self.store.behind:  # as the engine does, so that what is due and set again is new
            self.journal({}, self.store.reap(10))
        self.journal(items, expires=expires)
        self.store.adopt(batch, clear=False)
        for key, text in items.items():
            self.put(key, text, deadline)
        self.kept = self.content.copy()
        self.marks.clear()

    @precondition(lambda self: self.folding is not None and not self.store.logged())
    @rule()
    def fold(self):
        if next(self.folding, self) is self:
            self.folding = None

    def journal(self, *args, **kwargs):
        _apply(orjson.loads(records.effects(*args, **kwargs)), self.replayed, {})

    # What has to hold at every moment

    @invariant()
    def each_key_is_as_expected(self):
        alive = self.alive()
        for key in KEYS:
            item = alive.get(key)
            assert self.store.get(key) == (item and item.text)
            assert (key in self.store) == (item is not None)
            if item is not None:
                assert self.store.deadline(key) == item.deadline
        assert self.store.get_many(KEYS) == [
            alive[key].text if key in alive else None for key in KEYS
        ]

    @invariant()
    def as_a_whole_it_is_as_expected(self):
        if self.folding is None:
            alive = self.alive()
            assert len(self.store) == len(alive)
            assert self.whole(self.store) == [(k, i.text, i.deadline) for k, i in alive.items()]

    @invariant()
    def the_wheel_has_every_key_that_expires(self):
        known = all_expected(self.store._wheel)
        adopted = self.store._adopted if self.folding is not None else ()
        stored = [pair for chunk in self.store._table.chunks() for pair in chunk.items()]
        # but for those that are about to be replaced
        expiring = {(k, deadline_of(v)) for k, v in stored if not v[0] and k not in adopted}
        assert expiring <= known
        if expiring:
            assert self.store.next_due <= min(deadline for _, deadline in expiring)

    @invariant()
    def a_start_from_the_journal_finds_the_same(self):
        if self.content == self.kept and not self.store.logged():
            again = Store(self.replayed.table, expiring=self.replayed.expiring)
            alive = self.alive()
            assert self.whole(again) == [(k, i.text, i.deadline) for k, i in alive.items()]
            assert len(again) == len(alive)

    def whole(self, store):
        """As `dump` and a save see it."""
        view = store.view()
        content = living(view, self.clock.now) if store.expires else without(view)
        found = []
        for names, values, deadlines in content:
            found += [(k, v, deadlines.get(k)) for k, v in zip(names, values, strict=True)]
        return found

    def teardown(self):
        """In the end, all that expires is reaped, and nothing is left of it."""
        self.store.commit()
        self.kept = self.content.copy()
        for _ in self.folding or ():
            pass
        self.folding = None
        self.clock.now += 10 * FAR_MS
        while self.store.behind:
            self.store.reap(3)
        self.as_a_whole_it_is_as_expected()
        stored = [v for chunk in self.store._table.chunks() for v in chunk.values()]
        assert all(value[0] for value in stored)
        assert len(stored) == len(self.store)
        assert all_expected(self.store._wheel) == set()
        assert not self.store.expires
        assert self.store.next_due is None


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("examples", [60, pytest.param(3000, marks=pytest.mark.long)])
def test_whatever_is_done_and_undone_a_key_is_there_until_its_time_and_no_longer(clock, examples):
    run_machine(Expiring, examples, clock=clock)


# What the machine finds rarely, or cannot find


def test_a_change_undone_after_the_keys_time_has_come_leaves_it_to_be_reaped(clock):
    store = Store()
    store.set("k", b"1", clock.now + 5)
    store.set("other", b"2")
    store.commit()
    store.set("k", b"2")
    clock.now += 5
    assert len(store) == 2
    store.roll_back()  # as when the journal could not be written
    assert store.get("k") is None
    assert len(store) == 1
    assert store.expires, "or dump and save would take its stored form for JSON"
    assert store.behind
    assert store.reap(10) == ["k"]
    assert len(store) == 1


def batch_of(items, deadline=None):
    made = Table()
    texts = [text if deadline is None else stamped(text, deadline) for text in items.values()]
    made.extend(list(items), texts)
    return made


@pytest.mark.parametrize("deadline", [None, START + 200])
def test_a_key_removed_while_a_batch_with_it_goes_in_is_forgotten_by_the_wheel(clock, deadline):
    store = Store()
    store.set("k", b"1", clock.now + 100)
    store.commit()
    store.adopt(batch_of({"k": b"2", "l": b"3"}, deadline), clear=False)
    assert store.remove("k") == b"2"
    store.commit()
    for _ in store.fold():
        pass
    clock.now += 100
    assert len(store) == 1
    assert store.reap(10) == []
    clock.now += 100
    assert len(store) == (deadline is None)


@pytest.mark.parametrize("apart", [5 * FAR_MS, 2 * FAR_MS, FAR_MS, 10])
def test_a_key_that_is_changed_with_its_deadline_kept_is_in_the_wheel_once(clock, apart):
    store = Store()
    deadline = clock.now + 5 * FAR_MS
    store.set("k", b"1", deadline)
    store.set("stays", b"1")
    clock.now = deadline - apart
    store.set("k", b"2", deadline)  # as incr does it
    store.commit()
    assert len([pair for pair in all_expected(store._wheel) if pair[0] == "k"]) == 1
    store.remove("k")
    store.commit()
    clock.now = deadline
    assert len(store) == 1


def test_a_due_key_in_a_large_batch_is_a_new_one_also_after_a_kill(clock, wire):
    wired = wire()
    wired.ask("set_many", items={f"k{n}": 0 for n in range(500)}, ttl_ms=10)
    wired.ask("set", key="stays", value=1)
    clock.now += 11
    large = {f"k{n}": 1 for n in range(LARGE + 1)}
    wired.receive("set_many", {"items": large})
    wired.turn()
    assert wired.ask("all") == {"keys": ["stays", *large]}
    assert wire().ask("all") == {"keys": ["stays", *large]}


def test_a_due_key_in_a_large_batch_is_a_new_one_without_a_journal_too(clock, wire):
    wired = wire("--durability", "save")
    due = {f"k{n}": 0 for n in range(500)}  # more than are reaped by the way
    wired.ask("set_many", items=due, ttl_ms=10)
    wired.ask("set", key="stays", value=1)
    clock.now += 11
    large = {f"n{n}": 1 for n in range(LARGE)} | dict.fromkeys(due, 1)
    wired.receive("set_many", {"items": large})
    wired.turn()
    assert wired.ask("all") == {"keys": ["stays", *large]}


# Each command with a key whose time comes while it is carried out: as if it came before, or after
STEPS = [
    ("get", {"key": "k"}, [{"value": 1}, {}]),
    ("exists", {"key": "k"}, [{"exists": True}, {"exists": False}]),
    ("set", {"key": "k", "value": 2}, [{}]),
    ("set", {"key": "k", "value": 2, "ttl_ms": 1000}, [{}]),
    ("set_many", {"items": {"k": 2, "l": 2}, "ttl_ms": 1000}, [{}]),
    ("setdefault", {"key": "k", "value": 2}, [{"value": 1}, {"value": 2}]),
    ("remove", {"key": "k"}, [{"removed": True}, {"removed": False}]),
    ("pop", {"key": "k"}, [{"value": 1}, {}]),
    ("popitem", {}, [{"key": "k", "value": 1}, {"key": "first", "value": 0}]),
    ("incr", {"key": "k", "by": 5}, [{"value": 6}, {"value": 5}]),
    ("get_versioned", {"key": "k"}, [{"value": 1, "version": "..."}, {"version": 0}]),
    ("cas", {"key": "k", "version": 0, "value": 2}, [{"swapped": True}, {"swapped": False}]),
    ("expire", {"key": "k", "ttl_ms": 1000}, [{"expires": True}, {"expires": False}]),
    ("persist", {"key": "k"}, [{"persisted": True}, {"persisted": False}]),
    ("get_many", {"keys": ["k"]}, [{"values": [1], "missing": []}, {"values": [], "missing": [0]}]),
    ("remove_many", {"keys": ["k"]}, [{"removed": 1}, {"removed": 0}]),
    ("len", {}, [{"len": 2}, {"len": 1}]),
    ("all", {}, [{"keys": ["first", "k"]}, {"keys": ["first"]}]),
    ("dump", {}, [{"items": {"first": 0, "k": 1}}, {"items": {"first": 0}}]),
    ("batch", {"steps": [{"op": "persist", "args": {"key": "k"}}]}, None),
    ("purge", {}, [{}]),
]


@pytest.mark.parametrize(("op", "args", "results"), STEPS, ids=[f"{s[0]}-{s[1]}" for s in STEPS])
def test_a_key_may_expire_at_any_moment_of_a_command(clock, wired, op, args, results):
    seen = 0
    for number in range(1, 200):
        wired.ask("purge")
        wired.ask("set", key="first", value=0)
        wired.ask("set", key="k", value=1, ttl_ms=100)
        clock.now += 100  # it is gone by the next
        if op == "cas" and number % 2:
            args = {**args, "version": wired.ask("get_versioned", key="k")["version"]}
        clock.jump_at_read(number, 1)
        (reply,) = wired.send(op, args)
        jumped, clock.jumps = not clock.jumps, {}
        assert "error" not in reply, (number, reply)
        result = {k: v for k, v in reply["result"].items() if k not in ("slot", "count")}
        if result.get("version"):
            result["version"] = "..."
        assert results is None or result in results, number
        clock.now += 1
        # And what is left is sound
        left = wired.ask("dump")["items"]
        assert wired.ask("len") == {"len": len(left)}
        assert wired.ask("all") == {"keys": list(left)}
        told = wired.ask("ttl", key="k")
        assert ("ttl_ms" in told) == ("k" in left)
        if op in ("get", "exists", "ttl"):
            assert "k" not in left
        if not jumped:
            break
        seen += 1
    assert seen > 0, "the clock is read by each of them, or at the end of its turn"
    assert seen < 198


def test_no_time_to_live_is_told_that_is_over(clock, wired):
    for number in range(1, 30):
        wired.ask("set", key="k", value=1, ttl_ms=100)
        clock.now += 90
        clock.jump_at_read(number, 20)
        told = wired.ask("ttl", key="k")
        clock.jumps = {}
        assert told == {} or 0 < told["ttl_ms"] <= 10
        clock.now += 100


class Looks(bytes):
    """A stored value that is counted when somebody looks whether it is due."""

    count = 0

    def __getitem__(self, at):
        Looks.count += at == 0
        return super().__getitem__(at)


def test_what_is_due_at_the_end_is_looked_at_once_to_find_the_last_key(clock):
    many = 10 * store_room.LOOKED_AT_ONCE
    due = dict.fromkeys((f"k{n}" for n in range(many)), Looks(stamped(b"1", clock.now + 1)))
    table = Table()
    table.extend(["first", "second"], [b"1", b"2"])
    table.extend(list(due), list(due.values()))
    store = Store(table, expiring=due)
    assert store.find_last()
    clock.now += 1
    Looks.count = 0
    steps = 1
    while not store.find_last():
        assert Looks.count <= steps * (store_room.LOOKED_AT_ONCE + CHUNK)
        steps += 1
    assert store.last_key() == "second"
    assert steps > 5
    for new in ("a", "b", "c"):  # what is done since does not have it begin anew
        store.set(new, b"1")
        assert store.find_last()
        assert store.last_key() == new
        store.remove(new)
        assert store.find_last()
        assert store.last_key() == "second"
    assert Looks.count < many + 20 * CHUNK
    assert len(store) == 2


def test_popitem_waits_for_no_key_that_is_due_to_be_removed(clock, wired):
    """Nor does what comes behind it by the same connection."""
    wired.ask("set", key="stays", value=1)
    for start in range(0, 20_000, 1000):
        keys = {f"k{n}": 1 for n in range(start, start + 1000)}
        wired.ask("set_many", items=keys, ttl_ms=60_000)
    clock.now += 60_001
    asked = [wired.receive("popitem"), wired.receive("incr", {"key": "n"})]
    replies = {}
    for _ in range(20_000 // store_room.LOOKED_AT_ONCE + 2):
        for _, reply in wired.engine.finish_turn():
            replies |= {json.loads(reply)["id"]: json.loads(reply)["result"]}
        wired.engine.tick(0.0)  # no task runs meanwhile, so nothing is reaped
    assert replies == dict(zip(asked, [{"key": "stays", "value": 1}, {"value": 1}], strict=True))
    assert len(wired.engine._store._table) > 20_000


@pytest.mark.usefixtures("_small")
def test_what_reads_all_goes_on_in_steps_where_all_keys_are_due(clock):
    """Or it would hold everybody up, who wait just then, since so many expire at once."""
    many = {f"k{n}": b"1" for n in range(300)}
    store = Store()
    store.set_many(many, dict.fromkeys(many, clock.now + 1))
    store.commit()
    clock.now += 1
    ways = {
        "save": lambda content: [text for text, _ in texts_of(content)],
        "all": lambda content: list(READERS["all"](content, {}, 0)),
        "dump": lambda content: list(READERS["dump"](content, {}, 0)),
        "some": lambda content: list(READERS["all"](content, {"prefix": "x"}, 0)),
    }
    expected = {"save": b"{}\n", "all": b'{"keys":[]}', "dump": b'{"items":{}}'}
    for name, steps_of in ways.items():
        steps = steps_of(living(store.view(), clock.now))
        assert len(steps) >= 300 / 3, name  # one for each chunk
        assert b"".join(steps) == expected.get(name, b'{"keys":[]}')
