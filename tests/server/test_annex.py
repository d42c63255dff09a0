"""The annex, which holds when keys expire: written, read, damaged, another file's, and gone.

A kill may come at any step of a save, and a power cut after any; what was acknowledged is then
found, with its deadlines.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pickledbd import annex, clock, records, saver, snapshot
from pickledbd.expiry import living
from pickledbd.journal import journal_path
from pickledbd.recovery import recover
from pickledbd.snapshot import DataFile, Unreadable
from support import PATIENCE, run

HOUR = 3_600_000


@pytest.fixture(autouse=True)
def _clock_of_its_own(monkeypatch):
    """What a test does to the clock of this process ends with it."""
    monkeypatch.setattr(clock, "_ahead_ns", clock._ahead_ns)


def later(monkeypatch, ms):
    """Have the clock be so much later."""
    monkeypatch.setattr(clock, "_ahead_ns", clock._ahead_ns + ms * 1_000_000)


def held(table, now=None):
    """What a table holds that is not gone: keys, values and deadlines, in order."""
    found = []
    for keys, texts, deadlines in living(table.view(), clock.now_ms() if now is None else now):
        found += [(k, t, deadlines.get(k)) for k, t in zip(keys, texts, strict=True)]
    return found


def state(wired):
    return held(wired.engine._store._table)


def deadlines(wired):
    return {key: deadline for key, _, deadline in state(wired) if deadline is not None}


def annexes(path):
    return annex.find(path)


def own_annex(path):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.with_name(f"{path.name}.annex-{digest[:16]}")


def test_a_save_leaves_the_deadlines_beside_the_file_and_a_start_finds_them(wired, wire):
    wired.ask("set", key="stays", value=1)
    wired.ask("set", key="goes", value="2", ttl_ms=HOUR)
    wired.ask("set_many", items={f"s{n}": n for n in range(1000)}, ttl_ms=2 * HOUR)
    before = state(wired)
    assert len(deadlines(wired)) == 1001
    assert wired.ask("save") == {"saved": True}
    assert list(json.loads(wired.path.read_bytes())) == [key for key, _, _ in before]
    assert b"\0" not in wired.path.read_bytes()
    assert annexes(wired.path) == [own_annex(wired.path)]
    for journal in wired.path.parent.glob("*.journal.*"):
        assert b'"expires"' not in journal.read_bytes(), "so it is the annex that tells it"
    again = wire()
    assert state(again) == before
    assert len(again.engine._store._wheel._far.times) > 0
    assert again.ask("save") == {"saved": False}
    # and so does a start from that, and a journal behind it
    again.ask("persist", key="goes")
    again.ask("expire", key="stays", ttl_ms=HOUR)
    again.ask("set", key="s0", value="plain")
    again.ask("remove", key="s1")
    before = state(again)
    assert {"stays", "s2"} <= deadlines(again).keys()
    assert not {"goes", "s0", "s1"} & deadlines(again).keys()
    again = wire()
    assert state(again) == before
    assert again.ask("save") == {"saved": True}
    assert annexes(again.path) == [own_annex(again.path)]
    assert state(wire()) == before


def test_what_it_tells_is_not_kept_beside_the_values_that_it_was_put_into(wired, wire):
    for n in range(100):
        wired.ask("set", key=f"k{n}", value=n, ttl_ms=HOUR)
    wired.ask("save")
    before = state(wired)
    names = (wired.path, own_annex(wired.path))
    saved = [(name, name.read_bytes()) for name in names]
    again = wire()
    file = again.engine._saver._file
    assert state(again) == before
    assert file.annex.expires == {}
    # nor where another program puts an old file back, with its annex
    again.ask("persist", key="k0")
    again.ask("save")
    for name, content in saved:
        name.write_bytes(content)
    again.engine.refresh()
    assert state(again) == before
    assert len(again.engine._store._wheel._far.times) > 0
    assert file.annex.expires == {}


def test_a_start_tells_that_it_gets_on_with_each_thing_that_it_does_with_deadlines(
    wired, wire, monkeypatch
):
    monkeypatch.setattr(snapshot, "PROGRESS_KEYS", 50)
    monkeypatch.setattr(saver, "PART_BYTES", 200)
    many = {f"k{n}": n for n in range(1000)}
    wired.ask("set_many", items=many, ttl_ms=HOUR)
    wired.ask("save")
    own = own_annex(wired.path)
    size = wired.path.stat().st_size
    told = wire().progress
    read = [done for name, done in told if name == own.name]
    assert len(read) == len(own.read_bytes().splitlines()) > 1
    assert read[-1] == own.stat().st_size
    # Then they are put into the values, and the store learns of them
    steps = [("my.db", size * n // len(many)) for n in range(50, len(many) + 1, 50)]
    assert told[-2 * len(steps) :] == 2 * steps


@pytest.mark.parametrize("durability", ["save", "journal", "fsync"])
def test_there_is_none_where_it_would_tell_nothing(wire, durability):
    wired = wire("--durability", durability)
    wired.ask("set", key="a", value=1)
    wired.ask("save")
    assert annexes(wired.path) == []
    wired.ask("expire", key="a", ttl_ms=HOUR)
    wired.ask("save")
    assert annexes(wired.path) == [own_annex(wired.path)]
    wired.ask("persist", key="a")
    wired.ask("save")
    assert deadlines(wire("--durability", durability)) == {}
    assert [name for name in wired.left() if ".tmp-" in name] == []
    wired = wire("--durability", durability)
    wired.ask("set", key="b", value=1)
    wired.ask("save")
    assert annexes(wired.path) == []


def test_what_is_gone_is_neither_in_the_file_nor_in_the_annex(wired, wire, monkeypatch):
    wired.ask("set", key="a", value=1, ttl_ms=HOUR)
    wired.ask("set", key="b", value=2, ttl_ms=3 * HOUR)
    wired.ask("set", key="c", value=3)
    wired.ask("save")
    later(monkeypatch, 2 * HOUR)
    wired.receive("set", {"key": "c", "value": 4})
    wired.receive("save")  # before the turn ends, so that it is not reaped yet
    wired.turn()
    assert json.loads(wired.path.read_bytes()) == {"b": 2, "c": 4}
    assert b'"a"' not in own_annex(wired.path).read_bytes()
    assert b'"b"' in own_annex(wired.path).read_bytes()
    later(monkeypatch, 2 * HOUR)
    assert wired.ask("len") == {"len": 1}
    assert wired.ask("save") == {"saved": True}, "what has expired is a change"
    assert json.loads(wired.path.read_bytes()) == {"c": 4}
    assert annexes(wired.path) == []
    assert state(wire()) == [("c", b"4", None)]


def test_what_expires_while_no_daemon_runs_is_gone_at_the_next_start(wired, wire, monkeypatch):
    wired.ask("set", key="saved", value=1, ttl_ms=HOUR)
    wired.ask("save")
    wired.ask("set", key="journaled", value=1, ttl_ms=HOUR)
    wired.ask("set", key="stays", value=1)
    wired.close()
    real = clock._shown
    monkeypatch.setattr(clock, "_shown", lambda ahead: real(ahead) + 2 * HOUR)
    told = clock.time.clock_gettime_ns(clock._COUNTER) + 2 * HOUR * 1_000_000
    monkeypatch.setattr(clock.time, "clock_gettime_ns", lambda _counter: told)
    again = wire()
    for key in ("saved", "journaled"):
        assert "value" not in again.ask("get", key=key)
        assert again.ask("setdefault", key=key, value="new") == {"value": "new"}
        assert again.ask("ttl", key=key) == {"ttl_ms": None}
    assert again.ask("len") == {"len": 3}
    assert again.ask("all") == {"keys": ["stays", "saved", "journaled"]}
    again.ask("save")
    assert list(json.loads(again.path.read_bytes())) == ["stays", "saved", "journaled"]


# Where it is not as it was left


def left_behind(wire, **more):
    """A data file with an annex, and nothing in the journal; its path and what it held."""
    wired = wire()
    wired.ask("set", key="stays", value=1)
    for n in range(3):
        wired.ask("set", key=f"goes{n}", value="x", ttl_ms=HOUR + n)
    for name, args in more.items():
        wired.ask(name, **args)
    wired.ask("save")
    found = state(wired)
    wired.close()
    assert len(annexes(wired.path)) == 1
    return wired.path, found


LOCK = {"name": "l", "holder": "h", "ask": 1, "ttl_ms": HOUR}


def test_an_annex_that_was_removed_takes_nothing_but_the_deadlines(wire):
    path, found = left_behind(wire)
    assert "4 keys, of which 3 expire, 0 changes" in run("--check", path)[1]
    annexes(path)[0].unlink()
    status, said, _ = run("--check", path)
    assert status == 0
    assert "4 keys, of which 0 expire, 0 changes" in said
    assert state(wire()) == [(key, text, None) for key, text, _ in found]


def test_a_file_that_was_edited_has_keys_that_stay_but_the_clock_and_the_tokens_go_on(wire, caplog):
    path, found = left_behind(wire, lock=LOCK)
    fence = orjson.loads(annexes(path)[0].read_bytes().splitlines()[-1][18:])["fence"]
    assert fence > 0
    newest = clock.now_ms() + 5 * HOUR
    rewrite(annexes(path)[0], lambda last: last["clock"].update(now=newest, boot="another"))
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps({**content, "edited": True}))
    status, said, _ = run("--check", path)
    assert status == 0
    assert "it tells of when keys expire is not used" in said.replace("what ", "")
    again = wire()
    assert caplog.text.count("what it tells of when keys expire is not used") == 1
    assert state(again) == [
        *((key, text, None) for key, text, _ in found),
        ("edited", b"true", None),
    ]
    assert clock.now_ms() >= newest
    granted = again.ask("lock", **LOCK | {"ask": 2})
    assert granted["token"] > fence
    again.ask("expire", key="edited", ttl_ms=HOUR)
    again.ask("save")
    assert annexes(path) == [own_annex(path)]


def rewrite(path, change):
    """Change the last record of an annex as `change` changes the object in it."""
    lines = path.read_bytes().splitlines(keepends=True)
    last = orjson.loads(lines[-1][18:])
    change(last)
    before = b"".join(lines[:-1])
    path.write_bytes(before + records.encode([orjson.dumps(last)], 0, len(before)))


def test_an_annex_of_a_later_format_or_under_the_name_of_another_is_not_used(wire):
    path, found = left_behind(wire)
    (own,) = annexes(path)
    whole = own.read_bytes()
    rewrite(own, lambda last: last.update(annex=2))
    status, said, err = run(path)
    assert (status, said) == (1, "")
    assert "is of format 2, this release reads 1" in err
    own.write_bytes(whole)
    rewrite(own, lambda last: last.update(base="0" * 64))
    assert state(wire()) == [(key, text, None) for key, text, _ in found]


def flip(data, at, size):
    data[at] ^= 1 << size % 8


def cut(data, at, _size):
    del data[at:]


def remove(data, at, size):
    del data[at : at + size]


def insert(data, at, size):
    data[at:at] = data[:size]


def nuls(data, at, size):
    data[at : at + size] = bytes(len(data[at : at + size]))


def drop_line(data, at, _size):
    lines = bytes(data).splitlines(keepends=True)
    del lines[at % len(lines)]
    data[:] = b"".join(lines)


def double_line(data, at, _size):
    lines = bytes(data).splitlines(keepends=True)
    data[:] = b"".join([*lines[: at % len(lines) + 1], *lines[at % len(lines) :]])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A data file, its annex of several records, and what they hold."""
    file = DataFile(tmp_path_factory.mktemp("saved") / "my.db")
    writing = file.write()
    writing.create()
    expires = {f"k{n}": HOUR + n for n in range(30)}
    writing.write(b"{\n" + b",\n".join(b'"%b":1' % key.encode() for key in expires))
    for n in range(0, 30, 10):
        writing.write(b"", dict(list(expires.items())[n : n + 10]))
    writing.write(b"\n}\n")
    writing.sync({"fence": 7, "locks": []}, clock.told())
    writing.publish()
    return file.path, [(key, b"1", deadline) for key, deadline in expires.items()]


