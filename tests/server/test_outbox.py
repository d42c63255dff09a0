"""Replies on their way: in order, bounded in bytes, and nobody's wait for another's."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from abusing import frame, shaken
from pickledbd import outbox
from pickledbd.inbox import MESSAGE_BYTES, Inbox
from pickledbd.outbox import ROOM_BYTES, WINDOW_BYTES, Outbox
from pickledbd.status import Status
from support import PATIENCE, wait_until

KIB = 2**10


class Post:
    """A ROUTER with its outbox, and raw peers."""

    def __init__(self, path, most_bytes, stack):
        context = stack.enter_context(zmq.Context())
        self.router = stack.enter_context(context.socket(zmq.ROUTER))
        self.router.linger = 0
        self.router.bind(f"ipc://{path}")
        self.path, self.stack = path, stack
        self.hung_up = {}
        self.gone = []
        self.outbox = Outbox(
            self.router,
            most_bytes,
            status=Status(location="", request_bytes=0),
            is_there=lambda _peer: True,
            gone=self.gone.append,
            hang_up=self.hung_up.__setitem__,
        )

    def peer(self):
        raw = self.stack.enter_context(shaken(str(self.path)))
        raw.settimeout(PATIENCE)
        raw.sendall(frame(b"hello"))
        peer, _ = self.router.recv_multipart()
        return raw, peer

    def flush(self, seconds=0.0):
        until = time.monotonic() + seconds
        while True:
            self.outbox.flush(time.monotonic())
            if time.monotonic() >= until:
                return


@pytest.fixture
def post(tmp_path):
    with contextlib.ExitStack() as stack:
        yield lambda most_bytes: Post(tmp_path / "s.sock", most_bytes, stack)


def read(raw, count, flush):
    """So many bytes of what a peer was sent."""
    raw.settimeout(0.005)
    found = b""
    deadline = time.monotonic() + PATIENCE
    while len(found) < count:
        assert time.monotonic() < deadline
        flush()
        with contextlib.suppress(TimeoutError):
            found += raw.recv(count - len(found))
    return found


def test_what_is_not_read_is_kept_and_comes_in_order(post):
    post = post(100 * 2**20)
    slow, slow_peer = post.peer()
    quick, quick_peer = post.peer()
    sizes = [10, 70_000, 300, 5000, 300_000, 10, 1]
    sent = [bytes([n % 256]) * size for n, size in enumerate(itertools.chain(*[sizes] * 30))]
    post.outbox.deliver((slow_peer, each) for each in sent)
    assert post.outbox.bytes > 5 * 2**20
    assert post.outbox.is_behind(slow_peer)
    pause = post.outbox.pace(slow_peer)
    assert not pause.done()
    for number in range(100):  # others do not wait
        post.outbox.deliver([(quick_peer, b"%03d" % number)])
        assert read(quick, 5, lambda: None)[-3:] == b"%03d" % number
    assert post.outbox.pace(quick_peer) is None
    expected = b"".join(map(frame, sent))
    assert read(slow, len(expected), post.flush) == expected
    assert pause.done()
    wait_until(lambda: post.flush() or post.outbox.bytes == 0, "pyzmq to tell that all has gone")
    assert post.outbox.behind == []
    assert post.outbox.due == float("inf")


def test_who_leaves_too_much_is_hung_up_on_and_nothing_is_kept_for_it(post):
    post = post(2 * ROOM_BYTES)
    _, peer = post.peer()
    other, other_peer = post.peer()
    for _ in range(100):
        post.outbox.deliver([(peer, bytes(100 * KIB))])
        assert post.outbox.bytes <= WINDOW_BYTES + 2 * ROOM_BYTES + 200 * KIB
    assert list(post.hung_up) == [peer]
    assert "2,097,152 bytes" in post.hung_up[peer]
    assert post.outbox.bytes == 0
    assert post.outbox.pace(peer) is None
    post.outbox.deliver([(other_peer, b"x")])
    assert read(other, 3, post.flush) == frame(b"x")


def test_one_reply_may_be_as_large_as_it_is(post):
    post = post(ROOM_BYTES)
    raw, peer = post.peer()
    sent = [bytes(2 * ROOM_BYTES), bytes(8 * ROOM_BYTES)]
    post.outbox.deliver((peer, each) for each in sent)
    assert not post.hung_up
    expected = b"".join(map(frame, sent))
    assert len(read(raw, len(expected), post.flush)) == len(expected)


def test_of_all_the_one_that_leaves_most_has_to_go(post):
    post = post(ROOM_BYTES)
    peers = [post.peer()[1] for _ in range(8)]
    most = 0
    for number in range(60):
        for n, peer in enumerate(peers):
            post.outbox.deliver([(peer, bytes(10 * KIB + n))])
        most = max(most, post.outbox.bytes)
        if number == 0:
            for peer in peers:  # so that all further ones are kept
                post.outbox.deliver([(peer, bytes(ROOM_BYTES))])
    assert most <= 4 * ROOM_BYTES + 20 * KIB
    assert 0 < len(post.hung_up) < len(peers)
    assert all("most of all clients" in why for why in post.hung_up.values())


def test_who_takes_nothing_for_long_is_hung_up_on(post, monkeypatch):
    monkeypatch.setattr(outbox, "STALLED_SECONDS", 0.3)
    monkeypatch.setattr(outbox, "SLOW_BYTES", 2**30)
    post = post(100 * ROOM_BYTES)
    stalled, stalled_peer = post.peer()
    slow, slow_peer = post.peer()
    for peer in (stalled_peer, slow_peer):
        post.outbox.deliver([(peer, bytes(100 * KIB))] * 50)
    for _ in range(10):  # it reads, if not much
        read(slow, 300 * KIB, post.flush)
        post.flush(0.06)
    assert list(post.hung_up) == [stalled_peer]
    stalled.close()


def test_a_peer_that_has_gone_is_told_of(post):
    post = post(ROOM_BYTES)
    post.router.linger = 0
    raw, peer = post.peer()
    raw.close()

    def is_told():  # by libzmq once it has noticed, so not too much is to be kept until then
        post.outbox.deliver([(peer, b"x")])
        return post.gone

    assert wait_until(is_told, "libzmq to notice")[0] == peer


puts = st.lists(
    st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.sampled_from(["put", "take", "gone"])),
    max_size=60,
)


@given(puts=puts, shut=st.sampled_from([b"a", b"none"]))
def test_the_inbox_keeps_the_order_of_each_and_counts_what_it_has(puts, shut):
    inbox, model = Inbox(10**9), {}
    for number, (peer, what) in enumerate(puts):
        if what == "put":
            assert inbox.put(peer, b"%d" % number) is None
            model.setdefault(peer, []).append(b"%d" % number)
        elif what == "gone":
            inbox.gone(peer)
            model.pop(peer, None)
        else:
            found = inbox.take(lambda each: each != shut)
            if found is None:
                assert not model.keys() - {shut}
            else:
                assert found[0] != shut
                assert model[found[0]].pop(0) == found[1]
                model = {each: left for each, left in model.items() if left}
        bodies = [body for left in model.values() for body in left]
        assert inbox.bytes == sum(len(body) + MESSAGE_BYTES for body in bodies)
        assert bool(inbox) == bool(model)
        assert all((each in inbox) == (each in model) for each in (b"a", b"b", b"c"))


def test_the_inbox_gives_each_its_turn_and_names_who_has_too_much():
    inbox = Inbox(1000)
    for _ in range(3):
        for peer in (b"a", b"b"):
            assert inbox.put(peer, bytes(100)) is None
    took = Counter(inbox.take(lambda _peer: True)[0] for _ in range(4))
    assert took == {b"a": 2, b"b": 2}
    assert inbox.put(b"a", bytes(1000)) == b"a"
    for number in range(10):
        over = inbox.put(b"%d" % number, bytes(5000))  # one may be of any size
        if over is not None:
            break
    assert over is not None
    assert inbox.bytes > 4000
