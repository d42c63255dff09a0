"""Replies that are lost: a write that is sent again happens once, or nobody claims that it did.

Between client and daemon stands a relay of bytes, which loses what it is told to.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import zmq

from pickledbd_client import PickleDB, PickleDBError, RequestTimeout, TooLarge, Unavailable, channel
from support import PATIENCE, Daemon, wait_until

MANY = {f"many:{n}": "x" * 20 for n in range(5000)}  # some 180 KB: sent in parts


class Relayed:
    """One connection through the relay. A thread each way; `mode` says what becomes of bytes."""

    def __init__(self, relay, client, daemon):
        self.relay = relay
        self.client, self.daemon = client, daemon
        self.mode = "pass"
        self.has_spoken = False
        self.passed = 0
        self.kept = b""
        self.lost = threading.Event()
        self.answered_late = threading.Event()
        self.threads = [
            threading.Thread(target=self.pump, args=(client, self.to_daemon)),
            threading.Thread(target=self.pump, args=(daemon, self.to_client)),
        ]
        relay.connections.append(self)  # before its client knows that it is connected
        for thread in self.threads:
            thread.start()

    def pump(self, source, forward):
        with contextlib.suppress(OSError):  # it was cut
            while data := source.recv(2**16):
                forward(data)
        if self.mode != "keep requests":
            self.cut()

    def to_daemon(self, data):
        self.has_spoken = True
        if self.mode == "keep requests":
            self.kept += data
            self.lost.set()
            return
        if self.mode == "cut requests":
            data = data[: self.relay.cut_after - self.passed]
        if b'"sent_at":' in data:
            self.relay.has_a_repeat.set()
            self.relay.lets_repeats_through.wait()
        self.passed += len(data)
        self.daemon.sendall(data)
        if self.mode == "cut requests" and self.passed >= self.relay.cut_after:
            self.cut()
            self.lost.set()

    def to_client(self, data):
        if self.mode == "keep requests":
            self.answered_late.set()
        elif self.mode == "lose replies":
            self.cut()
            self.lost.set()
        else:
            self.client.sendall(data)

    def cut(self):
        for end in (self.client, self.daemon):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Relay:
    """Listens at `endpoint` and passes all bytes between who connects there and the daemon."""

    def __init__(self, directory):
        self.endpoint, self.daemon_endpoint = f"ipc://{directory}/r", f"ipc://{directory}/d"
        self.cut_after = 0
        self.connections = []
        self.affected = []
        self.is_open = threading.Event()
        self.is_open.set()
        self.lets_repeats_through = threading.Event()
        self.lets_repeats_through.set()
        self.has_a_repeat = threading.Event()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.endpoint.removeprefix("ipc://"))
        self.listener.listen(128)
        self.thread = threading.Thread(target=self.accept)
        self.thread.start()

    def accept(self):
        with contextlib.suppress(OSError):  # it was closed
            while True:
                client, _ = self.listener.accept()
                self.is_open.wait()
                daemon = socket.socket(socket.AF_UNIX)
                try:
                    daemon.connect(self.daemon_endpoint.removeprefix("ipc://"))
                except OSError:
                    daemon.close()
                    client.close()
                else:
                    Relayed(self, client, daemon)

    def begin(self, mode):
        """From now on lose what `mode` says on each connection there is; take no further ones."""
        self.is_open.clear()
        # A client first connects only to look who is there; the daemon's greeting may then arrive
        # after this, and is no reply that is lost
        self.affected = [
            each for each in self.connections if each.has_spoken and each.threads[1].is_alive()
        ]
        for each in self.affected:
            each.passed = 0
            each.mode = mode

    def wait_lost(self, number):
        wait_until(lambda: sum(e.lost.is_set() for e in self.affected) == number, "losses")

    def end(self):
        """Take connections again."""
        self.is_open.set()

    def close(self):
        self.is_open.set()
        self.lets_repeats_through.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join(PATIENCE)
        self.listener.close()
        for each in self.connections:
            each.cut()
            for thread in each.threads:
                thread.join(PATIENCE)
            each.client.close()
            each.daemon.close()


@pytest.fixture
def relay(tmp_path):
    relay = Relay(tmp_path)
    yield relay
    relay.close()


class Served:
    """A daemon behind the relay, which may be killed, stopped and started anew."""

    def __init__(self, location, relay, durability):
        self.location = location
        self.options = ("--bind", relay.daemon_endpoint, "--durability", durability)
        self.daemon = Daemon(location, *self.options)

    def meanwhile(self, *what):
        for each in what:
            if each == "save":
                with contextlib.closing(self.daemon.client()) as other:
                    other.save()
                continue
            if each == "kill":
                self.daemon.kill()
            else:
                self.daemon.stop()
            self.daemon = Daemon(self.location, *self.options)

    def direct(self):
        """A client that does not go through the relay."""
        return contextlib.closing(self.daemon.client())


@pytest.fixture
def serve(location, relay):
    served = []

    def start(durability="journal"):
        served.append(Served(location, relay, durability))
        return served[-1]

    yield start
    for each in served:
        if each.daemon.process.poll() is None:
            each.daemon.check_and_stop()


@contextlib.contextmanager
def lost_reply(relay, calls, mode="lose replies", timeout=PATIENCE):
    """Ask each of `calls` by a client of its own, and lose something; yields the future answers.

    Within, what happens meanwhile: the clients try to ask again, which they can when it ends.
    """
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(contextlib.closing(PickleDB(relay.endpoint, timeout=timeout)))
            for _ in calls
        ]
        threads = stack.enter_context(ThreadPoolExecutor(len(calls)))
        relay.begin(mode)
        stack.callback(relay.end)  # whatever happens, nobody waits for it
        answers = [threads.submit(c, db) for c, db in zip(calls, clients, strict=True)]
        relay.wait_lost(len(calls))
        yield answers
        relay.end()
        for answer in answers:
            answer.exception(PATIENCE)
        for db in clients:  # whatever it was, nothing of it meets the next request
            assert db.get("untouched") == "as it was"


BEFORE = {"remove": 1, "pop": "token", "many 1": 1, "many 2": 2, "untouched": "as it was"}

WRITES = {
    "set": (lambda db: db.set("set", "mine"), True),
    "setdefault": (lambda db: db.setdefault("setdefault", "mine"), "mine"),
    "remove": (lambda db: db.remove("remove"), True),
    "pop": (lambda db: db.pop("pop"), "token"),
    "remove_many": (lambda db: db.remove_many(["many 1", "many 2"]), 2),
    "update": (lambda db: db.update({"update 1": "mine", "update 2": "mine"}), None),
    "a large set_many": (lambda db: db.set_many(MANY), True),
}

BY_ANOTHER = dict.fromkeys(
    [
        *("set", "setdefault", "remove", "pop", "many 1", "many 2"),
        *("update 1", "update 2", "many:0", "many:4999"),
    ],
    "by another",
)
"""What another client sets, once all writes have happened: to do one again would be seen."""


@pytest.mark.parametrize(
    ("durability", "meanwhile"),
    [
        ("journal", []),
        ("journal", ["kill"]),
        ("journal", ["stop"]),
        ("journal", ["save", "kill"]),
        ("journal", ["kill", "stop", "kill"]),
        ("fsync", ["kill", "save", "kill"]),
        ("save", []),
        ("save", ["stop", "stop"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " and ".join(value) or "nothing else",
)
def test_a_write_whose_reply_was_lost_is_answered_once_more_and_not_done(
    relay, serve, durability, meanwhile
):
    served = serve(durability)
    with served.direct() as db:
        db.update(BEFORE)
    calls = [call for call, _ in WRITES.values()]
    with lost_reply(relay, calls) as answers:
        with served.direct() as db:
            # the large one may not have been carried out yet when it is told to be under way
            wait_until(lambda: "many:4999" in db, "the large one")
            db.update(BY_ANOTHER)
        served.meanwhile(*meanwhile)
    expected = [answer for _, answer in WRITES.values()]
    assert [answer.result() for answer in answers] == expected
    with served.direct() as db:
        assert db.db == {"untouched": "as it was"} | MANY | BY_ANOTHER


@pytest.mark.parametrize("meanwhile", [[], ["kill"], ["stop"]], ids=["", "kill", "stop"])
def test_nor_is_what_concerns_everything_done_twice(relay, serve, meanwhile):
    served = serve()
    kept = {"untouched": "as it was"}
    for call, answer in (
        (lambda db: db.popitem(), ("last", 2)),
        (lambda db: db.purge(), True),
        (lambda db: setattr(db, "db", {"mine": 1}), None),
        (lambda db: setattr(db, "db", MANY), None),
    ):
        with served.direct() as db:
            db.purge()
            db.update({"first": 1, "last": 2})
            before = db.info()["dirty"]
        with lost_reply(relay, [call]) as [future]:
            with served.direct() as db:
                wait_until(lambda db=db, old=before: db.info()["dirty"] > old, "it to be applied")
                db.db = kept
            served.meanwhile(*meanwhile)
        assert future.result() == answer
        with served.direct() as db:
            assert db.db == kept


@pytest.mark.parametrize("cut_after", [100, 70_000, 150_000])
@pytest.mark.parametrize("meanwhile", [[], ["kill"]], ids=["", "kill"])
def test_a_batch_that_arrived_in_part_is_not_there_until_it_is_sent_again(
    relay, serve, cut_after, meanwhile
):
    served = serve()
    with served.direct() as db:
        db.update(BEFORE)
    relay.cut_after = cut_after
    with lost_reply(relay, [lambda db: db.set_many(MANY)], "cut requests") as [answer]:
        served.meanwhile(*meanwhile)
        with served.direct() as db:
            assert db.db == BEFORE
    assert answer.result() is True
    with served.direct() as db:
        assert db.db == BEFORE | MANY


@pytest.mark.parametrize("there", [True, False])
def test_a_request_that_arrives_after_its_repeat_is_not_carried_out(relay, serve, there):
    """A connection that the client gave up, and whose bytes reach the daemon all the same."""
    served = serve()
    with served.direct() as db:
        db.update({"untouched": "as it was"} | ({"token": 1} if there else {}))
    with lost_reply(relay, [lambda db: db.pop("token", None)], "keep requests") as [answer]:
        [late] = [each for each in relay.affected if each.kept]
        late.client.shutdown(socket.SHUT_RDWR)
    assert answer.result() == (1 if there else None)
    with served.direct() as db:
        db.set("token", 2)
        late.daemon.sendall(late.kept)
        assert late.answered_late.wait(PATIENCE)
        assert db.get("token") == 2, "taken for nobody"


# What cannot be known is not claimed


def many_clients(endpoint):
    """Have 10,001 clients write, so that the daemon forgets what it answered others."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger, dealer.sndhwm, dealer.rcvhwm = 0, 0, 0
        dealer.rcvtimeo = int(PATIENCE * 1000)
        dealer.connect(endpoint)
        for n in range(10_001):
            dealer.send(
                b'{"id":1,"client":"many %d","op":"set","args":{"key":"n","value":%d}}' % (n, n)
            )
        for _ in range(10_001):
            assert b"error" not in dealer.recv()


