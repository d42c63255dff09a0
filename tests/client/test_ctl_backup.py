"""`pickledbctl backup`, and how long keys live on in what was taken out and put in again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
from datetime import timedelta
from glob import glob
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from commanding import CTL, ctl
from pickledbd import annex
from support import PATIENCE, Daemon, run, wait_until

HOUR = timedelta(hours=1).total_seconds()


@pytest.fixture
def on(daemon):
    """pickledbctl on the test's daemon."""
    return lambda *args, **options: ctl("-e", daemon.endpoint, *args, **options)


@contextlib.contextmanager
def serving(path):
    """A client of a daemon on this file."""
    daemon = Daemon(path)
    with contextlib.closing(daemon.client()) as db:
        yield db
    daemon.check_and_stop()


def beside(path):
    return sorted(found.name for found in path.parent.glob(f"{path.name}.*"))


def test_a_backup_is_a_database_of_its_own(on, db, daemon, tmp_path):
    db.db = {"b": [1], "a": b"\xff", "": {"$binary": 1}}
    copy = tmp_path / "copy.db"
    assert on("backup", copy) == (0, "", "")
    db.save()
    assert copy.read_bytes() == daemon.location.read_bytes()
    assert beside(copy) == []
    db.set("later", 1)
    with serving(copy) as other:
        assert other.db == {"b": [1], "a": b"\xff", "": {"$binary": 1}}


def test_it_keeps_when_keys_expire(on, db, tmp_path):
    db.set_many({"long": 1, "longer": 2, "always": 3})
    db.expire("long", HOUR)
    db.expire("longer", 10 * HOUR)
    copy = tmp_path / "copy.db"
    assert on("backup", copy) == (0, "", "")
    assert len(beside(copy)) == 1
    status, out, _ = run("--check", copy)
    assert (status, "3 keys, of which 2 expire" in out) == (0, True)
    with serving(copy) as other:
        assert HOUR - 60 < other.ttl("long") <= HOUR + 1
        assert 10 * HOUR - 60 < other.ttl("longer") <= 10 * HOUR + 1
        assert other.ttl("always") is None


def test_a_key_expires_in_the_copy_when_it_would_have_here(on, db, tmp_path):
    db.set("short", 1, ttl=3)
    ends = time.monotonic() + 3
    db.set("long", 1, ttl=HOUR)
    copy = tmp_path / "copy.db"
    assert on("backup", copy)[0] == 0
    assert json.loads(copy.read_bytes()) == {"short": 1, "long": 1}
    time.sleep(max(0, ends + 0.5 - time.monotonic()))  # its time goes by, which nothing tells
    with serving(copy) as other:
        assert other.all() == ["long"]


def test_a_backup_is_restored_by_an_import_with_when_its_keys_expire(on, db, tmp_path):
    db.set_many({f"k{n}": n for n in range(3000)}, ttl=HOUR)
    db.set_many({"always": 1, "soon": 2})
    db.expire("soon", 1)
    copy = tmp_path / "copy.db"
    assert on("backup", copy) == (0, "", "")
    wait_until(lambda: "soon" not in db, "it to be gone")
    for how in (["--replace"], [], ["--resumable"]):
        db.db = {"old": 1}
        assert on("import", *how, copy) == (0, "", "")
        assert HOUR - 60 < db.ttl("k2999") <= HOUR
        assert db.ttl("always") is None
        assert "soon" not in db
        assert len(db) == 3001 + (how != ["--replace"])
    (moved,) = tmp_path.glob("copy.db.annex-*")
    text = moved.read_bytes()
    db.db = {"old": 1}
    for damaged in (text[:-1], text.replace(b"0", b"1", 1), text[: text.index(b"\n") + 1], b""):
        moved.write_bytes(damaged)
        status, _, err = on("import", "--replace", copy)
        assert (status, len(err.splitlines())) == (3, 1)
        assert f"{moved.name}, which tells when" in err
        assert db.db == {"old": 1}
    moved.rename(copy.with_name(f"copy.db.annex-{'0' * 16}"))  # of another file
    assert on("import", "--replace", copy) == (0, "", "")
    assert db.ttl("k1") is None


