"""The feed beside a plain history: who watches is told each change once, or to resync.

First the feed by itself, in any order of changes, questions, answers and losses; then the store
that feeds it, by what a watcher makes of what it is told.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pickledbd import watchers, watches
from pickledbd.clock import now_ms
from pickledbd.store import Store
from pickledbd.table import Table
from pickledbd.watches import Feed

# Small, so that all of them are met
SMALL = {
    "CHANGES_MAX": 6,
    "BYTES_MAX": 60,
    "MANY": 4,
    "TOLD_AT_ONCE": 3,
    "TOLD_BYTES": 24,
    "LOOKED_AT_ONCE": 4,
}


SMALL_BY_MODULE = {watches: SMALL, watchers: {"LEFT_MAX": 3, "HEAD": 2}}

made = {
    module: {name: getattr(module, name) for name in names}
    for module, names in SMALL_BY_MODULE.items()
}


@pytest.fixture(autouse=True, scope="module")
def _small():
    with pytest.MonkeyPatch.context() as patch:
        for module, names in SMALL_BY_MODULE.items():
            for name, value in names.items():
                patch.setattr(module, name, value)
        yield


@pytest.fixture
def _large(monkeypatch):
    """All as it is made."""
    for module, names in made.items():
        for name, value in names.items():
            monkeypatch.setattr(module, name, value)


def size_of(key, value):
    return len(key) + (0 if value is None else len(value))


keys = st.sampled_from(["a", "a:1", "a:2", "b", "b:1", "é:1", "c" * 20])
values = st.sampled_from([None, b"1", b'"22"', b'"%b"' % (b"x" * 20), b'"%b"' % (b"y" * 70)])
names = st.sampled_from(["w1", "w2", "w3", "w4"])
PREFIXES = {"w1": "", "w2": "a", "w3": "a:", "w4": "é:"}


class Watching(RuleBasedStateMachine):
    """Watchers w1 to w4, each with one connection at a time, beside the whole history."""

    def __init__(self):
        super().__init__()
        self.feed = Feed()
        self.history = []  # all changes: sequence, key and value; None for what is not told
        self.lost = self.feed.sequence  # up to here the feed need not know them any more
        self.since = dict.fromkeys(PREFIXES)
        self.parked = {}  # connection and request: name, since
        self.connections = dict.fromkeys(PREFIXES, 0)
        self.left = dict.fromkeys(PREFIXES, 0)
        self.requests = 0

    # What happens

    @rule(changes=st.lists(st.tuples(keys, values), min_size=1, max_size=9), ends=st.booleans())
    def change(self, changes, ends):
        """`ends`: whether the turn does."""
        for key, value in changes:
            if not self.feed.active:  # as the store does
                self.skip()
                continue
            self.feed.note(key, value)
            self.history.append((self.feed.sequence, key, value))
            held = [one for one in self.history if one[0] > self.lost]
            while (
                len(held) > watches.CHANGES_MAX
                or sum(size_of(*one[1:]) for one in held) > watches.BYTES_MAX
            ):
                self.lost = held.pop(0)[0]

        if ends:
            self.answer()

    @rule(key=keys, count=st.integers(SMALL["CHANGES_MAX"], 2 * SMALL["CHANGES_MAX"]))
    def flood(self, key, count):
        self.change([(key, None)] * count, ends=True)

    @rule()
    def skip(self):
        self.feed.skip()
        self.lost = self.feed.sequence
        self.history.append((self.feed.sequence, None, None))

    @rule(name=names)
    def ask(self, name):
        """Also while another request of it is parked, of a connection that is gone."""
        self.requests += 1
        peer = b"%b.%d" % (name.encode(), self.connections[name])
        since = self.since[name]
        answer = self.feed.ask(
            peer,
            self.requests,
            prefix=PREFIXES[name],
            since=since,
            watcher=f"{name}.{self.left[name]}",
        )
        assert self.feed.active
        if since is None:
            assert json.loads(answer) == {"changes": [], "seq": self.feed.sequence}
            self.since[name] = self.feed.sequence
            self.ask(name)
        elif answer is None:
            assert self.of_interest(name, since) == []
            assert since >= self.lost
            self.parked[peer, self.requests] = name, since
        else:
            self.take(name, since, answer, may_resync=since < self.lost)

    @rule()
    def answer_one(self):
        """What the engine does at the end of each turn, if there is time for one only."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(watches, "ANSWER_SECONDS", -1)
            self.answer_some(at_most=1)

    def answer_some(self, at_most=2**63):
        count = 0
        for peer, request, answer in self.feed.answers():
            name, since = self.parked.pop((peer, request))
            first, *_ = self.of_interest(name, since)[0]
            self.take(name, since, answer, may_resync=first <= self.lost)
            count += 1
        assert count <= at_most

    @rule()
    def answer(self):
        """What it does in one turn, or in some more if there is no time for all."""
        while self.feed.restless:
            self.answer_some()
        for name, since in self.parked.values():
            assert self.of_interest(name, since) == [], "it was not woken"
        assert not self.feed.restless

    @rule(name=names)
    def lose_connection(self, name):
        peer = b"%b.%d" % (name.encode(), self.connections[name])
        self.feed.gone(peer)
        self.parked = {parked: its for parked, its in self.parked.items() if parked[0] != peer}
        self.connections[name] += 1

    @rule(name=names)
    def connect_anew(self, name):
        """And nobody has noticed yet that the connection before is gone."""
        self.connections[name] += 1

    @rule(name=names)
    def leave(self, name):
        left = [parked for parked, (its, _) in self.parked.items() if its == name]
        watcher = f"{name}.{self.left[name]}"
        assert self.feed.leave(watcher) == left
        late = self.feed.ask(b"late", 1, prefix="", since=None, watcher=watcher)
        assert late == b"{}", "what it asked before, and came later"
        self.left[name] += 1  # nobody uses a name again
        for parked in left:
            del self.parked[parked]

    @precondition(lambda self: self.feed.active)
    @rule(is_over=st.booleans())
    def look_after_it(self, is_over):
        """Whether the time for which it is kept is over."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(watches, "IDLE_SECONDS", -1e9 if is_over else 1e9)
            self.feed.upkeep()
        if is_over and not self.parked:
            self.lost = self.feed.sequence
            self.history.append((self.feed.sequence, None, None))
        assert self.feed.active is not (is_over and not self.parked)

    # What is to come of it

    def of_interest(self, name, since, upto=2**63):
        """What happened since that which `name` is to be told of."""
        return [
            one
            for one in self.history
            if since < one[0] <= upto and (one[1] is None or one[1].startswith(PREFIXES[name]))
        ]

    def take(self, name, since, answer, *, may_resync):
        answer = json.loads(answer)
        seq = answer.pop("seq")
        if "resync" in answer:
            assert answer == {"resync": True}
            assert may_resync, "nothing was lost"
            assert seq == self.feed.sequence
        else:
            told = self.of_interest(name, since, seq)
            assert answer == {
                "changes": [
                    [n, key] if value is None else [n, key, json.loads(value)]
                    for n, key, value in told
                ]
            }
            assert since < seq <= self.feed.sequence, "it would ask the same again"
            assert len(told) <= watches.TOLD_AT_ONCE
            assert sum(size_of(*one[1:]) for one in told[:-1]) < watches.TOLD_BYTES
        self.since[name] = max(self.since[name], seq)

    @invariant()
    def holds_no_more_than_it_may(self):
        feed = self.feed
        pairs = list(zip(feed._keys, feed._values, strict=True))
        held = [change for change in pairs if change != (None, None)]
        assert len(held) <= watches.CHANGES_MAX
        assert len(pairs) <= 2 * watches.CHANGES_MAX + 1
        assert feed._bytes == sum(size_of(*change) for change in held) <= watches.BYTES_MAX
        assert feed.active or not held
        assert len(feed) == len(self.parked)
        assert len(feed._watchers._left) <= watchers.LEFT_MAX

    def teardown(self):
        for peer, _ in list(self.parked):
            self.feed.gone(peer)
        self.parked.clear()
        assert list(self.feed.answers()) == []
        assert len(self.feed) == 0
        left = vars(self.feed._watchers)
        assert not any(left[name] for name in left if name != "_left"), "nothing is left of them"


def test_who_watches_is_told_each_change_once_and_in_order_or_to_resync():
    run_state_machine_as_test(Watching, settings=settings(max_examples=80, stateful_step_count=40))


def asked(feed, since, prefix="", number=1):
    answer = feed.ask(b"p", number, prefix=prefix, since=since, watcher="w")
    return None if answer is None else json.loads(answer)


def test_who_is_parked_beside_any_number_of_changes_that_are_not_its_own_has_missed_nothing():
    feed = Feed()
    since = asked(feed, None)["seq"]
    assert asked(feed, since, "mine:") is None
    for n in range(10 * watches.CHANGES_MAX):
        feed.note(f"others:{n}", b"1")
        if n % 3 == 0:
            assert not feed.restless  # it would be woken for nothing
    feed.note("mine:", b"2")
    ((peer, number, answer),) = feed.answers()
    assert (peer, number) == (b"p", 1)
    last = feed.sequence
    assert json.loads(answer) == {"changes": [[last, "mine:", 2]], "seq": last}


def all_answers(feed):
    found = []
    while feed.restless:
        found += feed.answers()
    return found


class Looked(str):
    """A key, and how often it is compared with what anybody waits for."""

    __slots__ = ("times",)

    def __new__(cls, key):
        made = super().__new__(cls, key)
        made.times = 0
        return made

    def __getitem__(self, index):
        self.times += 1
        return super().__getitem__(index)

    def startswith(self, prefix):
        self.times += 1
        return super().startswith(prefix)


@pytest.mark.usefixtures("_large")
def test_a_change_takes_few_looks_however_many_prefixes_of_whatever_lengths_are_watched():
    feed = Feed()
    since = asked(feed, None)["seq"]
    for n in range(5000):
        assert asked(feed, since, "p" * n + "q", number=n) is None
    for key, concerns in (("k" * 20, 0), ("k" * 5000, 0), ("p" * 50 + "q", 1)):
        looked = Looked(key)
        feed.note(looked, b"1")
        assert looked.times <= 100
        assert len(all_answers(feed)) == concerns


@pytest.mark.usefixtures("_large")
def test_those_who_wait_for_the_same_are_woken_once_and_answered_the_same():
    feed = Feed()
    since = asked(feed, None)["seq"]
    for n in range(2000):
        assert asked(feed, since, "k", number=n) is None
    for n in range(1000):
        looked = Looked("k1")
        feed.note(looked, b"%d" % n)
        assert looked.times <= (2 if n == 0 else 0)
    assert len({answer for _, _, answer in all_answers(feed)}) == 1
    assert len(feed) == 0


@pytest.mark.usefixtures("_large")
def test_very_many_who_are_woken_are_answered_in_turns_by_an_engine_that_goes_on(
    wired, monkeypatch
):
    monkeypatch.setattr(watches, "ANSWER_SECONDS", -1)
    since = wired.ask("watch")["seq"]
    for n in range(50):
        wired.receive("watch", {"since": since, "prefix": "k" * (n % 5), "watcher": "w"})
    assert wired.turn() == []
    wired.receive("set", {"key": "kkkkk", "value": 1})
    assert len(wired.engine.finish_turn()) == 2  # that of the set, and one
    for left in range(48, -1, -1):
        now = time.monotonic()
        assert (wired.engine.tick(now) == now) is (left > 0), "it is to be called again at once"
        assert len(wired.engine.take_replies()) == 1
    assert wired.turn() == []


def test_who_asks_and_asks_and_never_has_to_wait_still_watches(monkeypatch):
    """Behind writers at full speed there is always something to tell."""
    now = 1000.0
    monkeypatch.setattr(watches, "time", SimpleNamespace(monotonic=lambda: now))
    feed = Feed()
    feed.upkeep()
    since = asked(feed, None)["seq"]
    for _ in range(100):
        now += watches.IDLE_SECONDS / 10
        feed.note("k", b"1")
        answer = asked(feed, since)
        assert answer == {"changes": [[since + 1, "k", 1]], "seq": since + 1}
        since = answer["seq"]
        feed.upkeep()
    # and when it is gone, it may come back for a while, and then nothing is held any more
    now += watches.IDLE_SECONDS * 0.9
    feed.upkeep()
    feed.note("k", b"2")
    assert asked(feed, since) == {"changes": [[since + 1, "k", 2]], "seq": since + 1}
    now += watches.IDLE_SECONDS * 1.1
    feed.upkeep()
    assert not feed.active
    assert feed._keys == feed._values == []
    assert asked(feed, since + 1)["resync"]


def test_a_sequence_of_a_later_or_another_daemon_is_to_resync():
    feed = Feed()
    now = asked(feed, None)["seq"]
    for since in (0, now - 1, now + 1, 2**53):
        assert asked(feed, since) == {"resync": True, "seq": now}
    assert len(feed) == 0


# The store, by a mirror of it that a watcher keeps

store_keys = st.sampled_from(["a", "a1", "a2", "b", "b1"])
texts = st.sampled_from([b"1", b"2", b'"x"'])
contents = st.dictionaries(store_keys, texts, min_size=1, max_size=3)
OVERDUE, LATER = -10_000, 10_000_000
lives = st.sampled_from([None, None, None, OVERDUE, LATER])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), store_keys, texts, lives),
        st.tuples(st.just("set_many"), contents, lives),
        st.tuples(st.just("remove"), store_keys),
        st.tuples(st.just("remove"), store_keys),
        st.tuples(st.just("expire"), store_keys, lives),
        st.tuples(st.sampled_from(["clear", "commit", "roll_back", "reap", "fold"])),
        st.tuples(st.just("adopt"), contents, st.just(False)),
        st.tuples(st.just("adopt"), contents, st.booleans()),
    ),
    min_size=5,
    max_size=25,
)


class Mirror:
    """A watcher: what it has been told, and the content that it has from that alone."""

    def __init__(self, feed):
        self.feed = feed
        self.since = asked(feed, None)["seq"]
        self.content = {}
        self.told = []  # since the last resync
        self.resyncs = 0
        self.expired = set()  # not in the last snapshot, though not told to be gone yet

    def look(self, snapshot, overdue):
        while (answer := asked(self.feed, self.since, number=1)) is not None:
            self.since = answer["seq"]
            if "resync" in answer:
                self.resyncs += 1
                self.told.clear()
                self.content = snapshot()
                self.expired = overdue()
            for _, key, *value in answer.get("changes", ()):
                self.told.append((key, *value))
                if value:
                    self.content[key] = value[0]
                elif key in self.content:
                    del self.content[key]
                else:
                    assert key in self.expired, "it was removed twice"
                self.expired.discard(key)
        self.feed.gone(b"p")


class Fed:
    """A store, what has to be told of its changes, and a mirror."""

    def __init__(self):
        self.store = Store()
        self.mirror = Mirror(self.store.feed)
        self.told, self.to_tell = [], []  # of what is committed; of what is not
        self.resyncs = 0
        self.folds = None

    def there(self, key):
        """Also if it is overdue."""
        return self.store._stored(key) is not None

    def step(self, name, *args):
        uncommitted = self.store.logged()
        if name in ("adopt", "reap") and uncommitted:
            self.commit()
        if name in ("adopt", "reap", "clear") and self.store.folding:
            self.fold()
        getattr(self, name)(*args)
        if name in ("commit", "adopt", "reap"):
            self.compare()

    @staticmethod
    def deadline(life):
        return None if life is None else now_ms() + life

    def will_set(self, key, text):
        if self.there(key) and self.store.get(key) is None:
            self.to_tell.append((key,))  # the one before has expired
        self.to_tell.append((key, json.loads(text)))

    def set(self, key, text, life):
        self.will_set(key, text)
        self.store.set(key, text, self.deadline(life))

    def set_many(self, items, life):
        if len(items) > watches.MANY:
            return
        for key, text in items.items():
            self.will_set(key, text)
        deadline = self.deadline(life)
        self.store.set_many(items, {} if deadline is None else dict.fromkeys(items, deadline))

    def remove(self, key):
        if self.there(key):
            self.to_tell.append((key,))
        self.store.remove(key)

    def expire(self, key, life):
        if self.store.get(key) is not None:
            self.store.expire(key, self.deadline(life))

    def clear(self):
        there = [key for keys, _ in self.store.view() for key in keys]
        if len(there) > watches.MANY:
            self.to_tell = ["resync"]
        else:
            self.to_tell += [(key,) for key in there]
        self.store.clear()

    def commit(self):
        self.store.commit()
        self.told += self.to_tell
        if "resync" in self.told:
            self.told = []
            self.resyncs += 1
        self.to_tell = []

    def roll_back(self):
        self.store.roll_back()
        self.to_tell = []

    def reap(self):
        overdue = self.overdue()
        gone = self.store.reap(100)
        assert set(gone) == overdue
        self.told += [(key,) for key in gone]

    def adopt(self, items, clear):
        batch = Table()
        batch.extend(list(items), list(items.values()))
        there = [key for keys, _ in self.store.view() for key in keys] if clear else []
        self.store.adopt(batch, clear=clear)
        if len(there) + len(items) > watches.MANY:
            self.told = []
            self.resyncs += 1
        else:
            self.told += [(key,) for key in there]
            self.told += [(key, json.loads(text)) for key, text in items.items()]
        if not clear:
            self.folds = self.store.fold()

    def fold(self):
        if self.folds is not None:
            if self.store.logged():
                self.commit()
            for _ in self.folds:
                pass
            self.folds = None

    def overdue(self):
        """The keys that have expired, and are still there."""
        self.fold()
        there = [key for keys, _ in self.store.view() for key in keys]
        return {key for key in there if self.store.get(key) is None}

    def snapshot(self):
        self.fold()
        return {
            key: json.loads(self.store.get(key))
            for keys, _ in self.store.view()
            for key in keys
            if self.store.get(key) is not None
        }

    def compare(self):
        assert not self.store.logged()
        mirror = self.mirror
        resyncs = mirror.resyncs
        mirror.look(self.snapshot, self.overdue)
        if mirror.resyncs == resyncs:
            assert self.resyncs == 0, "it was to resync"
            assert Counter(mirror.told) == Counter(self.told)
            for key in {key for key, *_ in self.told}:  # each key's in order
                assert [one for one in mirror.told if one[0] == key] == [
                    one for one in self.told if one[0] == key
                ]
        else:
            assert self.resyncs, "nothing was lost"
        self.told, mirror.told, self.resyncs = [], [], 0


@given(steps)
@example(  # one that expires just before the snapshot is told to be gone after it
    [
        ("set_many", dict.fromkeys(["a", "b", "a1", "a2"], b"1"), None),
        ("set", "b1", b"1", None),
        ("commit",),
        ("clear",),
        ("set", "a", b"1", OVERDUE),
    ]
)
@settings(max_examples=200)
def test_a_mirror_has_what_the_store_has(steps):
    """Whatever is set, removed, rolled back, expires, or goes in while others write."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watches, "CHANGES_MAX", 1000)
        patch.setattr(watches, "BYTES_MAX", 10_000)
        fed = Fed()
        for step in steps:
            fed.step(*step)
        for last in ("commit", "fold", "reap"):
            fed.step(last)
        assert fed.mirror.content == fed.snapshot()
        assert not fed.store.feed.restless


def test_nothing_is_held_while_nobody_watches_and_each_commit_has_a_sequence():
    store = Store()
    feed = store.feed
    before = feed.sequence
    store.set("a", b"1")
    store.set("b", b"1")
    store.commit()
    assert feed.sequence > before
    before = feed.sequence
    store.set("a", b"2", now_ms() - 1)
    store.commit()
    assert feed.sequence > before
    before = feed.sequence
    assert store.reap(10) == ["a"]
    assert feed.sequence > before
    assert (feed._keys, feed.active) == ([], False)
    before = feed.sequence
    store.set("c", b"1")
    store.roll_back()
    store.commit()
    assert feed.sequence == before


def test_a_feed_begins_after_all_that_daemons_before_it_told():
    first = Feed()
    asked(first, None)
    for _ in range(100):
        first.note("k", b"1")
    started = now_ms()
    while now_ms() <= started + 2:  # a daemon takes longer than that to start
        time.sleep(0.001)
    assert Feed().sequence > first.sequence
