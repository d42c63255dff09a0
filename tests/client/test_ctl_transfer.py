"""`pickledbctl export` and `import`: what goes out comes back in, whole or not at all."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from commanding import CTL, Terminal, ctl
from pickledbd_client import PickleDB
from support import PATIENCE, Daemon, owner_pid, seeded, wait_until

ODD = {
    "": "empty key",
    'a\n"b\\': ["x", {"y": None}],
    "\u00e9\U0001f600": "\u2028",
    "bytes": b"\x00\xff",
    "look-alike": {"$binary": 1},
    "another": {"$$binary": {"base64": "AP8=", "subType": "00"}},
    "number": 2**64 - 1,
    "float": 1.5e300,
    "deep": {"a": [[[{"b": b"in it"}]]]},
}

DEEP = "[" * 201 + "]" * 201


@pytest.fixture
def on(daemon):
    """pickledbctl on the test's daemon."""
    return lambda *args, **options: ctl("-e", daemon.endpoint, *args, **options)


def lines(content):
    return "".join(json.dumps({"key": k, "value": v}) + "\n" for k, v in content.items())


def many(count):
    return {f"key {n}": {"n": n, "text": "x" * (n % 50), "list": [n, None]} for n in range(count)}


def same(db, content):
    held = db.db
    return held == content and list(held) == list(content)


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_what_is_exported_and_imported_is_equal(on, db, tmp_path, form):
    file = tmp_path / f"out.{form}"
    db.db = ODD
    assert on("export", file) == (0, "", "")
    db.purge()
    assert on("import", file) == (0, "", "")
    assert same(db, ODD)


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_it_goes_through_pipes(on, db, form):
    db.db = ODD
    status, out, err = on("export", "--format", form, text=False)
    assert (status, err) == (0, b"")
    db.purge()
    assert on("import", "-", "--format", form, stdin=out, text=False) == (0, b"", b"")
    assert same(db, ODD)


def test_a_pipe_and_some_names_mean_lines_and_all_others_one_object(on, db, tmp_path):
    db.db = {"a": 1, "b": [2]}
    wanted = '{"key":"a","value":1}\n{"key":"b","value":[2]}\n'
    assert on("export") == on("export", "-") == on("items") == (0, wanted, "")
    for name in ("x.jsonl", "x.NDJSON"):
        assert on("export", tmp_path / name)[0] == 0
        assert (tmp_path / name).read_text() == wanted
    for name in ("x.json", "x.db", "x"):
        assert on("export", tmp_path / name)[0] == 0
        assert (tmp_path / name).read_text() == '{\n"a":1,\n"b":[2]\n}\n'
    assert on("export", tmp_path / "y", "--format", "jsonl")[0] == 0
    assert (tmp_path / "y").read_text() == wanted


def test_an_export_is_a_data_file_to_the_byte(on, db, daemon, tmp_path):
    for content in ({}, ODD, many(3000)):
        db.db = content
        db.save()
        assert on("export", tmp_path / "out.db")[0] == 0
        assert (tmp_path / "out.db").read_bytes() == daemon.location.read_bytes()


def test_some_of_the_keys_are_exported(on, db):
    db.db = {"user:1": 1, "user:2": 2, "job:1": 3}
    assert on("export", "--prefix", "user:")[1].count("\n") == 2
    assert on("export", "--glob", "*:1")[1].count("\n") == 2
    assert on("export", "--prefix", "none", "--format", "json")[1] == "{}\n"


def test_an_export_is_of_one_moment(daemon, db, on, tmp_path):
    names = [f"key {n}" for n in range(20_000)]
    db.db = dict.fromkeys(names, 0)
    ended = threading.Event()

    def write():
        with daemon.client() as writer:
            turn = 0
            while not ended.is_set():
                turn += 1
                writer.set_many({names[0]: turn, names[-1]: turn})

    writing = threading.Thread(target=write)
    writing.start()
    try:
        for _ in range(3):
            assert on("export", tmp_path / "out.json")[0] == 0
            found = json.loads((tmp_path / "out.json").read_bytes())
            assert found[names[0]] == found[names[-1]]
    finally:
        ended.set()
        writing.join(PATIENCE)


