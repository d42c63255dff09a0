"""Peers that wish the daemon ill, or are written so; run as a script they go on until killed.

`abusing.py SCENARIO PATH` with a SCENARIO of those below and the PATH of an ipc socket. Each
prints "begun" once it is at it. ZMTP is spoken by hand (rfc.zeromq.org/spec/23), since libzmq
itself keeps a message back until it is whole, and reads whatever comes.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import socket
import subprocess
import sys
import time

import zmq

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY" + b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
COMMAND, MORE, LARGE = 0x04, 0x01, 0x02


def raw(path):
    """A connected socket that says nothing."""
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(60)
    peer.connect(path)
    return peer


def shaken(path):
    """One that has shaken hands, and is a DEALER from here on."""
    peer = raw(path)
    peer.sendall(GREETING + bytes([COMMAND, len(READY)]) + READY)
    heard = b""
    while b"READY" not in heard or not heard.endswith(b"Identity\0\0\0\0"):
        said = peer.recv(1000)
        if not said:
            raise ConnectionResetError
        heard += said
    return peer


def frame(body, flags=0):
    """A frame of ZMTP."""
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | LARGE]) + len(body).to_bytes(8, "big") + body


def request(number, op, **args):
    """A request's body."""
    return json.dumps({"id": number, "client": "abuser", "op": op, "args": args}).encode()


@contextlib.contextmanager
def abuser(scenario, path):
    """Have a process at it, which gives way to all others; once it has begun."""
    process = subprocess.Popen(
        [sys.executable, __file__, scenario, path],
        stdout=subprocess.PIPE,
        env=os.environ | {"ABUSER_NICE": "10"},
    )
    try:
        assert process.stdout.readline() == b"begun\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def begun():
    sys.stdout.write("begun\n")
    sys.stdout.flush()


def in_flight(path, many=100_000):
    """Requests without end, so many of them unanswered; the replies are read."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.sndhwm = dealer.rcvhwm = 0
        dealer.connect(f"ipc://{path}")
        body = request(1, "get", key="k")
        for number in range(many):
            dealer.send(body)
            if number == 1000:
                begun()
        while True:
            dealer.recv()
            dealer.send(body)


def never_reads(path, op="dump", many=1000):
    """Asks for much and reads nothing; again, when it is hung up on."""
    peers = []
    told = False
    while True:
        with contextlib.suppress(OSError):
            peer = shaken(path)
            peers = [*peers[-10:], peer]
            body = request(1, op) if op != "get" else request(1, "get", key="large")
            peer.setblocking(False)
            for _ in range(many):
                select.select([], [peer], [], 1)
                peer.send(frame(body))
        if not told:
            begun()
            told = True
        time.sleep(0.2)


def slow_reader(path):
    """Dumps, read by some KiB now and then."""
    peer = shaken(path)
    for number in range(3):
        peer.sendall(frame(request(number, "dump")))
    begun()
    while peer.recv(4096):
        time.sleep(0.01)


def raw_flood(path):
    """Connections that say nothing, as many and as fast as can be."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    peers = []
    begun()
    while True:
        with contextlib.suppress(OSError):
            peer = socket.socket(socket.AF_UNIX)
            peer.settimeout(1)
            peer.connect(path)
            peers.append(peer)
        if len(peers) > hard - 200:
            for each in peers[: hard // 2]:
                each.close()
            del peers[: hard // 2]


def full_flood(path):
    """Connections that shake hands, ask once, and hang up."""
    begun()
    while True:
        with contextlib.suppress(OSError):
            peer = shaken(path)
            peer.sendall(frame(request(1, "ping")))
            peer.recv(1000)
            peer.close()


def silent_flood(path):
    """Connections that shake hands and then are silent; they stay."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    peers = []
    begun()
    while True:
        with contextlib.suppress(OSError):
            peers.append(shaken(path))
        if len(peers) > hard - 200:
            for each in peers:
                each.close()
            peers.clear()


def half_open(path, many=500):
    """Connections that greet by halves, and come again when they are hung up on."""
    poller = select.poll()
    peers = {}
    told = False
    while True:
        while len(peers) < many:
            peer = raw(path)
            peer.sendall(GREETING[:20])
            poller.register(peer, select.POLLHUP)
            peers[peer.fileno()] = peer
        if not told:
            begun()
            told = True
        for descriptor, _ in poller.poll(1000):
            poller.unregister(descriptor)
            peers.pop(descriptor).close()


def never_ends(path, size=60_000, pause=0.0):
    """A message of frames without end; begun anew, when it is hung up on."""
    told = False
    while True:
        with contextlib.suppress(OSError):
            peer = shaken(path)
            peer.sendall(frame(request(1, "ping")))
            part = frame(bytes(size), MORE)
            while True:
                peer.sendall(part)
                if not told:
                    begun()
                    told = True
                if pause:
                    time.sleep(pause)


def many_frames(path):
    """Whole messages, each of very many frames."""
    part = frame(b"x", MORE) * 100_000 + frame(b"x")
    told = False
    while True:
        with contextlib.suppress(OSError):
            peer = shaken(path)
            while True:
                peer.sendall(part)
                if not told:
                    begun()
                    told = True


def parked(path, many=100_000):
    """Requests that wait: for locks, and for changes; again and again."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.sndhwm = dealer.rcvhwm = 0
        dealer.connect(f"ipc://{path}")
        for number in range(many):
            if number % 2:
                ask = {"name": "n", "holder": f"h{number % 100}", "ask": number, "ttl_ms": 10**9}
                dealer.send(request(number, "lock", **ask))
            else:
                dealer.send(request(number, "watch", prefix=f"p{number}", since=2**53 - 1))
        begun()
        while True:
            dealer.recv()


def parts(path):
    """Requests in parts that never end."""
    told = False
    while True:
        with contextlib.suppress(OSError):
            peer = shaken(path)
            for number in range(10**9):
                items = {f"{number}-{n}": "x" * 100 for n in range(300)}
                body = {"id": number % 10, "client": "abuser", "op": "set_many", "more": True}
                peer.sendall(frame(json.dumps(body | {"args": {"items": items}}).encode()))
                if not told:
                    begun()
                    told = True


def nothing(_path):
    """As hungry for the processor as the others, and far from the daemon."""
    begun()
    while True:
        pass


SCENARIOS = {
    name: globals()[name]
    for name in (
        "in_flight",
        "never_reads",
        "slow_reader",
        "raw_flood",
        "full_flood",
        "silent_flood",
        "half_open",
        "never_ends",
        "many_frames",
        "parked",
        "parts",
        "nothing",
    )
}


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        os.nice(int(os.environ.get("ABUSER_NICE", "0")))
        SCENARIOS[sys.argv[1]](sys.argv[2])
