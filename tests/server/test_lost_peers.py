"""Many processes that die at once: what each leaves is found without a look at all the others'."""

from __future__ import annotations

import select
import socket
import struct
from types import SimpleNamespace

import pytest
import zmq

from pickledbd import loop
from pickledbd.connections import Connection
from pickledbd.journal import Journal
from pickledbd.locks import Locks
from pickledbd.loop import Loop
from pickledbd.notify import Notifier
from pickledbd.queues import Waiter
from pickledbd.status import Status
from pickledbd.tasks import Tasks
from pickledbd.watches import Feed

FEW, MANY = 200, 1600


def counted(base, looks):
    """A kind of string, with a note of each look at one of them."""

    class Counted(base):
        def __hash__(self):
            looks.append(self)
            return base.__hash__(self)

        def __eq__(self, other):
            looks.append(self)
            return base.__eq__(self, other)

    return Counted


def locks_of(many, name, peer):
    """Processes which hold a lock and wait for another each; how they die."""
    locks = Locks()
    for n in range(many):
        if n % 2:  # others are killed before they have a connection of their own
            locks.keep(peer(b"keeps %d" % n), name(f"holder {n}"), [])
        for number, lock in enumerate((f"own {n}", "wanted")):
            ask = name(f"holder {n}"), number
            locks.ask(Waiter(name(lock), ask, 30_000, peer(b"asks %d" % n), number, n, None))
    list(locks.grants())
    assert (len(locks), locks.waiting) == (many + 1, many - 1)

    def die():
        for n in range(many):
            locks.gone(peer(b"asks %d" % n))
            locks.gone(peer(b"keeps %d" % n))
        assert (len(locks), locks.waiting) == (0, 0)

    return die


def watches_of(many, name, peer):
    """Processes which watch, some of them the same; how they die."""
    feed = Feed()
    for n in range(many):
        watch = {"prefix": name(n % 7), "watcher": name(f"watcher {n}")}
        assert feed.ask(peer(b"p%d" % n), 1, since=feed.sequence, **watch) is None
    assert len(feed) == many

    def die():
        for n in range(many):
            feed.gone(peer(b"p%d" % n))
        assert len(feed) == 0

    return die


@pytest.mark.parametrize("of", [locks_of, watches_of])
def test_the_end_of_one_of_many_takes_no_longer_than_that_of_one_of_few(of):
    a_process = []
    for many in (FEW, MANY):
        looks = []
        die = of(many, counted(str, looks), counted(bytes, looks))
        looks.clear()
        die()
        a_process.append(len(looks) / many)
    assert a_process[1] < 1.5 * a_process[0]


def test_what_comes_of_many_that_are_gone_is_written_once(wired, monkeypatch):
    peers = [b"p%d" % n for n in range(MANY)]
    for n, peer in enumerate(peers):
        ask = {"name": f"own {n}", "holder": f"h{n}", "ask": 1, "ttl_ms": 30_000}
        wired.receive("lock", ask, peer=peer)
    wired.turn()
    written = []
    write = Journal.write
    monkeypatch.setattr(
        Journal, "write", lambda *args, **more: written.append(args) or write(*args, **more)
    )
    wired.engine.gone(*peers)
    assert len(written) == 1
    assert wired.ask("info")["locks"] == 0


class Over:
    """An engine that only notes which peers are gone; once all are, the loop is over."""

    status = ""

    def __init__(self):
        self.received = None  # as of a signal
        self.gone_peers = []
        self.turns = 0
        self.events = []
        self.send_multipart = None
        self.sockets = socket.socketpair()

    def fileno(self):
        return self.sockets[0].fileno()

    def tick(self, now):
        self.turns += 1
        while self.events:
            self.send_multipart([self.events.pop(), b""])
        assert self.turns < 10 * MANY
        if len(self.gone_peers) == MANY:
            self.received = SimpleNamespace(name="over")
            return now
        return now + 60

    offending = ()
    memory = 0
    waits_for_disk = False

    def paced_by(self, pace, has_room):
        pass

    def take_replies(self):
        return []

    def upkeep(self):
        pass

    def gone(self, *peers):
        assert 0 < len(peers) <= loop.LOST_A_TURN
        self.gone_peers += peers


@pytest.mark.parametrize("turn_seconds", [0.0, 60.0])
def test_the_loop_learns_of_many_that_are_gone_a_few_at_a_time(monkeypatch, turn_seconds):
    """None is forgotten, and between them it does what else there is to do."""
    monkeypatch.setattr(loop, "TURN_SECONDS", turn_seconds)
    engine = Over()
    looped = Loop(
        engine,
        [],
        owner=SimpleNamespace(restore=lambda: None),
        status=Status(location="", request_bytes=2**20),
        signals=engine,
        notifier=Notifier(),
        tasks=Tasks(),
        idle_exit=None,
    )
    peers = {descriptor: b"p%d" % descriptor for descriptor in range(MANY)}
    connections = looped._connections
    for descriptor, peer in peers.items():
        connection = Connection(descriptor, "ipc:///somewhere", "somebody", peer=peer)
        connections._open[descriptor] = connections._of_peer[peer] = connection
    connections._monitor.close()
    events, monitor = looped._context.socket(zmq.PAIR), looped._context.socket(zmq.PAIR)
    connections._monitor = monitor
    events.sndhwm = monitor.rcvhwm = 0
    events.bind("inproc://events")
    monitor.connect("inproc://events")
    looped._monitor_fd = monitor.fileno()
    looped._poller.register(looped._monitor_fd, select.POLLIN)
    engine.send_multipart = events.send_multipart
    engine.events = [struct.pack("=Hi", zmq.EVENT_DISCONNECTED, each) for each in peers]
    assert looped.run() == "over"
    events.close()
    looped.close()
    for each in engine.sockets:
        each.close()
    assert sorted(engine.gone_peers) == sorted(peers.values())
    fewest = MANY if turn_seconds == 0 else MANY // loop.LOST_A_TURN
    assert fewest <= engine.turns <= fewest + 3