def large_answers(endpoint):
    """Have answers so large that those which are not small are given up."""
    with contextlib.closing(PickleDB(endpoint)) as db:
        db.setdefault("large", "x" * 5 * 2**20)


@pytest.mark.parametrize("meanwhile", [[], ["kill"], ["save", "kill"], ["stop"]], ids=" ".join)
@pytest.mark.parametrize("forget", [many_clients, large_answers])
def test_where_the_answer_was_forgotten_the_outcome_is_unknown_and_nothing_is_done(
    relay, serve, forget, meanwhile
):
    served = serve()
    with served.direct() as db:
        db.update(BEFORE | {"pop": "a token of over a hundred bytes" * 10})
    with lost_reply(relay, [lambda db: db.pop("pop")]) as [answer]:
        forget(relay.daemon_endpoint)
        served.meanwhile(*meanwhile)
        with served.direct() as db:
            db.set("pop", "by another")
    with pytest.raises(Unavailable, match="not known any more") as caught:
        answer.result()
    assert not caught.value.outcome_known
    with served.direct() as db:
        assert db["pop"] == "by another"


def test_an_answer_that_is_forgotten_while_the_repeat_is_on_its_way_is_unknown_too(relay, serve):
    served = serve()
    with served.direct() as db:
        db.update(BEFORE)
    relay.lets_repeats_through.clear()
    with lost_reply(relay, [lambda db: db.pop("pop")]) as [answer]:
        relay.end()
        assert relay.has_a_repeat.wait(PATIENCE)
        many_clients(relay.daemon_endpoint)
        with served.direct() as db:
            db.set("pop", "by another")
        relay.lets_repeats_through.set()
    with pytest.raises(Unavailable, match="not known any more"):
        answer.result()
    with served.direct() as db:
        assert db["pop"] == "by another"