def test_an_export_that_fails_leaves_what_was_there(db, daemon, tmp_path):
    db.db = many(30_000)
    out = tmp_path / "out.json"
    out.write_text("precious")
    process = subprocess.Popen(
        [*CTL, "-e", daemon.endpoint, "-t", "1", "export", out], stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: list(tmp_path.glob("out.json.tmp-*")) or process.poll() is not None, "it")
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    if process.returncode:  # it was quicker, else
        assert (process.returncode, len(err.splitlines())) == (3, 1)
        assert out.read_text() == "precious"
    assert list(tmp_path.glob("*.tmp-*")) == []


def test_an_export_tells_what_it_cannot_write(on, db, daemon, tmp_path):
    db.set("a", 1)
    for target, what in (
        (tmp_path / "no" / "out.json", "No such file"),
        (tmp_path, "directory"),
        ("/dev/full", "No space"),
    ):
        status, out, err = on("export", target)
        assert (status, out, len(err.splitlines())) == (3, "", 1)
        assert f"cannot write {target}: " in err
        assert what in err
    assert list(tmp_path.glob("*.tmp-*")) == []
    status, _, err = on("export", daemon.location)
    assert status == 3
    assert "is a daemon's database" in err
    assert not daemon.location.exists()


def test_devices_are_written_to_and_links_followed(on, db, tmp_path):
    db.set("a", 1)
    assert on("export", "/dev/stdout")[1] == '{\n"a":1\n}\n'
    (tmp_path / "link").symlink_to(tmp_path / "there")
    assert on("export", tmp_path / "link")[0] == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").read_text() == '{\n"a":1\n}\n'


def test_an_import_merges_or_replaces(on, db):
    db.db = {"a": 1, "b": 2, "c": 3}
    assert on("import", stdin=lines({"b": 20, "d": 4})) == (0, "", "")
    assert same(db, {"a": 1, "b": 20, "c": 3, "d": 4})
    assert on("import", "--replace", stdin=lines({"d": 5, "a": 6})) == (0, "", "")
    assert same(db, {"d": 5, "a": 6})


def test_of_a_key_that_comes_twice_the_last_value_counts(on, db, tmp_path):
    assert on("import", stdin=lines({"a": 1, "b": 2}) + lines({"a": 3}))[0] == 0
    assert same(db, {"a": 3, "b": 2})
    (tmp_path / "x.json").write_text('{"a": 1, "b": 2, "a": 4}')
    assert on("import", tmp_path / "x.json")[0] == 0
    assert same(db, {"a": 4, "b": 2})


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(many(300)),  # as pickleDB writes it
        json.dumps(many(300), indent=2),
        json.dumps(many(300), indent=0),  # its first lines are as ours
        "{\n" + json.dumps(many(300))[1:],
    ],
)
def test_any_json_object_can_be_imported(on, db, tmp_path, text):
    (tmp_path / "old.db").write_text(text)
    assert on("import", tmp_path / "old.db") == (0, "", "")
    assert same(db, many(300))
    assert on("import", "--format", "json", "--replace", stdin=text) == (0, "", "")
    assert same(db, many(300))


def test_an_empty_input_is_nothing_and_replaces_nothing(on, db, tmp_path):
    db.set("a", 1)
    for name, text in (("x.json", ""), ("y.json", "{}"), ("z.jsonl", ""), ("z.jsonl", "\n \n")):
        (tmp_path / name).write_text(text)
        assert on("import", tmp_path / name) == (0, "", "")
        status, _, err = on("import", "--replace", tmp_path / name)
        assert status == 3
        assert "has no keys; nothing was changed" in err
    assert db.db == {"a": 1}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"key": "a", "value": 1', "it is not JSON: unexpected end of data"),
        ('{"key": "a", "value": NaN}', "it is not JSON"),
        ('{"key": "a", "value": "\\ud800"}', "it is not JSON"),
        ('{"key": "a", "value": 1} {}', "it is not JSON"),
        ("[1]", "it is not an object of"),
        ('{"key": 1, "value": 1}', "it is not an object of"),
        ('{"a": 1}', "it is not an object of"),
        ('{"key": "a", "value": 1, "seq": 5}', '"seq" is none of'),
        ('{"key": "a", "value": 18446744073709551616}', "is over 64 bits"),
        (f'{{"key": "a", "value": {DEEP}}}', "'a'"),
        ('{"key": "a", "value": 1, "ttl": 0}', "'a' cannot expire"),
        ('{"key": "a", "value": 1, "ttl": "soon"}', "'a' cannot expire"),
    ],
)
def test_a_bad_line_is_named_by_its_number_and_nothing_is_changed(on, db, line, what):
    db.db = {"old": 1}
    good = lines(many(1500))
    status, out, err = on("import", "--replace", stdin=f"{good}{line}\n{good}")
    assert (status, out, len(err.splitlines())) == (3, "", 1)
    assert err.startswith("pickledbctl: line 1,501 of standard input: ")
    assert what in err
    assert db.db == {"old": 1}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"a": 1,}', "is not JSON"),
        ("[1]", "holds a JSON list"),
        ('{"a": 1}\n{"b": 1}\n', "--format jsonl"),
        ('{\n"a":1,\n"b":18446744073709551616\n}\n', "over 64 bits"),
        (f'{{"a": 1, "b": {DEEP}}}', "'b'"),
    ],
)
def test_a_bad_object_is_refused_and_nothing_is_changed(on, db, tmp_path, text, what):
    db.db = {"old": 1}
    (tmp_path / "bad.json").write_text(text)
    status, out, err = on("import", tmp_path / "bad.json")
    assert (status, out, len(err.splitlines())) == (3, "", 1)
    assert "bad.json" in err
    assert what in err
    assert db.db == {"old": 1}


