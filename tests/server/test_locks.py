"""Locks in the daemon: who gets them, in which order, until when, and what fencing tokens do."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from pickledbd import batches, clock, locks
from pickledbd_protocol import COMMANDS
from wired import Wired


class FrozenTime:
    """What the daemon's clock looks at; it goes on only when a test has it do so."""

    CLOCK_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def __init__(self):
        self.ns = time.clock_gettime_ns(self.CLOCK_BOOTTIME)

    def clock_gettime_ns(self, _which):
        return self.ns

    def advance(self, ms):
        self.ns += ms * 1_000_000


@pytest.fixture
def frozen(monkeypatch):
    frozen = FrozenTime()
    monkeypatch.setattr(clock, "time", frozen)
    monkeypatch.setattr(clock, "_ahead_ns", clock._ahead_ns)
    return frozen


def lock_args(name, holder, ask, *, ttl=30_000, **more):
    return {"name": name, "holder": holder, "ask": ask, "ttl_ms": ttl, **more}


# The model


@dataclass(frozen=True)
class Asked:
    name: str
    holder: str
    ask: int
    ttl: int
    peer: bytes
    id: int
    place: tuple[int, int]  # when it first asked, and as which request
    until: int | None
    may_have_it: bool = False  # it was free when its time was over, if the disk takes that

    @property
    def key(self):
        return self.holder, self.ask


@dataclass(frozen=True)
class Granted:
    name: str
    key: tuple[str, int]
    token: int
    ttl: int
    deadline: int


NAMES = "ab"
HOLDERS = ("h0", "h1", "h2")
PEERS = (b"p0", b"p1", b"p2")
KEEPERS = (b"k0", b"k1")
ASKS = st.integers(0, 5)  # even ones are for "a", odd ones for "b"
TTLS = st.sampled_from([5, 20, 40_000])

BOOLEANS = st.booleans()

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("lock"),
            st.sampled_from(HOLDERS),
            ASKS,
            st.sampled_from(PEERS),
            TTLS,
            st.sampled_from([None, None, 0, 7, 35_000]),
            st.sampled_from([None, None, 0, 3, 30]),
        ),
        st.tuples(st.just("unlock"), st.sampled_from(HOLDERS), ASKS),
        st.tuples(
            st.just("keep"),
            st.sampled_from(HOLDERS),
            st.lists(ASKS, unique=True),
            st.sampled_from(KEEPERS),
        ),
        st.tuples(st.just("late"), st.integers(0, 3), st.sampled_from(PEERS)),
        st.tuples(st.just("set"), st.integers(0, 3)),
    ),
    min_size=1,
    max_size=5,
)


