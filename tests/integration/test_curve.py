"""tcp with keys: who is let in, who is refused and how it is told, and what happens at changes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import re
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import zmq

from curved import Keyed, said
from managed import activated, listening
from pickledbd_client import LockLost, NotAllowed, PickleDB, Resync, Unavailable
from support import PATIENCE, Daemon, in_fork, wait_until

QUICK = 10.0
"""Seconds that a refusal takes at most: far less than a timeout, on a busy machine too."""


@pytest.fixture
def keyed(tmp_path):
    """A daemon that lets ann in."""
    keyed = Keyed(tmp_path)
    keyed.authorize("ann")
    yield keyed
    if keyed.daemon.process.poll() is None:
        keyed.daemon.check_and_stop()


def refused(keyed, name, **options):
    """What is told to who comes so and is not let in, and how soon."""
    began = time.monotonic()
    with pytest.raises((NotAllowed, Unavailable)) as caught:
        keyed.client(name, **options)
    assert time.monotonic() - began < QUICK
    assert keyed.tcp in str(caught.value)
    return caught.value


ADDRESS = r"127\.0\.0\.1(:\d+(, key ann)?)?"


def logged(keyed, why):
    """Wait until a refusal is in the log, with the address."""
    said(keyed.daemon, rf"refused {ADDRESS} at {re.escape(keyed.tcp)}: .*{re.escape(why)}")


def test_who_has_an_authorized_key_is_served_also_beside_a_socket(keyed):
    with keyed.client("ann") as ann, PickleDB(keyed.ipc) as local:
        ann["a"] = 1
        assert local["a"] == 1
        local["a"] = 2
        assert ann["a"] == 2
        assert ann.info()["read_only"] is False
        assert ann.info()["endpoints"] == [keyed.ipc, keyed.tcp], "the best one first"
    assert "refused" not in keyed.daemon.stop()


def test_an_unknown_key_is_refused(keyed):
    error = refused(keyed, "eve")
    assert isinstance(error, NotAllowed)
    assert "eve.key_secret" in str(error)
    assert "--authorized-keys" in str(error)
    public = (keyed.folder / "eve.key").read_text().split('"')[1]
    logged(keyed, f"not an authorized one: {public}")


def test_by_ipv6_it_is_the_same(keyed):
    keyed.daemon.stop()
    keyed.daemon = Daemon(
        keyed.folder / "my.db",
        "--bind",
        "tcp://[::1]:*",
        *keyed.key_options(),
        "--read-only-clients",
    )
    keyed.tcp = keyed.daemon.endpoint
    with keyed.client("ann") as ann:
        assert ann.info()["read_only"] is True
    for name in ("eve", None):
        assert isinstance(refused(keyed, name), NotAllowed)
    text = said(keyed.daemon, "shows no key")
    assert re.search(r"refused \[::1\]:\d+ at tcp://\[::1\]:\d+: its key is not", text)
    keyed.daemon.stop()


def test_who_shows_no_key_is_refused(keyed):
    error = refused(keyed, None)
    assert isinstance(error, NotAllowed)
    assert "curve=" in str(error)
    logged(keyed, "shows no key")


def test_a_bare_socket_without_a_key_is_refused(keyed):
    with zmq.Context() as context, keyed.dealer(context, None) as dealer:
        dealer.immediate = True
        dealer.connect(keyed.tcp)
        logged(keyed, "shows no key")
        assert not dealer.poll(100, zmq.POLLOUT)


@pytest.mark.parametrize("text", [b"GET / HTTP/1.0\r\n\r\n", bytes(30)], ids=repr)
def test_who_speaks_something_else_is_refused_and_logged(keyed, text):
    with socket.create_connection(("127.0.0.1", int(keyed.port)), PATIENCE) as peer:
        assert peer.recv(1) == b"\xff"
        wait_until(lambda: keyed.told()["clients"] == 2, "the daemon to know of it")
        peer.sendall(text)
        with contextlib.suppress(ConnectionResetError):
            while peer.recv(1000):
                pass
    logged(keyed, "it shows no key")


def test_who_leaves_in_the_midst_of_the_handshake_is_not_taken_for_one_without_keys(keyed):
    with socket.create_connection(("127.0.0.1", int(keyed.port)), PATIENCE) as peer:
        assert peer.recv(1) == b"\xff"
        wait_until(lambda: keyed.told()["clients"] == 2, "the daemon to know of it")
    logged(keyed, "it shows no key before it leaves")
    assert "as a client without curve does" not in keyed.daemon.stop()


def test_who_takes_another_for_the_daemon_is_told_so(keyed):
    keyed.files("eve")
    error = refused(keyed, "ann", of="eve")
    assert "eve.key its public key?" in str(error)
    logged(keyed, "takes another public key")


def test_keys_are_not_shown_to_a_daemon_that_asks_for_none(tmp_path, daemon):
    keyed = Keyed(tmp_path / "other")
    keyed.daemon.kill()
    open_ = PickleDB  # by the same port, a daemon without keys
    keyed.daemon = type(daemon)(keyed.folder / "my.db", "--bind", keyed.tcp)
    error = refused(keyed, "ann")
    assert isinstance(error, NotAllowed)
    assert "--curve-key" in str(error)
    with open_(keyed.tcp) as db:
        assert db.ping()
    keyed.daemon.check_and_stop()


def test_the_errors_are_the_same_with_asyncio(keyed):
    async def work():
        for name in ("eve", None):
            with pytest.raises(NotAllowed, match=re.escape(keyed.tcp)):
                await keyed.async_client(name).ping()
        async with keyed.async_client("ann") as ann:
            await ann.set("a", 1)
            assert await ann.get("a") == 1

    asyncio.run(work())


def test_a_key_that_is_put_there_counts_at_once(keyed):
    refused(keyed, "bob")
    keyed.authorize("bob")
    with keyed.client("bob") as bob:
        assert bob.ping()


@pytest.mark.parametrize("way", ["removed", "replaced", "rewritten", "broken"])
def test_a_key_that_is_taken_back_is_hung_up_on_and_refused(keyed, way):
    there = keyed.authorized / "ann.key"
    keyed.authorize("bob")
    keyed.files("carl")
    ann, bob = keyed.client("ann", timeout=5.0), keyed.client("bob")
    assert ann.ping()
    watching = keyed.client("ann")
    seen = []

    def watch():
        try:
            seen.extend(watching.watch())
        except NotAllowed as error:
            seen.append(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    wait_until(lambda: keyed.told()["waiting"] == 1, "the watch to begin")
    if way == "removed":
        there.unlink()
    elif way == "replaced":
        shutil.copy(keyed.folder / "carl.key", there.with_suffix(".new"))
        os.replace(there.with_suffix(".new"), there)
    elif way == "rewritten":
        there.write_bytes((keyed.folder / "carl.key").read_bytes())
    else:
        there.write_text("nonsense")
    watcher.join(PATIENCE)
    assert isinstance(seen[-1], NotAllowed), "hung up on, it came again, and was refused"
    with pytest.raises(NotAllowed, match="does not let in"):
        ann.ping()
    refused(keyed, "ann")
    logged(keyed, "taken back")
    text = said(keyed.daemon, "not an authorized one")
    assert re.search(r"refused 127\.0\.0\.1:\d+, key ann at .*: its key was taken back", text)
    assert ("ann.key' is left out" in text) == (way == "broken")
    assert bob.ping(), "who still has a key goes on"
    if way in ("replaced", "rewritten"):
        with keyed.client("carl") as carl:
            assert carl.ping()
    keyed.authorize("ann")
    assert ann.ping(), "which is given again"


def test_what_somebody_holds_is_free_when_the_key_is_taken_back(keyed):
    """A lock, and what came so far of a request in parts."""
    lock = keyed.client("ann").lock("x", ttl=PATIENCE)
    assert lock.acquire()
    with zmq.Context() as context, keyed.dealer(context, "ann") as dealer:
        dealer.reconnect_ivl = -1
        dealer.connect(keyed.tcp)
        part = {"id": 1, "client": "c", "op": "set_many", "args": {"items": {"a": 1}}, "more": True}
        ping = {"id": 2, "client": "c", "op": "ping"}
        dealer.send(json.dumps(part).encode())
        dealer.send(json.dumps(ping).encode())
        assert json.loads(dealer.recv()) == {"id": 2, "result": {}}
        (keyed.authorized / "ann.key").unlink()
        with PickleDB(keyed.ipc, timeout=PATIENCE) as other, other.lock("x", timeout=QUICK):
            assert len(other) == 0
    keyed.authorize("ann")
    with pytest.raises(LockLost):
        lock.release()


def test_what_came_from_a_key_that_was_taken_back_is_not_done(keyed):
    """A connection that had not asked anything yet, and one that goes on asking."""
    with zmq.Context() as context, keyed.dealer(context, "ann") as dealer:
        dealer.immediate = True
        dealer.reconnect_ivl = -1
        dealer.connect(keyed.tcp)
        assert dealer.poll(PATIENCE * 1000, zmq.POLLOUT)
        (keyed.authorized / "ann.key").unlink()
        keyed.authorize("bob")
        with keyed.client("bob") as bob:  # by whom the daemon knows of the change
            assert bob.ping()
            body = {"id": 1, "client": "c", "op": "set", "args": {"key": "a", "value": 1}}
            dealer.send(json.dumps(body).encode())
            keyed.until_hung_up(dealer)
            assert "a" not in bob
    logged(keyed, "taken back")


def test_a_key_can_be_moved_between_reading_and_writing(keyed):
    ann = keyed.client("ann")
    ann["a"] = 1
    os.rename(keyed.authorized / "ann.key", keyed.authorized / "read-only" / "ann.key")
    logged(keyed, "has other rights now")
    wait_until(lambda: ann.info()["read_only"], "the client to come again")
    with pytest.raises(NotAllowed, match=r"set is not allowed .* key read-only/ann"):
        ann["a"] = 2
    assert ann["a"] == 1
    os.rename(keyed.authorized / "read-only" / "ann.key", keyed.authorized / "ann.key")
    wait_until(lambda: not ann.info()["read_only"], "the client to come again")
    ann["a"] = 3


def test_who_has_a_key_for_both_may_only_read(keyed):
    keyed.authorize("ann", "read-only")
    assert keyed.client("ann").info()["read_only"] is True


def test_a_restart_is_ridden_through(keyed):
    ann = keyed.client("ann")
    ann["a"] = 1
    changes = ann.watch(since=0)
    assert isinstance(next(changes), Resync)
    with ann.lock("x", ttl=30) as held:
        keyed.daemon.kill()
        keyed.start()
        assert ann.incr("a") == 2
        ann.set("b", 1, token=held.token)
        assert not held.lost
    assert isinstance(next(changes), Resync)
    other = keyed.client("ann")
    other["c"] = 1
    assert next(changes).key == "c"


def test_who_comes_while_a_daemon_ends_is_served_by_the_next(keyed):
    """Where systemd has the socket: the one hangs up in the midst of the handshake."""
    keyed.daemon.stop()
    options = keyed.key_options()
    with listening(("127.0.0.1", 0)) as there, ThreadPoolExecutor() as pool:
        endpoint = f"tcp://127.0.0.1:{there.getsockname()[1]}"
        ann = pool.submit(keyed.client, "ann", endpoint=endpoint)
        there.accept()[0].close()
        keyed.daemon = activated(keyed.folder / "my.db", there, options=options)
        assert ann.result(PATIENCE).ping()
        keyed.daemon.stop()


def test_locks_are_kept_and_freed_with_their_process(keyed):
    ann = keyed.client("ann")

    def hold():
        mine = keyed.client("ann")
        mine.lock("x", ttl=2.0).acquire()
        ann.set("held", 1)
        time.sleep(4)  # longer than the lock lasts if nobody renews it
        mine.set("kept", 1)

    assert in_fork(hold)
    assert ann["kept"] == 1
    with ann.lock("x", timeout=PATIENCE):
        pass


def test_a_pickled_one_and_a_fork_have_the_keys_too(keyed, monkeypatch):
    ann = keyed.client("ann")
    again = pickle.loads(pickle.dumps(ann))
    again["a"] = 1
    assert in_fork(lambda: ann.set("b", 2))
    assert ann.get_many(["a", "b"]) == {"a": 1, "b": 2}
    assert b"secret-key" not in pickle.dumps(ann)
    monkeypatch.setenv("PICKLEDBD_URL", keyed.tcp)
    monkeypatch.setenv("PICKLEDBD_CURVE", ":".join(map(str, keyed.files("ann"))))
    with PickleDB() as db:
        assert db["a"] == 1


def test_a_client_can_have_a_new_key_without_being_made_anew(keyed):
    ann = keyed.client("ann")
    assert ann.ping()
    keyed.files("new")
    for suffix in ("key_secret", "key"):
        os.replace(keyed.folder / f"new.{suffix}", keyed.folder / f"ann.{suffix}")
    keyed.authorize("ann")
    logged(keyed, "taken back")
    assert ann.ping()


def test_the_path_of_a_daemon_with_keys_leads_to_its_socket(keyed):
    with keyed.daemon.client() as db:
        db["a"] = 1
        assert db._link._idle[0].channel.endpoint == keyed.ipc


def test_a_flood_of_refusals_does_not_fill_the_log_nor_hold_up_who_is_in(keyed):
    ann = keyed.client("ann")
    for _ in range(300):
        with socket.create_connection(("127.0.0.1", int(keyed.port)), PATIENCE) as peer:
            peer.sendall(b"x" * 100)
    for number in range(40):
        with pytest.raises(NotAllowed):
            keyed.client("eve")
        ann["a"] = number
    assert ann["a"] == 39
    said_ = keyed.daemon.stop()
    assert 1 < said_.count("refused") < 20, said_


def test_a_lost_socket_beside_keys_is_bound_again_without_keys(keyed):
    os.unlink(keyed.ipc.removeprefix("ipc://"))
    said(keyed.daemon, "binding it again")

    def served():
        with contextlib.suppress(Unavailable):
            return PickleDB(keyed.ipc).ping()

    wait_until(served, "it to be bound again")
    refused(keyed, None)
    with keyed.client("ann") as ann:
        assert ann.ping()