def test_a_file_that_is_there_stays_unless_it_is_forced(on, db, tmp_path):
    copy = tmp_path / "copy.db"
    copy.write_text("precious")
    db.set("a", 1, ttl=HOUR)
    status, out, err = on("backup", copy)
    assert (status, out, len(err.splitlines())) == (3, "", 1)
    assert "copy.db is there already; --force has it replaced" in err
    assert copy.read_text() == "precious"
    assert beside(copy) == []
    assert on("backup", "--force", copy) == (0, "", "")
    assert json.loads(copy.read_bytes()) == {"a": 1}
    first = beside(copy)
    db.set("b", 1)
    assert on("backup", "--force", copy) == (0, "", "")
    assert len(beside(copy)) == 1
    assert beside(copy) != first
    db.persist("a")  # the same bytes, and nothing expires
    assert on("backup", "--force", copy) == (0, "", "")
    assert beside(copy) == []


def test_an_annex_of_an_equal_file_that_is_gone_does_not_count(on, db, tmp_path):
    copy = tmp_path / "copy.db"
    db.set("a", 1, ttl=HOUR)
    assert on("backup", copy)[0] == 0
    copy.unlink()
    db.persist("a")
    assert on("backup", copy)[0] == 0
    with serving(copy) as other:
        assert other.ttl("a") is None


def test_no_daemon_s_database_is_written_over(on, db, daemon, tmp_path):
    db.set("a", 1)
    db.save()
    link = tmp_path / "link"
    link.symlink_to(daemon.location)
    before = daemon.location.read_bytes()
    db.set("b", 1)
    for path in (daemon.location, link):
        for command in (("backup", "--force", path), ("export", path)):
            status, _, err = on(*command)
            assert (status, len(err.splitlines())) == (3, 1)
            assert "is a daemon's database" in err
    assert daemon.location.read_bytes() == before
    dead = Daemon(tmp_path / "dead.db")
    with dead.client() as other:
        other.set("c", 1)
    dead.kill()
    for path in tmp_path.glob("dead.db.lock"):
        path.unlink()
    assert "dead.db.journal" in on("backup", "--force", tmp_path / "dead.db")[2]


def test_nor_is_a_file_beside_one(on, db, daemon):
    db.set("a", 1, ttl=HOUR)
    db.save()
    db.set("b", 1)
    folder = daemon.location.parent
    socket = daemon.endpoint.removeprefix("ipc://")
    files = {*folder.glob(f"{daemon.location.name}.*"), *map(Path, glob(f"{socket}.*"))}
    assert len(files) >= 4  # two locks, the journal, the counters
    before = {path: path.stat().st_ino for path in files}
    for path in files:
        for command in (("backup", "--force", path), ("export", path)):
            status, _, err = on(*command)
            assert (status, len(err.splitlines())) == (3, 1)
            assert "is of a daemon's database" in err
    assert {path: path.stat().st_ino for path in files} == before


def test_of_a_key_that_comes_twice_the_last_line_says_when_it_expires(on, db):
    def line(value, ttl):
        return json.dumps({"key": "k", "value": value} | ttl) + "\n"

    hour = {"ttl": HOUR}
    for how in ([], ["--replace"], ["--resumable"]):
        assert on("import", *how, stdin=line(1, hour) + line(2, {})) == (0, "", "")
        assert (db["k"], db.ttl("k")) == (2, None)
        assert on("import", *how, stdin=line(1, {"ttl": 1}) + line(2, hour)) == (0, "", "")
        assert HOUR - 60 < db.ttl("k") <= HOUR


def test_what_cannot_be_a_backup_is_refused(on, tmp_path):
    for path in (tmp_path, "/dev/null", "/dev/stdout"):
        status, out, err = on("backup", "--force", path)
        assert (status, out, len(err.splitlines())) == (3, "", 1)
        assert "is no file, which a backup is" in err
    status, _, err = on("backup", tmp_path / "no" / "copy.db")
    assert status == 3
    assert "cannot write" in err