def test_a_file_that_is_not_there_is_named(on, tmp_path):
    status, out, err = on("import", tmp_path / "none.json")
    assert (status, out) == (3, "")
    assert err == f"pickledbctl: {tmp_path}/none.json: No such file or directory\n"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            gzip.compress(b"", mtime=0),
            "is compressed; gzip -dc FILE | pickledbctl import reads it",
        ),
        (b'{"key":"a","value":"\xff"}', "is not UTF-8: invalid start byte at byte 21"),
        ('{"key":1}'.encode("utf-16"), "is not UTF-8: invalid start byte at byte 1"),
        ('{"key":1}'.encode("utf-8-sig"), "byte order mark"),
    ],
)
def test_what_is_no_text_is_called_what_it_is(on, db, tmp_path, text, what):
    file = tmp_path / "it"
    file.write_bytes(text)
    for form in ("json", "jsonl"):
        status, _, err = on("import", file, "--format", form)
        assert (status, what in err) == (3, True), err
    assert db.db == {}


def test_the_file_of_a_database_that_is_served_is_no_input(on, db, daemon, tmp_path):
    db.set("a", "old")
    db.save()
    db.set("a", "new")
    link = tmp_path / "link"
    link.symlink_to(daemon.location)
    for path in (daemon.location, link):
        status, _, err = on("import", path)
        assert (status, len(err.splitlines())) == (3, 1)
        assert f"pickledbctl -f {daemon.location} export | pickledbctl import" in err
    assert db["a"] == "new"
    Path(f"{tmp_path}/other.lock").write_text("1234")  # of another program's
    (tmp_path / "other").write_text('{"a":"newer"}')
    assert on("import", tmp_path / "other") == (0, "", "")
    assert db["a"] == "newer"


@pytest.fixture
def narrow(location):
    """A daemon that takes no large requests, and a client of it."""
    daemon = Daemon(location, "--max-request", 1)
    with daemon.client() as db:
        yield daemon, db
    daemon.check_and_stop()


def test_what_is_too_large_for_one_request_says_how_to_go_on(narrow, tmp_path):
    daemon, db = narrow
    db.db = {"old": 1}
    (tmp_path / "x.jsonl").write_text(lines(many(30_000)))
    status, _, err = ctl("-e", daemon.endpoint, "import", tmp_path / "x.jsonl")
    assert (status, len(err.splitlines())) == (3, 1)
    assert "nothing was changed" in err
    assert "--resumable" in err
    assert db.db == {"old": 1}
    assert ctl("-e", daemon.endpoint, "import", "--resumable", tmp_path / "x.jsonl")[0] == 0
    assert same(db, {"old": 1, **many(30_000)})


def test_a_request_may_be_nearly_as_large_as_it_may_be(narrow):
    daemon, db = narrow
    limit = 2**20
    fits = 0
    for size in range(limit - 4000, limit + 400, 400):
        db.purge()
        text = lines({"a": "x" * size})
        status, _, err = ctl("-e", daemon.endpoint, "import", stdin=text)
        assert (status, len(db)) == ((3, 0) if status else (0, 1))
        assert not status or "--resumable" in err
        fits += not status
    assert 0 < fits < 11


