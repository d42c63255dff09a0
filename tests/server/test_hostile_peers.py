"""Whatever a peer sends: an error reply or silence, never a dead loop or a changed store."""

from __future__ import annotations

import json
import os
import signal
import socket

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pickledbd_protocol import COMMANDS
from support import PATIENCE

CONTENT = {"a": 1, "b": [None, "x"], "": {"c": 2.5}}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
reading = st.sampled_from(sorted(name for name, command in COMMANDS.items() if not command.writes))
wrong_arguments = st.dictionaries(
    st.sampled_from(["key", "value", "keys", "items", "versions", "other"]), json_values
)
misshapen = st.fixed_dictionaries(
    {},
    optional={
        "id": json_values | st.integers(0, 9),
        "client": json_values | st.just("c"),
        "budget_ms": json_values | st.just(5),
        "op": json_values | reading,
        "args": json_values | wrong_arguments,
    },
)
# Right but for one thing, so that the deeper checks are reached
nearly_right = st.builds(
    lambda op, args, extra: {"id": 1, "client": "c", "op": op, "args": {**args, **extra}},
    st.sampled_from(sorted(COMMANDS)),
    st.fixed_dictionaries({}, optional={"key": st.just("a"), "value": json_values}),
    st.dictionaries(st.text("xyz", min_size=1), json_values, min_size=1, max_size=1),
)
bodies = (
    st.binary()
    | (misshapen | nearly_right | json_values).map(lambda v: json.dumps(v).encode())
    | st.sampled_from([b"[" * 5000, b'{"a":' * 5000, b"0" * 5000, b"\xff" * 100])
)
messages = st.lists(bodies | st.binary(max_size=3), min_size=1, max_size=10)


@pytest.fixture
def content(db):
    db.db = CONTENT
    yield
    assert db.db == CONTENT
    assert db.ping()


fuzz = settings(
    max_examples=300,
    # one daemon for all examples of a test is what is wanted: it has to survive them together
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@fuzz
@given(frames=messages)
@pytest.mark.usefixtures("content")
def test_random_frames_are_answered_with_an_error_or_a_read(dealer, frames):
    dealer.send_multipart(frames)
    (reply,) = dealer.recv_multipart()
    told = json.loads(reply)
    for one in told if isinstance(told, list) else [told]:
        assert ("error" in one) != ("result" in one)
    if len(frames) > 1:
        assert "one frame" in told["error"]["message"]


# ZMTP 3.0 by hand: libzmq itself keeps a message back until it is whole
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY" + b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
COMMAND, MORE_SHORT = 0x04, 0x01


@fuzz
@given(frames=messages)
@pytest.mark.usefixtures("content")
def test_half_messages_are_never_answered_and_harm_nobody(daemon, frames):
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(PATIENCE)
        peer.connect(daemon.endpoint.removeprefix("ipc://"))
        peer.sendall(GREETING)
        greeted = b""
        while len(greeted) < len(GREETING):
            greeted += peer.recv(1000)
        peer.sendall(bytes([COMMAND, len(READY)]) + READY)
        while b"READY" not in greeted:
            greeted += peer.recv(1000)
        for frame in frames:
            part = frame[:255]
            peer.sendall(bytes([MORE_SHORT, len(part)]) + part)
        # the last frame is begun and never ended
        peer.sendall(bytes([0, 255]) + b"x")


@fuzz
@given(said=st.binary(max_size=200))
@pytest.mark.usefixtures("content")
def test_peers_that_do_not_speak_zeromq_harm_nobody(daemon, said):
    greeting = b"\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL" + bytes(16) + bytes(32)
    for opening in (b"", greeting):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(os.fspath(daemon.endpoint.removeprefix("ipc://")))
            peer.sendall(opening + said)


@pytest.mark.usefixtures("content")
def test_a_request_over_the_limit_ends_that_connection_only(daemon, db):
    limit = 256 * 2**20
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.reconnect_ivl = -1
        dealer.immediate = True
        monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        dealer.connect(daemon.endpoint)
        dealer.send(bytes(limit + 1), copy=False)
        assert monitor.poll(PATIENCE * 1000), "the daemon kept the connection"
        dealer.disable_monitor()
        monitor.close()
    assert db.get("a") == 1


def test_a_peer_with_20_000_unread_replies_cannot_hold_the_daemon_up_with_its_log(daemon, db):
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.sndhwm = 0
        dealer.rcvhwm = 1
        dealer.connect(daemon.endpoint)
        for number in range(20_000):
            dealer.send(b'{"id":%d,"client":"c","op":"ping"}' % number)
        # the daemon's stderr is a pipe that nobody reads: it must not be filled
        for _ in range(1000):
            assert db.ping()
    daemon.process.send_signal(signal.SIGTERM)
    _, err = daemon.end()
    assert len(err) < 2000


@pytest.mark.usefixtures("content")
def test_a_peer_that_never_reads_its_replies_loses_them_alone(daemon, db):
    body = json.dumps({"id": 1, "client": "c", "op": "dump", "args": {}}).encode()
    db["large"] = "x" * 2**20
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.rcvhwm = 1
        dealer.connect(daemon.endpoint)
        for _ in range(200):
            dealer.send(body)
        assert db.get("a") == 1
    del db["large"]
