"""Messages that never end, of far too many frames, or far too many: memory stays bounded."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time

import pytest
import zmq

from abusing import MORE, abuser, frame, request, shaken
from bystander import Bystander, grown, resident
from pickledbd_client import AsyncPickleDB, PickleDB
from support import PATIENCE, Daemon, wait_until

MIB = 2**20
SPARE_MIB = 64
"""What the guard blames nobody for."""


def path_of(daemon):
    return daemon.endpoint.removeprefix("ipc://")


def test_a_message_that_never_ends_is_ended(location):
    daemon = Daemon(location, "--max-request", 1)
    with Bystander(daemon) as bystander:
        bystander.works(1.0)
        before = resident(daemon)
        with abuser("never_ends", path_of(daemon)) as process:
            most = 0
            for _ in range(10):
                bystander.works(0.25)
                most = max(most, grown(daemon, before))
            pid = process.pid
        bystander.was_hardly_disturbed()
        assert most < 4 * SPARE_MIB
        wait_until(lambda: grown(daemon, before) < SPARE_MIB, "memory to be given back")
    err = daemon.stop()
    assert f"pid {pid}, who sends a message that never ends" in err
    assert len(re.findall("hung up", err)) < 10


def test_one_that_grows_slowly_and_was_begun_by_a_client_is_ended_too(location):
    daemon = Daemon(location, "--max-request", 1)
    with contextlib.closing(daemon.client()) as db, shaken(path_of(daemon)) as peer:
        peer.sendall(frame(request(1, "ping")))
        part = frame(bytes(1000), MORE) * 100

        def drip():
            for number in range(5000):
                peer.sendall(part)
                if number % 10 == 0:
                    time.sleep(0.01)

        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            drip()
        assert db.ping()
    assert "never ends" in daemon.stop()


def test_who_sends_a_large_message_slowly_is_left_alone(daemon, db):
    """As is everybody else meanwhile, whatever they do."""
    size = 150 * MIB
    body = b'{"id":1,"client":"c","op":"set","args":{"key":"k","value":"%b"}}' % (b"x" * size)
    message = frame(body)
    with shaken(path_of(daemon)) as peer:
        for at in range(0, len(message), 3 * MIB):
            peer.sendall(message[at : at + 3 * MIB])
            if at % (30 * MIB) == 0:
                db.set_many({f"n{at} {n}": n for n in range(5000)})
                assert len(db.items()) >= 5000
        answer = b""
        while b'"id":1,"result"' not in answer:
            answer += peer.recv(1000)
    assert len(db.get("k")) == size
    db.remove("k")
    assert db.info()["hung_up"] == 0


def test_heavy_use_is_nobody_s_fault(daemon):
    """Loads, dumps and saves, beside clients that are idle."""
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(contextlib.closing(daemon.client())) for _ in range(5)]
        busy = [stack.enter_context(contextlib.closing(daemon.client())) for _ in range(2)]
        for number in range(4):
            for n, db in enumerate(busy):
                db.set_many({f"{number} {n} {m}": "x" * 1000 for m in range(10_000)})
                assert len(dict(db.items())) == (2 * number + n + 1) * 10_000
                db.save()
        busy[0].purge()
        info = idle[0].info()
        assert info["hung_up"] == 0
        assert info["clients"] == 7


def test_what_is_not_stored_any_more_is_nobody_s_fault(location):
    """It is resident for a while, but memory has not grown by it."""
    daemon = Daemon(location, "--max-request", 4)
    with contextlib.closing(daemon.client()) as db:
        for n in range(40):
            db.set_many({f"{n} {m}": "x" * 500 for m in range(5000)})
        db.purge()
        for n in range(30):
            db.set("k", "y" * (2 * MIB + n))
        assert db.info()["hung_up"] == 0
    daemon.stop()


def test_messages_of_very_many_frames_are_not_taken_one_by_one(daemon):
    with Bystander(daemon) as bystander:
        bystander.works(1.0)
        before = resident(daemon)
        with abuser("many_frames", path_of(daemon)) as process:
            bystander.works(2.5)
            pid = process.pid
        bystander.was_hardly_disturbed()
        assert grown(daemon, before) < 2 * SPARE_MIB
    assert f"pid {pid}, who sent a message of over 16 frames" in daemon.stop()


def test_large_batches_one_behind_the_other_are_nobody_s_fault(location):
    """Parsed, each takes many times what its text does."""
    daemon = Daemon(location, "--max-request", 16)
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.rcvtimeo = int(PATIENCE * 1000)
        dealer.connect(daemon.endpoint)
        items = b",".join(b'"%d":1' % n for n in range(10**7, 10**7 + 2**20))
        for number in range(1, 4):
            body = b'{"id":%d,"client":"c","op":"set_many","args":{"items":{%b}}}'
            dealer.send(body % (number, items))
        for number in range(1, 4):
            while b"more" in (reply := dealer.recv()):
                pass
            assert reply == b'{"id":%d,"result":{}}' % number
    daemon.stop()


def test_a_client_may_send_many_batches_at_once(daemon):
    """What comes behind a large one waits, be it more than some replies."""
    items = {f"k{n}": "x" * 100 for n in range(60_000)}

    async def send():
        db = AsyncPickleDB(daemon.endpoint, timeout=PATIENCE)
        await asyncio.gather(*(db.set_many(items) for _ in range(20)))
        info = await db.info()
        await db.close()
        return info

    info = asyncio.run(send())
    assert (info["keys"], info["hung_up"]) == (60_000, 0)


def test_nobody_else_of_the_same_machine_is_kept_out(location):
    """By tcp it is not known which process it was."""
    daemon = Daemon(location, "--bind", "tcp://127.0.0.1:*")
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.connect(daemon.endpoint)
        dealer.send_multipart([b"x"] * 20)
        with contextlib.closing(PickleDB(daemon.endpoint)) as db:
            wait_until(lambda: db.info()["hung_up"], "the daemon to hang up")
        with contextlib.closing(PickleDB(daemon.endpoint, timeout=5)) as another:
            assert another.ping()
    assert "over 16 frames" in daemon.stop()


def test_a_client_with_100_000_requests_in_flight_is_one_of_many(daemon):
    with Bystander(daemon) as bystander:
        bystander.works(1.0)
        before = resident(daemon)
        with abuser("in_flight", path_of(daemon)):
            bystander.works(2.0)
        bystander.was_hardly_disturbed()
        assert grown(daemon, before) < SPARE_MIB


def test_100_000_that_are_in_flight_are_all_answered(daemon):
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.sndhwm = dealer.rcvhwm = 0
        dealer.rcvtimeo = int(PATIENCE * 1000)
        dealer.connect(daemon.endpoint)
        many = 100_000
        for number in range(many):
            dealer.send(b'{"id":%d,"client":"c","op":"ping"}' % number)
        for number in range(many):
            assert dealer.recv() == b'{"id":%d,"result":{}}' % number


def test_so_many_wait_and_others_go_on(daemon):
    with Bystander(daemon) as bystander:
        bystander.works(1.0)
        before = resident(daemon)
        with abuser("parked", path_of(daemon)):
            bystander.works(2.0)
            with contextlib.closing(daemon.client()) as db:
                assert db.info()["waiting"] == 10_000  # half of what all may have
                with db.lock("another", timeout=PATIENCE):
                    pass
        bystander.was_hardly_disturbed()
        assert grown(daemon, before) < SPARE_MIB
        with contextlib.closing(daemon.client()) as db:
            wait_until(lambda: db.info()["waiting"] == 0, "them to be forgotten")


def test_requests_in_parts_that_never_end_take_what_one_may(location):
    daemon = Daemon(location, "--max-request", 8)
    with Bystander(daemon) as bystander:
        bystander.works(1.0)
        before = resident(daemon)
        with abuser("parts", path_of(daemon)):
            bystander.works(2.5)
        bystander.was_hardly_disturbed()
        assert grown(daemon, before) < SPARE_MIB
        assert bystander.keys() == ["bystander"]
    daemon.stop()