def begin(daemon, *args, timeout=PATIENCE, **popen):
    """An import that is at it, and tells what it does."""
    where = ["-e", daemon.endpoint, "-t", str(timeout)]
    return subprocess.Popen(
        [*CTL, *where, "import", "--progress", *map(str, args)],
        stderr=subprocess.PIPE,
        text=True,
        **popen,
    )


def test_an_import_killed_while_it_reads_changes_nothing(daemon, db):
    db.db = {"old": 1}
    process = begin(daemon, "--replace", stdin=subprocess.PIPE)
    process.stdin.write(lines(many(20_000)))
    process.stdin.flush()
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert db.db == {"old": 1}


def test_an_import_killed_while_it_sends_changes_nothing(daemon, db, tmp_path):
    db.db = {"old": 1}
    (tmp_path / "x.jsonl").write_text(lines(many(40_000)))
    os.kill(daemon.pid, signal.SIGSTOP)  # it takes in no more than the system's buffers do
    try:
        process = begin(daemon, "--replace", tmp_path / "x.jsonl")
        os.kill(daemon.pid, signal.SIGCONT)
        for line in process.stderr:
            if "takes in" in line:
                break
            os.kill(daemon.pid, signal.SIGSTOP)
        process.kill()
        process.communicate(timeout=PATIENCE)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert same(db, {"old": 1}) or same(db, many(40_000))


@pytest.mark.parametrize("_again", range(3))
def test_an_import_whose_daemon_is_killed_leaves_the_old_content_or_the_new(
    location, tmp_path, _again
):
    chance = seeded()
    content = many(60_000)
    (tmp_path / "x.jsonl").write_text(lines(content))
    daemon = Daemon(location)
    with daemon.client() as db:
        db.db = {"old": 1}
    process = begin(daemon, "--replace", tmp_path / "x.jsonl", timeout=3)
    while "takes in" not in process.stderr.readline():
        pass
    threading.Event().wait(chance.random() * 0.4)  # some moment of it
    daemon.kill()
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode in (0, 3), err
    after = Daemon(location)
    with after.client() as db:
        assert same(db, content) or (process.returncode and same(db, {"old": 1}))
    after.check_and_stop()


MARK = "pickledbctl import: "


PIPED = f"{MARK}standard input"


def feed(process, content, db, until):
    """Have so many of the first entries written to an import, and wait until they are in."""
    process.stdin.write(lines(dict(list(content.items())[:until])))
    process.stdin.flush()
    # The last ones make no whole chunk yet
    wait_until(lambda: (db.get(PIPED) or {"entries": 0})["entries"] > until - 2000, "them")


def test_a_resumable_import_goes_on_where_it_was_killed(daemon, db, on):
    content = many(30_000)
    db.set("old", 1)
    done = 0
    for until in (3000, 12_000, 25_000):
        process = begin(daemon, "--resumable", stdin=subprocess.PIPE)
        feed(process, content, db, until)
        process.kill()
        process.communicate(timeout=PATIENCE)
        assert done < db.get(PIPED)["entries"] <= until
        done = db.get(PIPED)["entries"]
        assert db.all()[1:] == [*list(content)[:1000], PIPED, *list(content)[1000:done]]
    assert on("import", "--resumable", stdin=lines(content)) == (0, "", "")
    assert db.remove("old")
    assert same(db, content)
    assert on("import", "--resumable", stdin=lines(content)) == (0, "", "")  # from its beginning
    assert same(db, content)


