"""Power cuts at every moment of a daemon's life: what the disk may then hold is always recovered.

A daemon lives under strace, and tests/crashes.py tells which contents its directory may have after
a power cut at any of its steps. Each has to start by itself, and to hold a prefix of the history,
with the answers of just that prefix: in mode fsync with all that was acknowledged, in mode journal
with all that was synced, in each mode with the last acknowledged save.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field

import orjson
import pytest
import zmq

from crashes import Trace, strace
from pickledbd import records
from pickledbd.clock import now_ms
from pickledbd.recovery import recover
from pickledbd.snapshot import DataFile, Unreadable
from support import PATIENCE, Daemon, wait_until

NAME = "my.db"


@pytest.fixture(scope="session")
def _strace(tmp_path_factory):
    """Skip where processes cannot be traced."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    log = tmp_path_factory.mktemp("strace") / "log"
    tried = subprocess.run(
        [*strace(log), "true"], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    if tried.returncode:
        pytest.skip(f"strace does not work here: {tried.stderr}")


pytestmark = pytest.mark.usefixtures("_strace")


class TracedDaemon(Daemon):
    """A daemon whose syscalls are written to `log`."""

    def __init__(self, location, log, *options):
        self.location = location
        self.log = log
        command = [sys.executable, "-m", "pickledbd", str(location), *map(str, options)]
        self.process = subprocess.Popen(
            [*strace(log), *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.running.append(self)
        self.wait_ready()

    def end(self):
        ended = super().end()
        over = re.compile(rf"^{self.pid} +\+\+\+ (exited|killed)", re.MULTILINE)
        wait_until(lambda: over.search(self.log.read_text()), "the end of the trace")
        return ended


class Peer:
    """A client with one connection, which does not wait unless it is told to."""

    def __init__(self, life, endpoint, name):
        self.name = name
        self.life = life
        self.unanswered = set()
        self.socket = life.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.rcvtimeo = int(PATIENCE * 1000)
        self.socket.connect(endpoint)
        life.peers.append(self)

    def send(self, op, *parts, **args):
        number = next(self.life.ids)
        items = [{**args, "items": part} for part in parts] or [args]
        for index, each in enumerate(items):
            request = {"id": number, "client": self.name, "op": op, "args": each}
            request["budget_ms"] = self.life.budget_ms
            if index < len(items) - 1:
                request["more"] = True
            self.socket.send(orjson.dumps(request))
        if parts:
            args["items"] = {key: value for part in parts for key, value in part.items()}
        self.life.requests[number] = (self.name, op, args)
        self.unanswered.add(number)
        return number

    def repeat(self, number):
        """Ask again what another connection asked, in one message."""
        _, op, args = self.life.requests[number]
        request = {"id": number, "client": self.name, "op": op, "args": args}
        request |= {"budget_ms": self.life.budget_ms, "sent_at": self.life.began_at}
        self.socket.send(orjson.dumps(request))
        self.unanswered.add(number)

    def wait(self):
        """Wait until everything is answered; the results."""
        results = {}
        while self.unanswered:
            reply = orjson.loads(self.socket.recv())
            assert "error" not in reply, reply
            if not reply.get("more"):
                self.unanswered.discard(reply["id"])
                self.life.answered.add(reply["id"])
                results[reply["id"]] = reply["result"]
        return results

    def ask(self, op, *parts, **args):
        number = self.send(op, *parts, **args)
        return self.wait()[number]


def applied(content, op, args):
    """What the content is after a write, in pickleDB's own terms."""
    after = {**content}
    if op in ("purge", "replace"):
        after.clear()
    if op in ("set_many", "replace"):
        after.update({key: orjson.dumps(value) for key, value in args["items"].items()})
    elif op == "set":
        after[args["key"]] = orjson.dumps(args["value"])
    elif op in ("remove", "pop"):
        after.pop(args["key"], None)
    return after


def fingerprint(items, answers):
    return hash((tuple(items), tuple(sorted(answers.items()))))


@dataclass
class Life:
    """What was asked of one traced daemon, from its start to its end."""

    mode: str
    ids: itertools.count
    context: zmq.Context
    budget_ms: int = 600_000
    began_at: int = field(default_factory=now_ms)
    requests: dict[int, tuple] = field(default_factory=dict)
    peers: list[Peer] = field(default_factory=list)
    answered: set[int] = field(default_factory=set)
    saves: dict[int, set[int]] = field(default_factory=dict)
    """Each save with the requests that had been answered when it was asked for."""

    unanswered: dict[str, int] = field(default_factory=dict)
    """What each client asked last and has no answer to."""

    def hang_up(self):
        for peer in self.peers:
            peer.socket.close()
            left = [n for n in peer.unanswered if n not in self.saves]
            # The history is read from the journal, where a repeat that changes nothing is not
            if left and self.requests[max(left)][1] == "set":
                self.unanswered[peer.name] = max(left)
        self.peers.clear()

    def save(self, peer):
        number = peer.send("save")
        self.saves[number] = self.answered.copy()


class Oracle:
    """What may be there after a power cut at each moment of a life."""

    def __init__(self, life, trace, before):
        """`before`: what the disk held at its start, as `recover` found it."""
        self.mode = life.mode
        self.where = []  # of each applied write: its file, and the change that brought it there
        self.order = []
        if life.mode == "save":
            self.order = [n for n, (_, op, _) in life.requests.items() if op != "save"]
        else:
            for began, number, file, index in sorted(_journaled(trace), key=lambda each: each[0]):
                self.order.append(number)
                self.where.append((began, file, index))
        position = {number: index + 1 for index, number in enumerate(self.order)}
        self.requests = life.requests
        self.before = before[1]
        content, answers = before
        self.states = {}
        self._add(0, content, answers)
        for index, number in enumerate(self.order, 1):
            name, op, args = life.requests[number]
            content, answers = applied(content, op, args), {**answers, name: number}
            self._add(index, content, answers)
        self.last = content
        self.acknowledged = sorted(
            (now, max((position.get(n, 0) for n in life.saves[number]), default=0))
            if number in life.saves
            else (now, position.get(number, 0) if life.mode == "fsync" else 0)
            for now, message in trace.sent
            for number in map(int, re.findall(rb'{"id":(\d+),"result":', message))
            if b'"more":true' not in message
        )

    def _add(self, index, content, answers):
        answers = {} if self.mode == "save" else answers
        self.states.setdefault(fingerprint(content.items(), answers), []).append(index)

    def range(self, now):
        """The shortest and the longest prefix that may be there."""
        least = max((index for at, index in self.acknowledged if at <= now), default=0)
        most = len(self.order)
        if self.mode != "save":
            most = sum(began <= now for began, _, _ in self.where)
            for index, (_, file, change) in enumerate(self.where, 1):
                if change < file.synced(now):
                    least = max(least, index)
        return least, most

    def verdict(self, found, now):
        """What is wrong with what was recovered at `now`; None if nothing is."""
        answers = {} if self.mode == "save" else self._changing(answers_of(found))
        indexes = self.states.get(fingerprint(items_of(found), answers))
        least, most = self.range(now)
        if indexes is None:
            return f"it is no moment of the history; answers {answers}, {len(found.table)} keys"
        if not any(least <= index <= most for index in indexes):
            return f"it holds {indexes} writes of {least} to {most}"
        return None

    def _changing(self, answers):
        """The answers, of those who were answered last that there was nothing to remove before.

        Such a write changes nothing, so it is not in the history, though its answer may be kept.
        """
        changing = {}
        for name, number in answers.items():
            by_name = [n for n in self.order if self.requests[n][0] == name]
            last = number
            if number not in by_name and number != self.before.get(name):
                client, op, _ = self.requests[number]
                assert (client, op in ("remove", "pop")) == (name, True)
                earlier = [n for n in by_name if n < number]
                last = max(earlier, default=self.before.get(name))
            if last is not None:
                changing[name] = last
        return changing


def _journaled(trace):
    """The writes in the journals: when each was brought there, its id, file and change."""
    for file in trace.files:
        for index, change in enumerate(file.changes):
            for line in (change.data or b"").splitlines(keepends=True):
                record = records.form(line)
                if record is not None and "client" in record:
                    yield change.began, record["id"], file, index


def items_of(found):
    return [
        (key, value)
        for keys, values in found.table.view()
        for key, value in zip(keys, values, strict=True)
    ]


def answers_of(found):
    return {answer.client: answer.id for answer in found.retries.awaited()}


def lay_out(directory, state):
    directory.mkdir(exist_ok=True)
    for old in directory.iterdir():
        old.unlink()
    for name, content in state.items():
        (directory / name).write_bytes(content)


def recovered(directory):
    """What a start finds, and whether the data file is whole."""
    file = DataFile(directory / NAME)
    return recover(file)


class Cuts:
    """Goes through the power cuts of a life, and counts what it saw."""

    def __init__(self, directory):
        self.directory = directory
        self.seen = set()
        self.cut_tails = []
        """States of which a tail was cut, with what was found in them."""
        self.sample = []

    def check(self, trace, oracle, chance, each_moment, moments=None):
        for now in trace.moments() if moments is None else moments:
            for ordered in (True, False):
                for state in trace.crashes(now, chance, each_moment, ordered=ordered):
                    seen = hash((now, tuple(sorted(state.items()))))
                    if seen not in self.seen:
                        self.seen.add(seen)
                        self.one(state, oracle, now)

    def one(self, state, oracle, now):
        lay_out(self.directory, state)
        try:
            found = recovered(self.directory)
        except Unreadable as error:
            raise AssertionError(f"at {now}, {sizes(state)}: refused: {error}") from None
        wrong = oracle.verdict(found, now)
        assert wrong is None, f"at {now}, {sizes(state)}: {wrong}; {found.warnings}"
        for name, content in state.items():
            if ".backup-" in name:
                assert type(json.loads(content)) is dict
        if found.warnings:
            self.cut_tails.append(state)
        elif len(self.seen) % 97 == 0:
            self.sample.append(state)


def sizes(state):
    return {name: len(content) for name, content in sorted(state.items())}


def start_for_real(location, state):
    """Start a daemon on what a power cut left: it serves what `recover` finds, also later."""
    lay_out(location.parent, state)
    found = dict(items_of(recovered(location.parent)))
    daemon = Daemon(location)
    with contextlib.closing(daemon.client()) as db:
        assert [(key, orjson.dumps(value)) for key, value in db.db.items()] == list(found.items())
        db.set("after", 1)
    daemon.kill()
    daemon = Daemon(location)
    with contextlib.closing(daemon.client()) as db:
        assert db.get("after") == 1
    daemon.check_and_stop()
    assert list(json.loads(location.read_bytes())) == list(found | {"after": b""})


# What a daemon goes through


def small_writes(peers, chance, count):
    """Writes of several clients, many at once, whose records are of all sizes."""
    for _ in range(count):
        peer = chance.choice(peers)
        key = f"k{chance.randrange(12)}"
        if chance.random() < 0.7:
            peer.send("set", key=key, value="v" * chance.choice((1, 30, 450, 1500)) + key)
        else:
            peer.send(chance.choice(("remove", "pop")), key=key)
        if chance.random() < 0.4:
            peer.wait()


def batch(chance, count):
    """The items of a large batch in three messages."""
    items = [(f"b{chance.randrange(10 * count)}", number) for number in range(count)]
    return [dict(items[start::3]) for start in range(3)]


def busy_life(life, daemon, chance):
    """Every kind of write, with saves in the midst of them."""
    peers = [Peer(life, daemon.endpoint, f"{name}-{next(life.ids)}") for name in "abc"]
    saver = Peer(life, daemon.endpoint, "saver")
    writer = Peer(life, daemon.endpoint, f"batches-{next(life.ids)}")
    for round_ in range(3):
        small_writes(peers, chance, 8)
        life.save(saver)
        small_writes(peers, chance, 8)
        writer.send("set_many", *batch(chance, 1100))
        small_writes(peers, chance, 6)
        life.save(saver)
        small_writes(peers, chance, 6)
        writer.wait()
        if round_ == 1:
            peers[0].ask("purge")
            life.save(saver)
            writer.send("replace", *batch(chance, 1050))
            small_writes(peers, chance, 5)
            writer.wait()
            peers[1].ask("replace", items={"only": 1})
        for peer in (*peers, saver):
            peer.wait()
        life.save(saver)  # with nothing in between: the old journal goes
        saver.wait()
    small_writes(peers, chance, 4)
    for peer in peers:
        peer.wait()


def short_life(life, daemon, chance):
    """Records as long as others before, where those were cut."""
    peers = [Peer(life, daemon.endpoint, f"{name}-{next(life.ids)}") for name in "de"]
    for _ in range(4):
        peers[0].ask("set", key="k1", value="v" * 1500)
    small_writes(peers, chance, 6)
    life.save(peers[0])
    small_writes(peers[1:], chance, 6)
    for peer in peers:
        peer.wait()


def unfinished_life(life, daemon, chance):
    """A daemon that is killed with requests in flight, and much that is not synced."""
    peers = [Peer(life, daemon.endpoint, f"{name}-{next(life.ids)}") for name in "fgh"]
    small_writes(peers, chance, 4)
    life.save(peers[0])
    peers[1].send("set_many", *batch(chance, 1020))
    for peer in peers:
        peer.send("set", key=peer.name, value=1)
    small_writes(peers, chance, 3)


def resumed_life(life, daemon, chance):
    """The clients of a daemon that was killed ask the next one again."""
    left, life.unanswered = life.unanswered, {}
    for name, number in left.items():
        peer = Peer(life, daemon.endpoint, name)
        peer.repeat(number)
        peer.wait()
    short_life(life, daemon, chance)


def slow_life(life, daemon, chance):
    """One write after the other: mode save has no journal that would tell their order."""
    peer = Peer(life, daemon.endpoint, f"a-{next(life.ids)}")
    for _ in range(5):
        small_writes([peer], chance, 6)
        peer.wait()
        life.save(peer)
        small_writes([peer], chance, 3)
        peer.wait()
    peer.ask("set_many", *batch(chance, 1100))
    peer.ask("purge")
    life.save(peer)
    peer.wait()
    peer.ask("set", key="last", value=1)


class World:
    """A directory with daemons in it, one after the other, each from what one power cut left."""

    def __init__(self, tmp_path, seed):
        self.chance = random.Random(seed)
        self.directory = tmp_path / "db"
        self.cuts = Cuts(tmp_path / "cut")
        self.ids = itertools.count(1)
        self.logs = (tmp_path / f"log-{number}" for number in itertools.count())

    def live(self, mode, state, *lives, end=signal.SIGKILL):
        """Daemons one after the other in a directory with `state`, each killed but for the last.

        Their trace, and what may be found after power cuts.
        """
        lay_out(self.directory, state)
        before = recovered(self.directory)
        known = dict(items_of(before)), answers_of(before)
        logs = []
        with zmq.Context() as context:
            life = Life(mode, self.ids, context)
            for number, lived in enumerate(lives, 1):
                log = next(self.logs)
                options = ("--durability", mode, "--backups", 2)
                daemon = TracedDaemon(self.directory / NAME, log, *options)
                try:
                    lived(life, daemon, self.chance)
                finally:
                    life.hang_up()
                if number < len(lives) or end == signal.SIGKILL:
                    daemon.kill()
                else:
                    daemon.stop(end)
                there = self.directory.iterdir()
                logs.append((log, {path.name: path.stat().st_size for path in there}))
        trace = Trace(self.directory, logs, state)
        return trace, Oracle(life, trace, known)


def after_each_power_cut(tmp_path, mode, seed, *, each_moment, later_lives):
    world = World(tmp_path, seed)
    lives = [slow_life] if mode == "save" else [busy_life]
    trace, oracle = world.live(mode, {}, *lives, end=signal.SIGTERM)
    world.cuts.check(trace, oracle, world.chance, each_moment)
    states = world.chance.sample(world.cuts.sample, 2)
    if mode != "save":
        assert world.cuts.cut_tails, "no power cut tore a record"
        torn = world.chance.sample(world.cuts.cut_tails, later_lives)
        for state in torn:
            trace, oracle = world.live(mode, state, short_life, unfinished_life, resumed_life)
            world.cuts.check(trace, oracle, world.chance, each_moment)
        states = [torn[0], states[0]]
    for state in states:
        start_for_real(world.directory / NAME, state)
    # without a journal far less is ever in doubt
    assert len(world.cuts.seen) > (30 if mode == "save" else 100) * each_moment


@pytest.mark.parametrize("mode", ["save", "journal", "fsync"])
def test_after_a_power_cut_it_starts_with_all_that_was_promised(tmp_path, mode):
    after_each_power_cut(tmp_path, mode, 1, each_moment=2, later_lives=1)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 5))
@pytest.mark.parametrize("mode", ["save", "journal", "fsync"])
def test_after_many_power_cuts_it_starts_with_all_that_was_promised(tmp_path, mode, seed):
    after_each_power_cut(tmp_path, mode, seed, each_moment=12, later_lives=5)