def test_long_after_a_write_was_sent_it_is_not_sent_again(relay, serve, monkeypatch):
    monkeypatch.setattr(channel, "REPEAT_MS", -1)
    served = serve()
    with served.direct() as db:
        db.update(BEFORE)
    calls = [lambda db: db.pop("pop"), lambda db: db.get("many 1")]
    with lost_reply(relay, calls) as answers, served.direct() as db:
        wait_until(lambda: "pop" not in db, "it to be applied")
        db.set("pop", "by another")
    popped, read = answers
    with pytest.raises(Unavailable, match="too late to ask") as caught:
        popped.result()
    assert not caught.value.outcome_known
    assert read.result() == 1
    with served.direct() as db:
        assert db["pop"] == "by another"


class Told:
    """A connection to a daemon whose clock was `ahead` of time.monotonic(), as far as it knows."""

    def __init__(self, ahead):
        self.ahead = ahead

    def at(self, moment):
        return int(moment * 1000) + self.ahead


@pytest.mark.parametrize("clocks", [[5000], [5000, 9000], [9000, 5000], [9000, 5000, 7000]])
def test_a_repeat_was_first_sent_by_the_earliest_of_all_clocks(clocks):
    first = channel.FirstSent(Told(clocks[0]), 3.0)
    said = [first.told_to(Told(ahead)) for ahead in clocks]
    assert said == [3000 + min(clocks[: n + 1]) for n in range(len(clocks))]
    assert first.told_to(Told(-1_000_000)) == 0