def test_a_resumable_import_rides_through_the_end_of_its_daemon(location):
    content = many(20_000)
    process = subprocess.Popen(
        [*CTL, "-f", location, "import", "--resumable"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    told = iter(content.items())
    with contextlib.closing(PickleDB(location, timeout=PATIENCE)) as db:
        for until in (3000, 9000, 15_000):
            process.stdin.write(lines(dict(itertools.islice(told, until - len(db)))))
            process.stdin.flush()
            wait_until(lambda until=until: len(db) > until - 2000, "them")
            os.kill(owner_pid(location), signal.SIGKILL)
        _, err = process.communicate(lines(dict(told)), timeout=PATIENCE)
        assert (process.returncode, err) == (0, "")
        assert same(db, content)


def test_a_resumable_import_of_another_input_is_refused(db, on, tmp_path):
    file = tmp_path / "x.jsonl"
    bad = lines(many(5000)) + "oops\n"
    file.write_text(bad)
    status, _, err = on("import", file, "--resumable")
    assert (status, len(err.splitlines())) == (3, 1)
    assert "line 5,001 of" in err
    assert "5,000 keys are imported" not in err  # of the last chunk none was
    assert "the same command goes on behind them" in err
    done = db.get(f"{MARK}{file}")["entries"]
    assert 0 < done < 5000
    for other in (lines({"x": 1} | many(5000)), lines(many(done - 1))):
        file.write_text(other)
        status, _, err = on("import", file, "--resumable")
        assert (status, len(err.splitlines())) == (3, 1)
        assert "is not what was being imported" in err
        assert db.get(f"{MARK}{file}")["entries"] == done
    file.write_text(bad.replace("oops\n", lines({"corrected": 1})))
    assert on("import", file, "--resumable") == (0, "", "")
    assert same(db, many(5000) | {"corrected": 1})


def test_only_one_resumable_import_of_an_input_runs_at_a_time(daemon, db, on):
    process = begin(daemon, "--resumable", stdin=subprocess.PIPE)
    process.stdin.write(lines(many(3000)))
    process.stdin.flush()
    wait_until(lambda: db.get(PIPED), "the first chunk")
    status, _, err = on("import", "--resumable", stdin=lines(many(10)))
    assert status == 3
    assert "another import of standard input is going on" in err
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert same(db, many(3000))


def test_the_two_ways_of_an_import_exclude_each_other(on):
    assert on("import", "--replace", "--resumable")[0] == 2


def test_nothing_is_told_through_pipes_and_progress_if_asked(on):
    text = lines(many(20_000))
    assert on("import", stdin=text) == (0, "", "")
    status, out, err = on("import", "--progress", stdin=text)
    assert (status, out) == (0, "")
    assert err.splitlines()[-1].startswith("imported 20,000 keys in ")
    status, out, err = on("export", "--progress")
    assert (status, out) == (0, text.replace(": ", ":").replace(", ", ","))
    assert err.splitlines()[-1].startswith("exported 20,000 keys in ")


def test_at_a_terminal_progress_is_one_line_with_rate_and_time_left(daemon, db, tmp_path):
    db.db = many(60_000)
    terminal = Terminal("-e", daemon.endpoint, "export", tmp_path / "x.json")
    status, shown = terminal.end()
    terminal.close()
    assert status == 0
    assert "exported 60,000 keys in " in shown
    (tmp_path / "big.jsonl").write_text(lines(many(80_000)))
    terminal = Terminal("-e", daemon.endpoint, "import", tmp_path / "big.jsonl")
    line = terminal.until(" left")
    assert "\r\x1b[Kimporting: " in line
    assert "/s, " in line
    assert "%, " in line
    assert terminal.end()[0] == 0
    terminal.close()


def test_in_a_narrow_terminal_it_is_one_line_too(daemon, tmp_path):
    (tmp_path / "big.jsonl").write_text(lines(many(80_000)))
    terminal = Terminal("-e", daemon.endpoint, "import", tmp_path / "big.jsonl", size=(24, 20))
    status, shown = terminal.end()
    terminal.close()
    drawn = shown.split("\r\x1b[K")
    assert (status, len(drawn) > 2) == (0, True)
    assert max(map(len, drawn[:-1])) < 20


def test_ctrl_c_says_what_has_become_of_it(daemon, db):
    db.db = {"old": 1}
    process = begin(daemon, "--replace", stdin=subprocess.PIPE)
    process.stdin.write(lines(many(50_000)))
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "pickledbctl: interrupted; nothing was changed"
    assert db.db == {"old": 1}
    process = begin(daemon, "--resumable", stdin=subprocess.PIPE)
    process.stdin.write(lines(many(3000)))
    process.stdin.flush()
    wait_until(lambda: db.get(PIPED), "the first chunk")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "keys are imported; the same command goes on behind them" in err.splitlines()[-1]


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("form", ["json", "jsonl"])
@pytest.mark.parametrize("how", ["", "--replace", "--resumable"])
def test_export_purge_and_import_give_an_equal_database(daemon, tmp_path, count, form, how):
    file = tmp_path / f"out.{form}"
    patience = PATIENCE * max(1, count // 100_000)

    def run(*args):
        args = ("-e", daemon.endpoint, "-t", patience, *args)
        assert ctl(*args, patience=patience) == (0, "", "")

    with daemon.client(timeout=patience) as db:
        db.set_many(many(count))
        db.save()
        before = daemon.location.read_bytes()
        run("export", file)
        db.purge()
        run("import", file, *filter(None, [how]))
        db.save()
    assert daemon.location.read_bytes() == before
