"""What a daemon tells of itself in `info`: all that is specified, and nothing else, and true."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import socket
import threading
from pathlib import Path

import pytest

from pickledbd import usage
from pickledbd.status import SLICES_MS, Status
from pickledbd_client import InvalidValue, LockLost
from support import PATIENCE, Daemon, wait_until

SPEC = (Path(__file__).parents[2] / "protocol" / "SPEC.md").read_text(encoding="utf-8")
SECTION = SPEC.split("\n### info\n")[1].split("\n### ")[0]


def specified(part):
    """The members in a table, each with its type and unit."""
    rows = re.findall(r"^\| (`[^|]*) \| ([^|]*) \| ([^|]*) \|$", part, re.MULTILINE)
    return {name: kind for names, kind, _ in rows for name in re.findall(r"`(\w+)`", names)}


TYPES = {
    "array": (list,),
    "object": (dict,),
    "string": (str,),
    "strings": (str,),
    "boolean": (bool,),
    "seconds": (int, float),
    "milliseconds": (int, float),
}
"""By the first word of what the table tells; all else is counted in integers."""


def is_of(kind, value):
    """Whether a value is of a type that the table tells."""
    if value is None:
        return "null" in kind
    return type(value) in TYPES.get(re.match(r"\w+", kind)[0], (int,))


def grown(before, after):
    """What has changed of what is counted."""
    return {name: after[name] - before[name] for name in COUNTED if after[name] != before[name]}


COUNTED = (
    *("slow_operations", "connections_accepted", "connections_refused", "hung_up"),
    *("expired_keys", "changes_told", "locks_granted", "large_batches", "saves", "saves_failed"),
)


def asked(before, after):
    requests = {
        name: count - before["requests"].get(name, 0) for name, count in after["requests"].items()
    }
    return {name: count for name, count in requests.items() if count}


def test_it_tells_just_what_is_specified(db):
    db.set("a", 1)
    db.save()
    members, of_slow = SECTION.split("**Slow operations.**")
    table = specified(members)
    told = db.info()
    assert told.keys() == table.keys()
    assert {name: told[name] for name in told if not is_of(table[name], told[name])} == {}
    example = json.loads(re.search(r"^\{\"id\": 22, \"result\": (.*)\}$", SECTION, re.MULTILINE)[1])
    assert list(example) == list(told)
    assert len(json.dumps(told)) < 4000
    assert {"time", "command", "ms", "how"} <= specified(of_slow).keys()


def test_a_slow_operation_is_told_as_specified(location):
    table = specified(SECTION.split("**Slow operations.**")[1])
    daemon = Daemon(location, "--slow-ms", "0.0001")
    with contextlib.closing(daemon.client()) as db:
        db.set_many({"a": 1})
        db.set("a", 1)
        told = db.info()["slow"]
    assert told[0]["time"] >= told[-1]["time"]
    for each in told:
        assert {name for name in each if not is_of(table[name], each[name])} <= {
            "peer_uid",
            "peer_pid",
        }
    assert {name for each in told for name in each} == table.keys() - {"peer_address"}


def test_requests_are_counted_by_command(db):
    before = db.info()
    db.set("a", 1)
    db.set("b", 1)
    db.incr("b")
    with db.batch() as batch:
        batch.set("c", 1)
        batch.remove("c")
    assert db.all() == ["a", "b"]
    after = db.info()
    assert asked(before, after) == {"set": 2, "incr": 1, "batch": 1, "all": 1, "info": 1}
    assert grown(before, after) == {}
    assert after["bytes_in"] - before["bytes_in"] > 300
    assert after["bytes_out"] - before["bytes_out"] > 300


def test_one_in_parts_counts_once(db):
    before = db.info()
    db.set_many({str(number): "x" * 100 for number in range(5000)})
    after = db.info()
    assert asked(before, after) == {"set_many": 1, "info": 1}
    assert grown(before, after) == {"large_batches": 1}


def test_errors_are_counted_by_code(db, dealer):
    before = db.info()
    db.set("a", "text")
    with pytest.raises(InvalidValue):
        db.incr("a")
    with pytest.raises(LockLost):
        db.set("a", 1, token=5)
    with pytest.raises(LockLost):
        db.set_many({str(number): 1 for number in range(5000)}, token=5)
    dealer.send(b"no JSON")
    dealer.recv()
    after = db.info()
    assert before["errors"] == {}
    assert after["errors"] == {"invalid_value": 1, "lock_lost": 2, "protocol": 1}
    assert asked(before, after) == {"set": 2, "incr": 1, "set_many": 1, "info": 1}


def test_what_is_granted_told_and_expired_is_counted(db, other):
    before = db.info()
    with db.lock("x"), db.lock("y"):
        pass
    seen = []
    follower = threading.Thread(target=lambda: seen.extend(other.watch("user:")))
    follower.start()
    wait_until(lambda: db.info()["waiting"], "the watch to begin")
    db.set("user:1", 1)
    db.set("job:1", 1)
    db.set("user:2", 2)
    wait_until(lambda: len(seen) == 2, "the changes")
    other.close()
    follower.join(PATIENCE)
    db.set("short", 1, ttl=0.001)
    wait_until(lambda: db.info()["expired_keys"], "the key to be removed")
    found = grown(before, db.info())
    del found["connections_accepted"]
    assert found == {"locks_granted": 2, "changes_told": 2, "expired_keys": 1}


def test_a_change_counts_for_each_who_is_told(wired):
    for peer in (b"one", b"two"):
        wired.receive("watch", {}, peer=peer)
        (since,) = {reply["result"]["seq"] for _, reply in wired.turn()}
        wired.receive("watch", {"since": since}, peer=peer)
        assert wired.turn() == []
    wired.receive("set", {"key": "a", "value": 1})
    assert len(wired.turn()) == 3
    assert wired.ask("info")["changes_told"] == 2


def test_a_grant_that_is_undone_does_not_count(wired):
    asks = {"name": "x", "holder": "h", "ask": 1, "ttl_ms": 60_000}
    store = wired.engine._store
    start = store.logged()
    wired.engine._parking.handle(b"p", _request("lock", asks))
    wired.engine._parking.grants()
    assert store.locks.grants_made == 1
    store.roll_back(start)
    assert store.locks.grants_made == 0


def _request(op, args):
    from pickledbd_protocol import COMMANDS, Request  # noqa: PLC0415 - only this needs them

    return Request(1, "c", None, COMMANDS[op], args)


def test_saves_and_what_goes_to_the_journal_are_counted(location):
    with contextlib.closing(Daemon(location, "--durability", "fsync").client()) as db:
        before = db.info()
        for number in range(5):
            db.set("a", number)
        after = db.info()
        assert after["journal_syncs"] - before["journal_syncs"] == 5
        assert after["journal_written"] - before["journal_written"] >= after["journal_bytes"] > 200
        db.save()
        saved = db.info()
        assert grown(after, saved) == {"saves": 1}
        assert saved["save_seconds"] == pytest.approx(
            saved["last_save_duration_ms"] / 1000, abs=1e-4
        )


def test_a_save_that_fails_counts_as_that(wired):
    wired.ask("set", key="a", value=1)
    (wired.path.parent / "my.db").mkdir()  # which no file can be put in the place of
    assert wired.ask("save")["code"] == "save_failed"
    told = wired.ask("info")
    assert (told["saves"], told["saves_failed"], told["errors"]) == (0, 1, {"save_failed": 1})


def test_connections_are_counted_and_take_descriptors(daemon, db):
    # The client has looked whether somebody is there, by a connection that it has closed since
    before = wait_until(lambda: (told := db.info())["clients"] == 1 and told, "it to be gone")
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            raw = stack.enter_context(socket.socket(socket.AF_UNIX))
            raw.connect(daemon.endpoint.removeprefix("ipc://"))
        wait_until(lambda: db.info()["clients"] == before["clients"] + 20, "all to be seen")
        after = db.info()
    assert grown(before, after) == {"connections_accepted": 20}
    assert 19 <= after["descriptors"] - before["descriptors"] <= 20  # which may be a moment later
    assert after["descriptors"] < after["descriptors_max"]
    wait_until(lambda: db.info()["descriptors"] <= before["descriptors"], "all to be given back")


def test_how_busy_it_was_is_told_in_seconds_and_slices(db):
    before = db.info()
    for number in range(50):
        db.set(str(number), number)
    after = db.info()
    assert list(after["slices"]) == [*map(str, SLICES_MS), "more"]
    made = sum(after["slices"].values()) - sum(before["slices"].values())
    assert made >= 50
    assert 0 < after["busy_seconds"] - before["busy_seconds"] < after["uptime"]
    assert after["cpu_seconds"] > before["cpu_seconds"]


@pytest.mark.parametrize(
    ("milliseconds", "bound"),
    [(0.0, 0), (0.1, 0), (0.11, 1), (99.9, 9), (100, 9), (1000, 10), (1001, 11)],
)
def test_a_slice_counts_under_the_least_bound_that_it_did_not_exceed(milliseconds, bound):
    status = Status("x", 1)
    status.slice(milliseconds / 1000)
    assert status.slices.index(1) == bound
    assert status.longest_slice_ms == pytest.approx(milliseconds)


def test_what_the_process_takes_is_what_the_system_tells():
    resident = usage.resident_bytes()
    assert 2**20 < resident <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 2**20
    assert usage.descriptors(0) == pytest.approx(len(list(Path("/proc/self/fd").iterdir())), abs=2)
    assert usage.descriptors_max() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_older_kernels_tell_of_descriptors_only_by_a_list(monkeypatch, tmp_path):
    for number in range(30):
        (tmp_path / str(number)).write_text("")
    monkeypatch.setattr(usage, "_found", [])
    monkeypatch.setattr(usage, "_DESCRIPTORS", _Listed(tmp_path))
    assert usage.descriptors(10) == 30
    assert usage.descriptors(500) == 520  # which is not listed again
    monkeypatch.setattr(usage, "_DESCRIPTORS", tmp_path / "nowhere")
    assert usage.descriptors(10) is None


class _Listed(type(Path())):
    """A directory whose size is 0."""

    def stat(self, **_):
        return type("found", (), {"st_size": 0})


def test_a_reset_begins_only_what_is_longest_anew(wired):
    wired.ask("set", key="a", value=1)
    wired.engine._status.slice(5.0)
    assert wired.ask("info")["longest_slice_ms"] == 5000
    assert wired.ask("info", reset=True)["longest_slice_ms"] == 5000
    told = wired.ask("info")
    assert (told["longest_slice_ms"], told["busy_seconds"], told["requests"]["set"]) == (0, 5, 1)