def test_a_backup_that_is_killed_leaves_nothing_at_its_place(daemon, db, tmp_path):
    db.set_many({f"k{n}": "x" * 100 for n in range(50_000)}, ttl=HOUR)
    copy = tmp_path / "copy.db"
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process = subprocess.Popen(
            [*CTL, "-e", daemon.endpoint, "backup", copy], stderr=subprocess.PIPE, text=True
        )
        wait_until(lambda: beside(copy), "it to begin")
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
        if process.returncode:  # else it was quicker
            assert not copy.exists()
            assert number == signal.SIGKILL or beside(copy) == []
            if number == signal.SIGINT:
                assert (process.returncode, err) == (
                    130,
                    "pickledbctl: interrupted; there is no backup\n",
                )
        for left in [copy, *tmp_path.glob("copy.db.*")]:
            left.unlink(missing_ok=True)


def test_lines_keep_when_keys_expire_and_json_says_that_it_does_not(on, db, tmp_path):
    db.set("a", 1, ttl=HOUR)
    db.set("b", 2)
    assert on("export", tmp_path / "x.jsonl") == (0, "", "")
    told = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert HOUR - 60 < told[0].pop("ttl") <= HOUR
    assert told == [{"key": "a", "value": 1}, {"key": "b", "value": 2}]
    status, out, err = on("export", tmp_path / "x.json")
    assert (status, out) == (0, "")
    assert "1 of these keys expire, which JSON cannot tell" in err
    for how in ([], ["--replace"], ["--resumable"]):
        db.purge()
        assert on("import", tmp_path / "x.jsonl", *how) == (0, "", "")
        assert HOUR - 60 < db.ttl("a") <= HOUR
        assert db.ttl("b") is None
    assert on("items")[1] == '{"key":"a","value":1}\n{"key":"b","value":2}\n'


def test_a_large_import_keeps_them_too(on, db):
    def line(n):
        ttl = f',"ttl":{HOUR + n}' if n % 3 == 0 else ""
        return f'{{"key":"k{n}","value":"{"x" * 50}"{ttl}}}\n'

    text = "".join(map(line, range(9000)))
    for how in ([], ["--replace"], ["--resumable"]):
        db.purge()
        assert on("import", *how, stdin=text) == (0, "", "")
        assert len(db) == 9000
        for n in (0, 3000, 8997):
            assert HOUR + n - 60 < db.ttl(f"k{n}") <= HOUR + n
        assert db.ttl("k1") is None
        assert on("export")[1].count('"ttl":') == 3000


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    items=st.dictionaries(st.text(max_size=5), st.none() | st.integers(1, 1000), max_size=30),
)
def test_the_annex_of_a_backup_is_what_a_daemon_reads(on, db, tmp_path, items):
    db.purge()
    for key, ttl in items.items():
        db.set(key, ttl, ttl=None if ttl is None else HOUR * ttl)
    copy = tmp_path / "copy.db"
    before = time.time()
    assert on("backup", "--force", copy) == (0, "", "")
    digest = hashlib.sha256(copy.read_bytes()).hexdigest()
    told = annex.read(copy, digest, lambda *_: None)
    assert told.strange == []
    assert told.expires.keys() == {key for key, ttl in items.items() if ttl}
    for key, at in told.expires.items():
        wanted = before + HOUR * items[key]
        assert abs(at / 1000 - wanted) < PATIENCE


def test_modes_follow_the_umask(on, db, tmp_path):
    db.set("a", 1, ttl=HOUR)
    for umask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(umask)
        try:
            for command in (("backup", "--force"), ("export",)):
                assert on(*command, tmp_path / "copy")[0] == 0
                for path in tmp_path.glob("copy*"):
                    assert path.stat().st_mode & 0o777 == mode
        finally:
            os.umask(before)
