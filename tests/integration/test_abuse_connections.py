"""Connections without end, by halves or in silence: others go on, and the daemon lives."""

from __future__ import annotations

import contextlib
import resource
import socket
import time

import pytest

from abusing import GREETING, abuser, frame, raw, request, shaken
from bystander import Bystander, grown, resident
from pickledbd_client import RequestTimeout
from pickledbd_client.channel import _knock
from support import PATIENCE, Daemon, wait_until


def path_of(daemon):
    return daemon.endpoint.removeprefix("ipc://")


def few_descriptors(number):
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))


def is_closed(peer):
    """Whether the daemon has hung up; waits for it."""
    with contextlib.suppress(ConnectionResetError):
        while peer.recv(1000):
            pass
    return True


@pytest.mark.parametrize("descriptors", [256, 1024])
@pytest.mark.parametrize("flood", ["raw_flood", "silent_flood", "full_flood"])
def test_a_flood_does_not_reach_the_limit_of_descriptors(location, flood, descriptors):
    """libzmq would abort the process there."""
    daemon = Daemon(location, preexec_fn=few_descriptors(descriptors))
    with Bystander(daemon) as bystander:
        bystander.works(1.0)
        with abuser(flood, path_of(daemon)):
            bystander.works(3.0)
        bystander.was_hardly_disturbed()
        with contextlib.closing(daemon.client()) as late:  # there is room again
            assert late.ping()
    err = daemon.stop()
    assert "for want of descriptors" in err
    if flood != "full_flood":
        assert "connections are open, so further ones have to wait" in err


def test_who_comes_while_there_is_no_room_waits_and_is_served(location):
    daemon = Daemon(location, preexec_fn=few_descriptors(256))
    with contextlib.closing(daemon.client()) as db:
        limit = db.info()["limits"]["clients"]
        silent = [shaken(path_of(daemon)) for _ in range(limit)]
        with abuser("silent_flood", path_of(daemon)):
            wait_until(lambda: db.info()["hung_up"] > 0, "some to be hung up on")
        with contextlib.closing(daemon.client()) as late:
            assert late.ping()
        for peer in silent:
            peer.close()
    daemon.stop()


def test_half_a_handshake_is_not_waited_for_long(daemon, db):
    halves = []
    for said in (b"", GREETING[:1], GREETING[:20], GREETING, GREETING + b"\x04"):
        peer = raw(path_of(daemon))
        peer.sendall(said)
        halves.append(peer)
    assert all(is_closed(peer) for peer in halves)
    wait_until(lambda: db.info()["clients"] == 1, "the daemon to know of it")
    for peer in halves:
        peer.close()


def test_half_open_peers_leave_others_alone(daemon):
    with Bystander(daemon) as bystander:
        bystander.works(1.0)
        with abuser("half_open", path_of(daemon)):
            bystander.works(2.0)
        bystander.was_hardly_disturbed()


def test_idle_clients_are_not_woken(daemon):
    """Neither by keepalives nor by looks at them."""
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(contextlib.closing(daemon.client())) for _ in range(5)]
        assert all(db.ping() for db in idle)
        peer = stack.enter_context(shaken(path_of(daemon)))
        peer.sendall(frame(request(1, "ping")))
        assert peer.recv(1000)
        peer.settimeout(2)
        with pytest.raises(TimeoutError):
            peer.recv(1)


def test_the_queue_of_a_daemon_that_accepts_nothing_yet_is_waited_for(tmp_path):
    """Where it is full, the system says so at once, to who would not wait for ever."""
    path = str(tmp_path / "s.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(path)
            begun = time.monotonic()
            with pytest.raises(RequestTimeout):
                _knock(f"ipc://{path}", time.monotonic() + 0.3)
            assert time.monotonic() - begun >= 0.3
            listening.accept()[0].close()
            _knock(f"ipc://{path}", time.monotonic() + PATIENCE)


def test_a_flood_of_connections_leaves_no_memory_behind(daemon):
    with Bystander(daemon) as bystander:
        bystander.works(0.5)
        before = resident(daemon)
        with abuser("full_flood", path_of(daemon)):
            bystander.works(2.0)
        assert grown(daemon, before) < 30