class LocksModel(RuleBasedStateMachine):
    """All that clients may ask, in turns of several, with a disk that fails and with restarts."""

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.frozen = FrozenTime()
        self.patch.setattr(clock, "time", self.frozen)
        self.patch.setattr(clock, "_ahead_ns", clock._ahead_ns)
        self.broken = False
        write = os.write

        def fallible(file, data):
            if self.broken:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(file, data)

        self.patch.setattr(os, "write", fallible)
        for name in ("fsync", "fdatasync"):  # no power is cut here
            self.patch.setattr(os, name, lambda _file: None)
        self.directory = tempfile.TemporaryDirectory()
        self.wired = Wired(Path(self.directory.name) / "my.db")
        self.refusing = False
        self.held: dict[str, Granted] = {}
        self.waiting: dict[tuple[str, int], Asked] = {}
        self.connections: dict[str, bytes] = {}
        self.tied: dict[tuple[str, int], bytes] = {}
        self.lives: dict[tuple[str, int], int] = {}
        self.released: list[tuple[str, int]] = []
        self.tokens = [0]
        self.value = None
        self.count = 0
        self.expected: dict[int, tuple[bytes, object]] = {}
        self.records = 0

    def teardown(self):
        self.wired.close()
        self.patch.undo()
        self.directory.cleanup()

    # What is asked

    @rule(
        operations=OPERATIONS, disk_is_full=st.integers(0, 7).map(lambda n: n == 7), mends=BOOLEANS
    )
    def turn(self, operations, disk_is_full, mends):
        self.broken |= disk_is_full
        before = (dict(self.held), dict(self.waiting), self.value)
        before += (dict(self.lives), list(self.released))
        self.records = 0
        asked = [getattr(self, op)(*args) for op, *args in operations]
        fails = self.grant(fails_if_needed=True)
        if fails:
            self.undo(asked, before)
        self.come_due()
        self.check()
        if self.broken and mends:
            self.the_disk_is_mended()

    def tie(self, key, peer):
        """Have it end with the connection that asked for it, as long as its holder has none."""
        self.tied.pop(key, None)
        if key[0] not in self.connections:
            self.tied[key] = peer

    def ask_of(self, holder, number):
        """The number drawn, as long as it lives; no holder uses one again after that."""
        return number + 10 * self.lives.get((holder, number), 0)

    def over(self, key):
        """An ask was released. What else may end it, it may be asked again."""
        holder, ask = key
        self.lives[holder, ask % 10] = ask // 10 + 1

    def lock(self, holder, number, peer, ttl, wait, age):  # noqa: PLR0917 - drawn as a tuple
        name = NAMES[number % 2]
        number = self.ask_of(holder, number)
        now = clock.now_ms()
        more = {} if wait is None else {"wait_ms": wait}
        envelope = {} if age is None else {"sent_at": now - age}
        args = lock_args(name, holder, number, ttl=ttl, **more)
        request = self.wired.receive("lock", args, peer=peer, **envelope)
        key = holder, number
        known = self.held.get(name)
        if known is not None and known.key == key:
            self.expected[request] = peer, {"token": known.token}
            self.tie(key, peer)
        elif self.refusing:
            self.expected[request] = peer, "writes_refused"
            self.waiting.pop(key, None)
        else:
            self.count += 1
            place = now - (age or 0), self.count
            if key in self.waiting:  # its connection before was given up
                before = self.waiting[key].place
                place = min(place[0], before[0]), before[1]
            until = None if wait is None else now - (age or 0) + wait
            self.waiting[key] = Asked(name, holder, number, ttl, peer, request, place, until)
        return "lock", request, peer, key

    def unlock(self, holder, number):
        name, number = NAMES[number % 2], self.ask_of(holder, number)
        key = holder, number
        request = self.wired.receive("unlock", {"name": name, "holder": holder, "ask": number})
        known = self.held.get(name)
        if self.refusing:
            self.expected[request] = b"p", "writes_refused"
        else:
            was_held = known is not None and known.key == key
            if was_held:
                del self.held[name]
                self.records += 1
            waited = self.waiting.pop(key, None)
            if waited is not None:
                self.records += 1
                self.expected[waited.id] = waited.peer, {}
            self.over(key)
            self.released.append(key)
            self.expected[request] = b"p", {"released": was_held}
        return "unlock", request, b"p", key

    def late(self, which, peer):
        """A lock comes after its unlock, by a connection that was slower."""
        if not self.released:
            return self.keep("h0", [], KEEPERS[0])
        holder, number = key = self.released[-1 - which % len(self.released)]
        args = lock_args(NAMES[number % 2], holder, number)
        request = self.wired.receive("lock", args, peer=peer)
        self.expected[request] = peer, "writes_refused" if self.refusing else {}
        return "lock", request, peer, key

    def keep(self, holder, numbers, peer):
        numbers = [self.ask_of(holder, number) for number in numbers]
        request = self.wired.receive("keep", {"holder": holder, "asks": numbers}, peer=peer)
        self.connections[holder] = peer
        lost = []
        for number in numbers:
            known = self.held.get(NAMES[number % 2])
            if known is not None and known.key == (holder, number):
                deadline = clock.now_ms() + known.ttl
                self.held[known.name] = replace(known, deadline=deadline)
            else:
                lost.append(number)
        self.expected[request] = peer, {"lost": lost}
        return "keep", request, peer, None

    def set(self, which):
        token = self.tokens[-1 - which % len(self.tokens)]
        self.count += 1
        args = {"key": "k", "value": self.count, "token": token}
        request = self.wired.receive("set", args)
        if self.refusing:
            self.expected[request] = b"p", "writes_refused"
        elif any(known.token == token for known in self.held.values()):
            self.value = self.count
            self.records += 1
            self.expected[request] = b"p", "done"
        else:
            self.expected[request] = b"p", "lock_lost"
        return "set", request, b"p", None

    # What comes of it

    def grant(self, *, fails_if_needed=False):
        """Grant what is free; True if that, and all else of the turn, cannot be made durable."""
        if self.refusing:
            return False
        free = {each.name for each in self.waiting.values()} - set(self.held)
        if self.broken and (self.records or free):
            self.refusing = True
            assert fails_if_needed
            return True
        for name in free:
            first = min(self.queue(name), key=lambda each: each.place)
            del self.waiting[first.key]
            deadline = clock.now_ms() + first.ttl
            self.held[name] = Granted(name, first.key, 0, first.ttl, deadline)
            self.tie(first.key, first.peer)
            self.expected[first.id] = first.peer, ("token of", name)
        return False

    def undo(self, asked, before):
        """The journal did not take the turn: its writes are refused, and so is who began to wait.

        Whoever asked in a turn before waits on, as before.
        """
        kept = self.held
        self.held, self.waiting, self.value, self.lives, self.released = before
        for each in self.waiting.values():
            self.expected.pop(each.id, None)
        for name, known in kept.items():  # a keep needs no journal
            if name in self.held and self.held[name].key == known.key:
                self.held[name] = known
        for op, request, peer, key in asked:
            holds = [known for known in self.held.values() if known.key == key]
            if op == "lock" and holds:
                self.expected[request] = peer, {"token": holds[0].token}
            elif op != "keep":
                self.expected[request] = peer, "writes_refused"
            if op == "lock":
                self.waiting.pop(key, None)
        alive = {*self.waiting, *(known.key for known in self.held.values())}
        for op, _, _, key in asked:
            if op == "unlock" and key not in alive:  # it may be remembered, or not
                self.over(key)

    def queue(self, name):
        return [each for each in self.waiting.values() if each.name == name]

    def come_due(self):
        """End what is over at this moment, be it a lock or somebody's patience."""
        now = clock.now_ms()
        self.records = 0
        for name in [name for name, known in self.held.items() if known.deadline <= now]:
            del self.held[name]
            self.records += 1
        free = [name for name in NAMES if name not in self.held]
        firsts = [min((w.place, w.key) for w in self.queue(n))[1] for n in free if self.queue(n)]
        for each in list(self.waiting.values()):
            if each.until is None or each.until > now:
                continue
            if each.key in firsts and not each.may_have_it:
                until = now + locks.GRANT_MS
                self.waiting[each.key] = replace(each, until=until, may_have_it=True)
            else:
                del self.waiting[each.key]
                self.expected[each.id] = each.peer, {}
        self.grant(fails_if_needed=True)

    @rule(ms=st.sampled_from([1, 4, 5, 7, 15, 20, 34_000, 40_000]))
    def time_goes_on(self, ms):
        while ms > 0:  # a daemon is not halted for so long at once
            self.frozen.advance(min(ms, 9_000))
            ms -= 9_000
            self.come_due()
            self.check()

    @rule(peer=st.sampled_from(PEERS + KEEPERS))
    def a_connection_is_lost(self, peer):
        self.records = 0
        for each in list(self.waiting.values()):
            if each.peer == peer:
                del self.waiting[each.key]
        holders = {holder for holder, its in self.connections.items() if its == peer}
        for holder in holders:
            del self.connections[holder]
        for name, known in list(self.held.items()):
            holder = known.key[0]
            tied = holder not in self.connections and self.tied.get(known.key) == peer
            if holder in holders or tied:
                del self.held[name]
                self.records += 1
        self.wired.engine.gone(peer)
        self.grant(fails_if_needed=True)
        self.check()

    @precondition(lambda self: self.broken)
    @rule()
    def the_disk_is_mended(self):
        self.broken = False
        self.expected[self.wired.receive("save")] = b"p", "done"
        self.refusing = False
        self.grant()
        self.check()

    @precondition(lambda self: not self.broken)
    @rule(kind=st.sampled_from(["kill", "save and kill", "stop"]))
    def the_daemon_starts_again(self, kind):
        if kind == "save and kill":
            self.expected[self.wired.receive("save")] = b"p", "done"
            self.check()
        if kind == "stop":
            assert self.wired.engine.finish() is None
            self.wired.engine.end()
        client, ids = self.wired.client, self.wired.ids
        self.wired.close()
        self.wired = Wired(self.wired.path)
        self.wired.client, self.wired.ids = client, ids
        self.waiting.clear()
        self.connections.clear()
        self.released.clear()
        self.tied.clear()
        now = clock.now_ms()
        for name, known in self.held.items():
            self.held[name] = replace(known, deadline=now + known.ttl)
        self.check()

    def check(self):
        """Each request has the answer that the model expects, or none; the state is the same."""
        came = self.wired.turn()
        replies = {reply["id"]: (peer, reply) for peer, reply in came}
        assert sorted(reply["id"] for _, reply in came) == sorted(self.expected)
        highest = max(self.tokens)
        for request, (peer, expected) in self.expected.items():
            its, reply = replies[request]
            assert its == peer
            if type(expected) is str and expected != "done":
                assert reply["error"]["code"] == expected
                assert "outcome_known" not in reply["error"]
            elif expected == "done":
                assert "result" in reply
            elif type(expected) is tuple:
                name = expected[1]
                token = reply["result"]["token"]
                assert token > highest, "it grows with every grant, over restarts too"
                assert token not in self.tokens
                self.tokens.append(token)
                if name in self.held:  # else it is over already
                    self.held[name] = replace(self.held[name], token=token)
            else:
                assert reply["result"] == expected
        self.expected = {}
        told = self.wired.ask("info")
        assert (told["locks"], told["waiting"]) == (len(self.held), len(self.waiting))
        assert self.wired.ask("get", key="k").get("value") == self.value


