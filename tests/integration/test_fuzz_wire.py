"""Whatever comes by the wire: the daemon lives on, others are served, and its log stays short.

Each kind of nonsense is made up anew for some seconds, by hypothesis; in the long form for minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time

import pytest
import zmq
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from curved import Keyed
from pickledbd.zap import answer, domain
from support import PATIENCE, wait_until

SHORT, LONG = 2.0, 150.0
"""Seconds for each kind."""

SETTLED = 0.05
"""Seconds without a byte after which nothing more is said in a handshake."""

fuzz = settings(
    max_examples=50,
    database=None,
    phases=[Phase.generate],  # what is left of an example when it has been cut is another one
    suppress_health_check=list(HealthCheck),
)


class Wire:
    """A daemon, and all that it is told that makes no sense."""

    def __init__(self, folder):
        self.keyed = Keyed(folder)
        self.keyed.authorize("ann")
        self.ann = self.keyed.client("ann")
        self.ann["a"] = 1
        self.context = zmq.Context()
        self.dealer = self.keyed.dealer(self.context, "ann")
        self.dealer.connect(self.keyed.tcp)
        self.dealer.send(b"")
        assert b"error" in self.dealer.recv()
        self.ann["large"] = "x" * 2**18
        assert len(self.ann.pop("large")) == 2**18  # pyzmq has a context of its own from then on
        self.descriptors = self.count_descriptors()

    def count_descriptors(self):
        return len(os.listdir(f"/proc/{self.keyed.daemon.pid}/fd"))

    def connect(self, *, tcp):
        if tcp:
            return socket.create_connection(("127.0.0.1", int(self.keyed.port)), PATIENCE)
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(PATIENCE)
        peer.connect(self.keyed.ipc.removeprefix("ipc://"))
        return peer

    def check(self):
        """Others are served, by both ways, and nothing was changed."""
        assert self.ann.db == {"a": 1}
        assert self.keyed.told("ping")

    def end(self, *, leaves_some):
        self.dealer.close()
        self.context.term()
        self.check()
        if not leaves_some:
            wait_until(
                lambda: self.count_descriptors() <= self.descriptors, "all connections to be closed"
            )
        self.ann.close()
        err = self.keyed.daemon.stop()
        assert "Traceback" not in err
        assert len(err) < 50_000


@pytest.fixture
def wire(tmp_path, request):
    wire = Wire(tmp_path)
    yield wire
    # libzmq 4.3.5 forgets a connection whose client, with a key that is let in, says the last part
    # of the handshake twice
    wire.end(leaves_some=request.node.callspec.params["kind"] is between)


def say(peer, *parts):
    """Send these, and take what is answered, as far as the other side goes along."""
    with contextlib.suppress(OSError):
        for part in parts:
            peer.sendall(part)
            peer.settimeout(SETTLED)
            peer.recv(2**16)


def nonsense(wire):
    """Bytes that are nothing."""

    @fuzz
    @given(said=st.lists(st.binary(max_size=300), max_size=4), tcp=st.booleans())
    def example(said, tcp):
        with wire.connect(tcp=tcp) as peer:
            say(peer, *said)

    return example


mechanisms = st.sampled_from([b"NULL", b"CURVE", b"PLAIN", b"GSSAPI", b""]) | st.binary(max_size=20)
names = st.sampled_from(
    [b"HELLO", b"WELCOME", b"INITIATE", b"READY", b"ERROR", b"MESSAGE", b"PING", b"SUBSCRIBE"]
)
greetings = st.builds(
    lambda first, version, mechanism, as_server, rest: (
        first + version + mechanism.ljust(20, b"\0") + as_server + rest
    ),
    st.just(b"\xff" + bytes(8) + b"\x7f") | st.binary(min_size=10, max_size=10),
    st.sampled_from([b"\x03\x00", b"\x03\x01", b"\x01\x00", b"\x02\x00", b"\xff\xff"]),
    mechanisms,
    st.sampled_from([b"\x00", b"\x01", b"\xff"]),
    st.just(bytes(31)) | st.binary(max_size=40),
)
bodies = st.binary(max_size=300) | st.sampled_from(
    [b"\x01\x00" + bytes(198), bytes(200), b"\x0bSocket-Type\x00\x00\x00\x06DEALER"]
)
commands = st.builds(
    lambda name, body, flags, lie: (
        bytes([flags])
        + (
            (min(255, len(name) + 1 + len(body) + lie)).to_bytes(1, "big")
            if not flags & 2
            else (len(name) + 1 + len(body) + lie).to_bytes(8, "big")
        )
        + bytes([len(name)])
        + name
        + body
    ),
    names,
    bodies,
    st.sampled_from([0x04, 0x06, 0x00, 0x01, 0x02, 0xFF]),
    st.sampled_from([0, 0, 0, 1, 200, 2**40]),
)


def handshakes(wire):
    """Greetings and commands of ZMTP, and of CURVE, that are nearly right."""

    @fuzz
    @given(greeting=greetings, said=st.lists(commands, max_size=4), tcp=st.booleans())
    def example(greeting, said, tcp):
        with wire.connect(tcp=tcp) as peer:
            say(peer, greeting, *said)

    return example


def bent(chunk, place, way):
    """The same with something else at a place."""
    place %= len(chunk)
    kind, byte = way
    if kind == "flip":
        return chunk[:place] + bytes([chunk[place] ^ (byte or 1)]) + chunk[place + 1 :]
    if kind == "insert":
        return chunk[:place] + bytes([byte]) + chunk[place:]
    if kind == "drop":
        return chunk[:place] + chunk[place + 1 :]
    if kind == "repeat":
        return chunk + chunk[place:]
    return chunk[:place]


def between(wire):
    """A client with a key, and somebody in the middle who changes what they say to each other."""

    ways = st.tuples(
        st.sampled_from(["flip", "insert", "drop", "repeat", "cut"]), st.integers(0, 255)
    )
    changes = st.dictionaries(st.integers(0, 9), st.tuples(st.integers(0, 400), ways), max_size=2)

    @fuzz
    @given(changes=changes)
    def example(changes):
        with (
            socket.create_server(("127.0.0.1", 0)) as listening,
            zmq.Context() as context,
            wire.keyed.dealer(context, "ann") as dealer,
        ):
            listening.settimeout(PATIENCE)
            dealer.reconnect_ivl = -1
            dealer.connect(f"tcp://127.0.0.1:{listening.getsockname()[1]}")
            dealer.send(b'{"id":1,"client":"c","op":"ping"}')
            ours, _ = listening.accept()
            with ours, wire.connect(tcp=True) as theirs:
                relay(ours, theirs, changes)
                if not changes:
                    while not dealer.poll(0):
                        relay(ours, theirs, changes)
                    assert json.loads(dealer.recv())["result"] == {}

    return example


def relay(ours, theirs, changes):
    """Pass on what each says, some of it changed, until both have nothing to say any more."""
    number = 0
    with contextlib.suppress(OSError):
        while ready := select.select([ours, theirs], [], [], SETTLED)[0]:
            for one in ready:
                chunk = one.recv(2**16)
                if not chunk:
                    return
                if number in changes:
                    chunk = bent(chunk, *changes[number])
                number += 1
                (theirs if one is ours else ours).sendall(chunk)


def messages(wire):
    """Frames that are no requests, by who has a key."""

    @fuzz
    @given(frames=st.lists(st.binary(max_size=100), min_size=1, max_size=5))
    def example(frames):
        wire.dealer.send_multipart(frames)
        told = json.loads(wire.dealer.recv())
        for one in told if isinstance(told, list) else [told]:
            assert "error" in one

    return example


def questions(_wire):
    """What the handler of libzmq's questions is asked."""
    known = [b"1.0", b"NULL", b"CURVE", bytes(32), domain("x", keyed=True, read_only=True).encode()]

    @fuzz
    @given(question=st.lists(st.binary() | st.sampled_from(known), max_size=12))
    def example(question):
        reply, _, _ = answer(question, None)
        assert len(reply) == 6
        assert (reply[2] == b"200") == (
            question[:1] == [b"1.0"]
            and len(question) > 5
            and question[2].partition(b" ")[0] in (b"open", b"open-read")
            and question[5] == b"NULL"
        )

    return example


@pytest.mark.parametrize("kind", [nonsense, handshakes, between, messages, questions])
@pytest.mark.parametrize("seconds", [SHORT, pytest.param(LONG, marks=pytest.mark.long)])
def test_no_nonsense_does_harm(wire, kind, seconds):
    example = kind(wire)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        example()
        wire.check()