@settings(max_examples=80)
@given(
    st.sampled_from([flip, cut, remove, insert, nuls, drop_line, double_line]),
    st.integers(0, 10**6),
    st.integers(1, 700),
)
def test_an_annex_that_is_damaged_is_refused_by_one_line_that_names_it(saved, harm, at, size):
    source, found = saved
    with tempfile.TemporaryDirectory() as directory:
        path = Path(shutil.copytree(source.parent, directory, dirs_exist_ok=True)) / source.name
        (own,) = annexes(path)
        data = bytearray(own.read_bytes())
        harm(data, at % len(data), size)
        if data == own.read_bytes():
            return
        own.write_bytes(data)
        with pytest.raises(Unreadable) as refused:
            recover(DataFile(path))
        assert str(own) in str(refused.value)
        assert "\n" not in str(refused.value)
        own.unlink()  # as it says
        assert held(recover(DataFile(path)).table, 0) == [
            (key, text, None) for key, text, _ in found
        ]


def test_check_and_a_start_tell_of_a_damaged_annex_and_touch_nothing(wire):
    path, found = left_behind(wire)
    status, said, _ = run("--check", path)
    assert status == 0
    assert "4 keys, of which 3 expire, 0 changes that the file does not hold" in said
    (own,) = annexes(path)
    data = bytearray(own.read_bytes())
    data[30] ^= 1
    own.write_bytes(data)
    names = [p for p in path.parent.iterdir() if p.suffix != ".lock"]
    before = {p: p.read_bytes() for p in names}
    status, said, _ = run("--check", path)
    assert status == 1
    assert f"{own} is damaged at byte 0" in said
    status, _, err = run(path)
    assert status == 1
    assert f"{own} is damaged at byte 0" in err
    assert {p: p.read_bytes() for p in path.parent.iterdir() if p.suffix != ".lock"} == before
    own.unlink()
    assert state(wire()) == [(key, text, None) for key, text, _ in found]