TestLocksModel = LocksModel.TestCase
TestLocksModel.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    report_multiple_bugs=False,
    phases=[Phase.generate, Phase.shrink],
)


# What the model leaves out


def test_an_ask_is_for_one_lock_only(wired):
    wired.ask("lock", **lock_args("a", "h", 1))
    wired.receive("lock", lock_args("a", "h", 2))
    assert wired.turn() == []
    for number in (1, 2):  # one is held, and one waits
        assert wired.ask("lock", **lock_args("b", "h", number))["code"] == "protocol"
    assert wired.ask("info")["locks"] == 1
    assert wired.ask("info")["waiting"] == 1


def test_who_waited_before_a_restart_takes_the_place_that_it_had(wire, frozen):
    wired = wire()
    wired.ask("lock", **lock_args("a", "holder", 1))
    first_asked = []
    for number in range(5):
        frozen.advance(10)
        first_asked.append(clock.now_ms())
        wired.receive("lock", lock_args("a", "waiter", number), peer=b"w%d" % number)
        assert wired.turn() == []
    wired = wire()
    frozen.advance(1000)
    asked = {}
    for number in (3, 1, 4, 0, 2):  # in whatever order they find the daemon again
        asked[number] = wired.receive(
            "lock",
            lock_args("a", "waiter", number),
            peer=b"n%d" % number,
            sent_at=first_asked[number],
        )
    late = wired.receive("lock", lock_args("a", "late", 1), peer=b"late")
    assert wired.turn() == []
    served = []
    wired.receive("unlock", {"name": "a", "holder": "holder", "ask": 1})
    for _ in range(6):
        ((peer, reply),) = [each for each in wired.turn() if "token" in each[1]["result"]]
        served.append(reply["id"])
        holder, number = ("late", 1) if peer == b"late" else ("waiter", int(peer[1:]))
        wired.receive("unlock", {"name": "a", "holder": holder, "ask": number})
    assert served == [*(asked[n] for n in range(5)), late]