def test_what_the_next_daemon_is_not_even_asked_once_more_has_an_unknown_outcome(relay, serve):
    served = serve()
    with served.direct() as db:
        db.update(BEFORE)
    large = {"large": "x" * 2**20}
    with lost_reply(relay, [lambda db: db.set_many(large)]) as [answer]:
        served.options += ("--max-request", 1)
        served.meanwhile("stop")
    with pytest.raises(TooLarge) as caught:
        answer.result()
    assert not caught.value.outcome_known
    with served.direct() as db:
        assert db["large"] == large["large"]


def test_past_the_deadline_a_write_that_was_sent_has_an_unknown_outcome(relay, serve):
    served = serve()
    with served.direct() as db:
        db.update(BEFORE)
    for call, outcome_known in ((lambda db: db.pop("pop"), False), (lambda db: db["pop"], True)):
        with contextlib.closing(PickleDB(relay.endpoint, timeout=1.0)) as db:
            relay.begin("lose replies")  # and none of its further connections is answered
            with pytest.raises((RequestTimeout, Unavailable)) as caught:
                call(db)
            assert caught.value.outcome_known is outcome_known
            relay.end()
            with served.direct() as direct:
                direct.setdefault("pop", "anew")


@pytest.mark.parametrize("by_path", [True, False])
def test_past_the_deadline_a_write_that_was_never_sent_is_known_not_to_have_happened(
    relay, serve, by_path
):
    served = serve()
    target = served.location if by_path else relay.daemon_endpoint
    with contextlib.closing(PickleDB(target, timeout=0.5, autostart=False)) as db:
        db.set("a", 1)
        served.daemon.kill()
        with pytest.raises(PickleDBError):
            db.get("a")  # so its connection is gone
        with pytest.raises(Unavailable) as caught:
            db.set("a", 2)
        assert caught.value.outcome_known
        served.daemon = Daemon(served.location, *served.options)
        assert db.get("a") == 1


def test_the_relay_by_itself_changes_nothing(relay, serve):
    served = serve()
    with contextlib.closing(PickleDB(relay.endpoint)) as db:
        db.set_many(MANY)
        assert db.db == MANY
        assert db.location == os.fspath(served.location)