def test_journals_of_format_1_are_read_and_take_deadlines_from_then_on(wire):
    wired = wire()
    wired.ask("set", key="a", value=1)
    wired.ask("save")
    wired.ask("set", key="b", value=2)
    wired.close()
    path = wired.path
    (journal,) = path.parent.glob("my.db.journal.*")
    number = int(journal.name.rpartition(".")[2])
    texts = [orjson.loads(line[18:]) for line in journal.read_bytes().splitlines()]
    texts[0]["journal"] = 1
    del texts[0]["clock"]  # which came with format 2
    kept = [orjson.dumps(t) for t in texts if "synced" not in t and "end" not in t]
    journal.write_bytes(records.encode(kept, number, 0))
    assert journal == journal_path(path, number)
    again = wire()
    assert state(again) == [("a", b"1", None), ("b", b"2", None)]
    again.ask("expire", key="a", ttl_ms=HOUR)
    again.ask("set", key="c", value=3, ttl_ms=HOUR)
    found = state(again)
    assert set(deadlines(again)) == {"a", "c"}
    again = wire()
    assert state(again) == found
    again.ask("save")
    assert state(wire()) == found


# A kill at each step

_watching = threading.Event()
_about_to_change = []


def _note(event, _args):
    """Called for what Python does to files, just before it does it."""
    if _watching.is_set() and event in ("open", "os.rename", "os.remove", "os.link"):
        _watching.clear()  # not for what is done here
        try:
            _about_to_change[0]()
        finally:
            _watching.set()