def test_a_lock_is_held_for_its_ttl_from_when_it_was_kept_last_and_no_longer(wire, frozen):
    wired = wire()
    token = wired.ask("lock", **lock_args("a", "h", 1, ttl=100))["token"]
    wired.receive("lock", lock_args("a", "other", 1), peer=b"q")
    for _ in range(5):
        frozen.advance(99)
        assert wired.turn() == []
        assert wired.ask("keep", holder="h", asks=[1]) == {"lost": []}
    frozen.advance(99)
    wired = wire()  # another ttl begins
    frozen.advance(99)
    waits = wired.receive("lock", lock_args("a", "other", 1), peer=b"q", sent_at=0)
    assert wired.turn() == []
    assert "code" not in wired.ask("set", key="k", value=1, token=token)
    frozen.advance(1)
    late = wired.receive("set", {"key": "k", "value": 2, "token": token})  # of the same moment
    replies = {reply["id"]: reply for _, reply in wired.turn()}
    assert replies[late]["error"]["code"] == "lock_lost"
    assert replies[waits]["result"]["token"] > token
    assert wired.ask("keep", holder="h", asks=[1]) == {"lost": [1]}
    assert wired.ask("unlock", name="a", holder="h", ask=1) == {"released": False}


@pytest.mark.parametrize("durability", ["save", "journal", "fsync"])
def test_tokens_grow_over_a_kill_however_many_there_were(wire, durability):
    """More than one a millisecond: a clock alone would be behind."""
    wired = wire("--durability", durability)
    last = number = 0
    while number < 1000:
        for _ in range(50):
            number += 1
            wired.receive("lock", lock_args(f"n{number}", "h", number))
        tokens = sorted(reply["result"]["token"] for _, reply in wired.turn())
        assert len(set(tokens)) == 50
        assert tokens[0] > last
        last = tokens[-1]
    wired = wire("--durability", durability)
    assert wired.ask("lock", **lock_args("a", "other", 1, wait_ms=0)).get("token", 0) > last


