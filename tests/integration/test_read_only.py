"""Endpoints for clients that only read, beside those for all; and daemons with no others."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import zmq

from pickledbd_client import AsyncPickleDB, NotAllowed, PickleDB, Resync
from support import PATIENCE, Daemon, wait_until


@pytest.fixture
def both(location, tmp_path):
    """A daemon with two sockets: as the ready line names them."""
    daemon = Daemon(
        location, "--bind-read-only", f"ipc://{tmp_path}/r", "--bind", f"ipc://{tmp_path}/w"
    )
    yield daemon
    if daemon.process.poll() is None:
        daemon.check_and_stop()


@pytest.fixture
def writer(both, tmp_path):  # noqa: ARG001 - whose it is
    with contextlib.closing(PickleDB(f"ipc://{tmp_path}/w", timeout=PATIENCE)) as db:
        db["a"] = 1
        yield db


@pytest.fixture
def reader(writer, tmp_path):  # noqa: ARG001 - there is to be something to read
    with contextlib.closing(PickleDB(f"ipc://{tmp_path}/r", timeout=PATIENCE)) as db:
        yield db


def test_a_reader_reads_and_changes_nothing(writer, reader, tmp_path):
    assert (reader["a"], dict(reader.items()), reader.all(), len(reader)) == (1, {"a": 1}, ["a"], 1)
    assert reader.get_many(["a"]) == {"a": 1}
    assert reader.info()["read_only"] is True
    assert writer.info()["read_only"] is False
    for change in (
        lambda: reader.set("a", 2),
        lambda: reader.set_many({str(number): "x" * 1000 for number in range(1000)}),
        lambda: reader.purge(),
        lambda: reader.save(),
        lambda: reader.info(reset=True),
        lambda: reader.incr("a"),
        lambda: reader.lock("x", timeout=1).acquire(),
    ):
        with pytest.raises(NotAllowed, match=f"may only read: clients at ipc://{tmp_path}/r"):
            change()
    with pytest.raises(NotAllowed):
        reader.db = {}
    assert writer.db == {"a": 1}
    assert writer.info()["locks"] == writer.info()["waiting"] == 0


def test_a_reader_that_was_refused_a_lock_leaves_the_daemon_in_peace(writer, reader):
    for _ in range(3):
        with pytest.raises(NotAllowed):
            reader.lock("x").acquire()
    keeper = reader._locks.keeper()
    wait_until(lambda: not keeper._leases, "the keeper to forget them")
    with writer.lock("x", timeout=0):
        pass


def test_a_reader_keeps_what_it_reads_as_long_as_it_is_current(writer, reader):
    assert reader["a"] == 1
    assert "a" in reader._cache.young
    assert reader["a"] == 1
    writer["a"] = 2
    assert reader["a"] == 2


def test_a_reader_watches(writer, reader):
    changes = reader.watch(since=0)
    assert isinstance(next(changes), Resync)
    writer["b"] = 2
    assert next(changes).value == 2
    changes.close()


@pytest.mark.usefixtures("both")
def test_the_end_of_a_with_saves_nothing_and_fails_not(tmp_path, writer):
    with PickleDB(f"ipc://{tmp_path}/r") as db:
        assert db["a"] == 1

    async def work():
        async with AsyncPickleDB(f"ipc://{tmp_path}/r") as db:
            assert await db.get("a") == 1
            with pytest.raises(NotAllowed):
                await db.set("a", 2)

    asyncio.run(work())
    assert writer.info()["dirty"] == 1


def test_who_comes_by_the_path_may_do_everything(both, tmp_path, writer):
    """Although the endpoint for reading was named first."""
    assert writer.info()["endpoints"] == [f"ipc://{tmp_path}/w", f"ipc://{tmp_path}/r"]
    with both.client() as db:
        db["b"] = 1


def test_beside_the_private_socket_there_may_be_one_for_readers(location, tmp_path):
    daemon = Daemon(location, "--bind-read-only", f"ipc://{tmp_path}/r")
    with daemon.client() as db, PickleDB(f"ipc://{tmp_path}/r") as reader:
        db["a"] = 1
        assert reader["a"] == 1
        assert "a" in reader._cache.young, "the counters lie beside the shared socket"
        with pytest.raises(NotAllowed):
            reader["a"] = 2
    daemon.check_and_stop()


def test_a_daemon_of_which_all_clients_only_read(location):
    location.write_text('{"a": 1}')
    daemon = Daemon(location, "--read-only-clients")
    with daemon.client() as db:
        assert db["a"] == 1
        with pytest.raises(NotAllowed, match="may only read"):
            db["a"] = 2
    daemon.stop()
    assert location.read_text() == '{"a": 1}', "nothing was changed, so nothing is written"


@pytest.mark.usefixtures("both")
def test_what_a_reader_sends_before_it_leaves_is_not_done(tmp_path, writer):
    """Whoever has its descriptor when the daemon reads it."""
    body = b'{"id":%d,"client":"c","op":"set","args":{"key":"a","value":2}}'
    with zmq.Context() as context:
        for number in range(300):
            with context.socket(zmq.DEALER) as dealer:
                dealer.linger = 1000
                dealer.connect(f"ipc://{tmp_path}/r")
                dealer.send(body % number)
            if number % 10 == 0:
                with contextlib.closing(PickleDB(f"ipc://{tmp_path}/w")) as other:
                    assert other["a"] == 1
    assert writer["a"] == 1