sys.addaudithook(_note)  # for the rest of this process, at the price of one look at an Event


class Kills:
    """What the directory holds at each step of a save, as a kill would leave it."""

    def __init__(self, wired, directory):
        self.wired = wired
        self.directory = directory
        self.copies = []
        self.expected = state(wired)

    def copy(self):
        target = self.directory / str(len(self.copies))
        target.mkdir()
        for name in os.listdir(self.wired.path.parent):
            if not name.endswith(".lock"):
                shutil.copyfile(self.wired.path.parent / name, target / name)
        self.copies.append((target / self.wired.path.name, self.expected))

    def save(self, meanwhile=()):
        """Save step by step, with writes between some of the steps."""
        wired, meanwhile = self.wired, list(meanwhile)
        _about_to_change[:] = [self.copy]
        asked = wired.receive("save")
        wired.replies += wired.engine.finish_turn()
        while wired.tasks:
            _watching.set()
            wired.tasks.run(0.0)
            self.rest()
            _watching.clear()
            self.copy()
            if meanwhile and len(self.copies) % 3 == 0:
                op, args = meanwhile.pop(0)
                wired.receive(op, args)
                wired.replies += wired.engine.finish_turn()
                self.expected = state(wired)
                self.copy()
        wired.replies += wired.engine.take_replies()
        replies = [json.loads(reply) for _, reply in wired.replies]
        assert [each["result"] for each in replies if each["id"] == asked] == [{"saved": True}]
        wired.replies.clear()
        self.copy()

    def rest(self):
        """Wait until the threads have done what they were told to."""
        saver = self.wired.engine._saver
        for worker in (saver._snapshots, saver._syncs):
            worker.do(lambda: None).result(PATIENCE)

    def check(self):
        assert len(self.copies) > 10
        for path, expected in self.copies:
            try:
                found = recover(DataFile(path))
            except Unreadable as error:
                raise AssertionError(f"{sorted(os.listdir(path.parent))}: {error}") from None
            assert held(found.table, 0) == expected, sorted(os.listdir(path.parent))
            assert {key for key, _, at in expected if at is not None} <= found.expiring.keys()