def test_an_unlock_that_is_refused_has_nobody_stop_waiting(wired, monkeypatch):
    wired.ask("lock", **lock_args("a", "h", 1))
    waits = wired.receive("lock", lock_args("a", "h", 2), peer=b"q")
    assert wired.turn() == []

    def fail(_file, _data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", fail)
    asked = [
        wired.receive("unlock", {"name": "a", "holder": "h", "ask": 2}),
        wired.receive("lock", lock_args("a", "h", 3), peer=b"q"),
        wired.receive("unlock", {"name": "a", "holder": "h", "ask": 3}),
        wired.receive("set", {"key": "k", "value": 1}),
    ]
    replies = [reply for _, reply in wired.turn()]
    assert sorted(reply["id"] for reply in replies) == asked  # each once, and the first waits on
    assert {reply["error"]["code"] for reply in replies} == {"writes_refused"}
    assert wired.ask("info")["waiting"] == 1
    monkeypatch.undo()
    wired.ask("save")
    wired.receive("unlock", {"name": "a", "holder": "h", "ask": 1})
    assert waits in [reply["id"] for _, reply in wired.turn() if "token" in reply["result"]]


@pytest.mark.usefixtures("frozen")
def test_who_asked_in_the_same_millisecond_is_served_in_order_too(wired, monkeypatch):
    """Also after one of them asked again, and after a grant that was undone."""
    wired.ask("lock", **lock_args("a", "holder", 1))
    asked = [wired.receive("lock", lock_args("a", "h", n), peer=b"p%d" % n) for n in range(3)]
    asked[0] = wired.receive("lock", lock_args("a", "h", 0), peer=b"again", sent_at=clock.now_ms())
    assert wired.turn() == []

    def fail(_file, _data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        error = wired.ask("unlock", name="a", holder="holder", ask=1)
        assert error["code"] == "writes_refused"
    wired.ask("save")
    served = []
    wired.receive("unlock", {"name": "a", "holder": "holder", "ask": 1})
    for number in range(3):
        served += [r["id"] for _, r in wired.turn() if "token" in r["result"]]
        wired.receive("unlock", {"name": "a", "holder": "h", "ask": number})
    assert served == asked


def test_a_halt_gives_time_anew_but_once_until_the_lock_is_kept(wired, frozen):
    """Or a slow disk would have who is not there any more hold it for ever."""

    def halted():
        frozen.advance(900)
        wired.engine.halted()
        wired.turn()
        return wired.ask("info")["locks"]

    wired.ask("keep", holder="h", asks=[])
    wired.ask("lock", **lock_args("a", "h", 1, ttl=1000))
    assert [halted(), halted(), halted()] == [1, 1, 0]
    wired.ask("lock", **lock_args("a", "h", 2, ttl=1000))
    for _ in range(5):
        assert halted() == 1
        assert wired.ask("keep", holder="h", asks=[2]) == {"lost": []}


def test_who_keeps_it_late_has_it_as_long_as_nobody_else_was_told_otherwise(wired, frozen):
    """As after a halt that nobody noticed: the daemon reads what was asked before it looks."""
    wired.ask("lock", **lock_args("a", "h", 1, ttl=1000))
    waits = wired.receive("lock", lock_args("a", "other", 1))
    wired.turn()
    frozen.advance(1100)
    kept = wired.receive("keep", {"holder": "h", "asks": [1]})
    replies = {reply["id"]: reply for _, reply in wired.turn()}
    assert replies[kept]["result"] == {"lost": []}
    assert waits not in replies
    frozen.advance(1100)
    assert waits in {reply["id"] for _, reply in wired.turn()}
    assert wired.ask("keep", holder="h", asks=[1]) == {"lost": [1]}


# Fencing tokens

WRITES = {
    "set": {"key": "k", "value": 2},
    "setdefault": {"key": "new", "value": 2},
    "remove": {"key": "k"},
    "pop": {"key": "k"},
    "popitem": {},
    "incr": {"key": "k"},
    "cas": {"key": "new", "version": 0, "value": 2},
    "expire": {"key": "k", "ttl_ms": 60_000},
    "persist": {"key": "expiring"},
    "set_many": {"items": {"k": 2, "new": 2}},
    "remove_many": {"keys": ["k"]},
    "replace": {"items": {"new": 2}},
    "purge": {},
    "batch": {"steps": [{"op": "set", "args": {"key": "k", "value": 2}}]},
}


def content(wired):
    items = wired.ask("dump")["items"]
    return items, {key: wired.ask("ttl", key=key)["ttl_ms"] for key in items}


@pytest.fixture
def fenced(wired, frozen):
    """An engine with some content, a token that was lost and one that is held."""
    wired.ask("set_many", items={"a": 0, "k": 1})
    wired.ask("set", key="expiring", value=1, ttl_ms=60_000)
    lost = wired.ask("lock", **lock_args("x", "h", 1, ttl=5))["token"]
    frozen.advance(5)
    held = wired.ask("lock", **lock_args("y", "h", 2))["token"]
    return wired, lost, held


def test_the_table_of_writes_is_complete():
    assert set(WRITES) == {name for name, each in COMMANDS.items() if "token" in each.optional}
    assert set(WRITES) | {"unlock"} == {name for name, each in COMMANDS.items() if each.writes}


@pytest.mark.parametrize("op", WRITES)
def test_a_write_with_a_token_is_refused_unless_its_lock_is_held(fenced, op):
    wired, lost, held = fenced
    before = content(wired)
    for token in (lost, 0, held + 1):
        assert wired.ask(op, **WRITES[op], token=token)["code"] == "lock_lost"
        assert content(wired) == before
    assert "code" not in wired.ask(op, **WRITES[op], token=held)
    assert content(wired) != before


@pytest.mark.parametrize("op", sorted(op for op in WRITES if COMMANDS[op].steps))
def test_a_step_with_a_token_that_is_lost_has_the_whole_batch_undone(fenced, op):
    wired, lost, held = fenced
    before = content(wired)
    first = {"op": "set", "args": {"key": "first", "value": 1}}
    for token in (lost, held):
        step = {"op": op, "args": {**WRITES[op], "token": token}}
        steps = [first, step, {"op": "remove", "args": {"key": "a"}}]
        reply = wired.ask("batch", steps=steps)
        if token == lost:
            assert reply["code"] == "lock_lost"
            assert content(wired) == before
        else:
            assert len(reply["results"]) == 3
            assert content(wired) != before


@pytest.mark.parametrize("durability", ["save", "journal", "fsync"])
@pytest.mark.parametrize("op", ["set_many", "replace"])
def test_a_large_write_whose_lock_is_lost_before_it_counts_leaves_no_trace(wire, op, durability):
    """It is written in slices, while others go on: one of them ends the lock meanwhile."""
    wired = wire("--durability", durability)
    wired.ask("set", key="a", value=1)
    wired.ask("save")
    items = {f"{n}": n for n in range(batches.LARGE + 1)}
    for number, ends in enumerate(["unlock", "lost", "", "before"]):
        token = wired.ask("lock", **lock_args("x", "h", number))["token"]
        if ends == "before":
            wired.ask("unlock", name="x", holder="h", ask=number)
        large = wired.receive(op, {"items": items, "token": token}, client="large")
        if ends == "unlock":
            wired.receive("unlock", {"name": "x", "holder": "h", "ask": number}, peer=b"q")
        elif ends == "lost":
            wired.receive("keep", {"holder": "h", "asks": []}, peer=b"keeper")
            wired.replies += wired.engine.finish_turn()
            wired.engine.gone(b"keeper")
        replies = {reply["id"]: reply for _, reply in wired.turn()}
        if ends:
            assert replies[large]["error"]["code"] == "lock_lost"
            assert "outcome_known" not in replies[large]["error"]
        else:
            assert replies[large]["result"] == {}
        expected = {} if op == "replace" else {"a": 1}
        assert wired.ask("dump")["items"] == ({**expected, **items} if not ends else {"a": 1})
        if durability != "save":  # nor does a start find one
            wired = wire("--durability", durability)
            assert wired.ask("dump")["items"] == ({**expected, **items} if not ends else {"a": 1})
        wired.ask("unlock", name="x", holder="h", ask=number)
        wired.ask("replace", items={"a": 1})


def test_an_unlock_that_overtakes_its_lock_leaves_nothing_held_by_nobody(wired):
    """They come by two connections: that of who asked and was interrupted, and the keeper's."""
    wired.ask("keep", holder="h", asks=[])
    assert wired.ask("unlock", name="a", holder="h", ask=1) == {"released": False}
    wired.receive("lock", lock_args("a", "h", 1), peer=b"asker")
    wired.turn()
    assert "token" in wired.ask("lock", **lock_args("a", "other", 1, wait_ms=0))


@pytest.mark.parametrize("ended", ["held", "waited for"])
def test_a_lock_that_was_sent_twice_is_not_granted_once_more_when_it_was_released(wired, ended):
    """The first comes at last, by a connection that its client gave up."""
    wired.ask("keep", holder="h", asks=[])
    if ended == "waited for":
        wired.ask("lock", **lock_args("a", "before", 1))
    wired.receive("lock", lock_args("a", "h", 1), peer=b"new", sent_at=clock.now_ms())
    wired.turn()
    wired.send("unlock", {"name": "a", "holder": "h", "ask": 1})
    if ended == "waited for":
        wired.ask("unlock", name="a", holder="before", ask=1)
    wired.receive("lock", lock_args("a", "h", 1), peer=b"old")
    wired.turn()
    assert wired.ask("info")["locks"] == 0


def test_who_never_heard_that_it_had_the_lock_gets_it_when_it_asks_again(wired, frozen):
    """All its connections broke, or it could not connect for so long that its time was over."""
    for number, ending in enumerate(["connections", "time"]):
        args = lock_args("a", "h", number, ttl=100)
        wired.ask("keep", holder="h", asks=[])
        first = wired.receive("lock", args, peer=b"asker")
        ((_, reply),) = wired.turn()
        assert reply["id"] == first
        if ending == "connections":
            wired.engine.gone(b"p")
            wired.engine.gone(b"asker")
        frozen.advance(100)
        assert wired.turn() == []
        again = wired.receive("lock", args, peer=b"new", sent_at=clock.now_ms() - 100)
        ((_, repeated),) = wired.turn()
        assert repeated["id"] == again
        assert repeated["result"]["token"] > reply["result"]["token"]
        wired.ask("unlock", name="a", holder="h", ask=number)


def test_what_was_asked_again_by_another_connection_does_not_end_with_the_first(wired):
    """Its holder has no connection of its own yet; that the first is lost is heard of late."""
    wired.receive("lock", lock_args("a", "h", 1), peer=b"old")
    ((_, reply),) = wired.turn()
    wired.receive("lock", lock_args("a", "h", 1), peer=b"new", sent_at=clock.now_ms())
    assert wired.turn()[0][1]["result"] == reply["result"]
    wired.engine.gone(b"old")
    assert wired.ask("info")["locks"] == 1
    wired.engine.gone(b"new")
    assert wired.ask("info")["locks"] == 0