CONTENT = {"a": 1, "b": "2", "c": [3]}
CHANGES = {
    "the first deadline": [("expire", {"key": "a", "ttl_ms": HOUR})],
    "another deadline": [("expire", {"key": "b", "ttl_ms": 2 * HOUR})],
    "no deadline any more": [
        ("expire", {"key": "b", "ttl_ms": HOUR}),
        ("persist", {"key": "b"}),
        ("persist", {"key": "c"}),
    ],
    "one deadline less": [("expire", {"key": "b", "ttl_ms": HOUR}), ("persist", {"key": "c"})],
    "set without": [("set", {"key": "b", "value": "2"}), ("set", {"key": "c", "value": [3]})],
    "other values too": [
        ("set", {"key": "d", "value": 4, "ttl_ms": HOUR}),
        ("remove", {"key": "b"}),
    ],
    "all anew": [("purge", {}), ("set_many", {"items": CONTENT, "ttl_ms": HOUR})],
}
MEANWHILE = [
    ("expire", {"key": "a", "ttl_ms": 5 * HOUR}),
    ("set", {"key": "new", "value": 1, "ttl_ms": HOUR}),
    ("persist", {"key": "a"}),
    ("set", {"key": "c", "value": 5}),
]


@pytest.mark.parametrize("meanwhile", [(), MEANWHILE], ids=["quiet", "busy"])
@pytest.mark.parametrize("expiring", [(), ("b", "c")], ids=["without", "with"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_kill_at_any_step_of_a_save_takes_no_deadline_and_brings_none_back(
    wired, tmp_path_factory, change, expiring, meanwhile
):
    wired.ask("replace", items=CONTENT)
    for key in expiring:
        wired.ask("expire", key=key, ttl_ms=HOUR)
    wired.ask("save")
    for op, args in CHANGES[change]:
        wired.ask(op, **args)
    kills = Kills(wired, tmp_path_factory.mktemp("kills"))
    kills.save(meanwhile)
    kills.check()
