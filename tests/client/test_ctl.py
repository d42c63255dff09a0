"""`pickledbctl` as a person and a shell script use it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys

import pytest

from commanding import ctl
from support import PATIENCE


@pytest.fixture
def on(daemon):
    """pickledbctl on the test's daemon."""
    return lambda *args, **options: ctl("-e", daemon.endpoint, *args, **options)


@pytest.mark.parametrize(
    ("typed", "stored", "printed"),
    [
        ("5", 5, "5"),
        ("true", True, "true"),
        ("null", None, "null"),
        ('"5"', "5", '"5"'),
        ("hello, world", "hello, world", '"hello, world"'),
        ("[1, {}]", [1, {}], "[1,{}]"),
        ('{"a": "\u00e9"}', {"a": "\u00e9"}, '{"a":"\u00e9"}'),
        ("NaN", "NaN", '"NaN"'),
        ("", "", '""'),
        ("[1,", "[1,", '"[1,"'),
        (
            '{"$binary": {"base64": "AP8=", "subType": "00"}}',
            b"\x00\xff",
            '{"$binary":{"base64":"AP8=","subType":"00"}}',
        ),
    ],
)
def test_values_are_json_or_else_the_string_typed(on, db, typed, stored, printed):
    assert on("set", "k", typed) == (0, "", "")
    assert db["k"] == stored
    assert on("get", "k") == (0, printed + "\n", "")


def test_a_value_may_come_from_standard_input(on, db):
    assert on("set", "k", "-", stdin="[1,\n2]\n") == (0, "", "")
    assert db["k"] == [1, 2]


def test_raw_prints_text_and_bytes_as_they_are(on, db):
    db.db = {"text": "a\nb", "bytes": b"\xff\x00", "number": 1.5}
    assert on("get", "--raw", "text") == (0, "a\nb", "")
    assert on("get", "-r", "bytes", text=False) == (0, b"\xff\x00", b"")
    assert on("get", "-r", "number") == (0, "1.5\n", "")


def test_a_missing_key_is_status_1(on):
    for command in ("get", "remove"):
        status, out, err = on(command, "no such key")
        assert (status, out) == (1, "")
        assert "no key 'no such key'" in err


def test_keys_are_listed_removed_and_purged(on, db):
    db.set_many({"b": 1, "a": 2, "c\n": 3})
    assert on("all") == (0, "b\na\nc\n\n", "")
    status, out, _ = on("all", "--json")
    assert (status, json.loads(out)) == (0, ["b", "a", "c\n"])
    assert on("remove", "a") == (0, "", "")
    assert on("purge", "--yes") == (0, "", "")
    assert on("all") == (0, "", "")


def test_save_info_and_ping(on, db, daemon):
    db.set("a", 1)
    assert on("save") == (0, "", "")
    assert json.loads(daemon.location.read_bytes()) == {"a": 1}
    status, out, _ = on("info")
    assert status == 0
    assert [line.split()[1] for line in out.splitlines() if line.startswith("keys")] == ["1"]
    told = json.loads(on("info", "--json")[1])
    assert told["pid"] == daemon.pid
    status, out, _ = on("ping")
    assert (status, " answered in " in out) == (0, True)


def test_a_path_starts_the_daemon_and_what_was_set_is_saved_when_it_ends(location):
    assert ctl("-f", location, "set", "a", "1") == (0, "", "")
    assert ctl("-f", location, "get", "a") == (0, "1\n", "")
    assert ctl("get", "a", env={"PICKLEDBD_URL": str(location)}) == (0, "1\n", "")


def test_errors_are_one_line_and_status_3(tmp_path, on):
    status, out, err = ctl("-e", f"ipc://{tmp_path}/no.sock", "ping")
    assert (status, out, len(err.splitlines())) == (3, "", 1)
    assert err.startswith("pickledbctl: no daemon at ipc://")
    status, out, err = ctl("-f", tmp_path / "no" / "my.db", "ping")
    assert (status, out, len(err.splitlines())) == (3, "", 1)
    status, out, err = on("set", "k", str(2**64))
    assert (status, out, len(err.splitlines())) == (3, "", 1)
    assert "over 64 bits" in err
    assert "'k'" in err
    status, out, err = on("set", b"\xff".decode(errors="surrogateescape"), "1")
    assert (status, out, len(err.splitlines())) == (3, "", 1)


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["set", "k"],
        ["frobnicate"],
        ["-f", "a", "-e", "ipc:///b", "ping"],
        ["-t", "0", "ping"],
        ["-e", "a_path", "ping"],
    ],
)
def test_wrong_usage_is_status_2(args):
    status, _, err = ctl(*args)
    assert status == 2
    assert "usage: pickledbctl" in err


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (("set", "k", "1", "--ttl", "0"), "--ttl: '0' is not a number of seconds over 0"),
        (("expire", "k", "soon"), "SECONDS: 'soon' is not a number of seconds over 0"),
        (("lock", "--timeout", "-1", "x", "true"), "--timeout: '-1' is not a number of seconds"),
        (("incr", "k", "one"), "BY: 'one' is not a number"),
        (("-e", "/a/path", "ping"), "'/a/path' is none; ipc:///PATH or tcp://HOST:PORT is"),
    ],
)
def test_what_is_no_number_or_endpoint_is_named(args, what):
    status, out, err = ctl(*args)
    assert (status, out) == (2, "")
    assert what in err


def test_an_empty_location_is_not_the_default_one(daemon, db):
    db.set("a", 1)
    for option in ("-f", "-e"):
        status, _, _ = ctl(option, "", "purge", "-y", env={"PICKLEDBD_URL": daemon.endpoint})
        assert status in (2, 3)
    assert db.all() == ["a"]


def test_output_that_cannot_be_written_and_closed_streams_are_no_tracebacks(daemon, db):
    command = f"{sys.executable} -m pickledbd_client.ctl -e {daemon.endpoint}"
    for redirected, status in (
        ("set a 1 >&-", 0),
        ("set b 2 2>&- <&-", 0),
        ("purge -y <&-", 0),
        ("info >/dev/full", 3),
    ):
        ended = subprocess.run(
            ["bash", "-c", f"{command} {redirected}"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert ended.returncode == status, (redirected, ended)
        assert "Traceback" not in ended.stderr
    assert db.all() == []


def test_help_tells_about_values_and_exit_status():
    status, out, _ = ctl("--help")
    assert status == 0
    for word in ("VALUE is JSON", "exit status", "PICKLEDBD_URL", "examples"):
        assert word in out
    assert ctl("set", "--help")[0] == 0
    assert ctl("--version")[1].startswith("pickledbctl 0.")


def test_a_reader_that_has_had_enough_is_no_error(daemon, db):
    db.set_many({f"key {n}": n for n in range(100_000)})
    command = f"{sys.executable} -m pickledbd_client.ctl -e {daemon.endpoint} all | head -1"
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "key 0\n", "")


def test_ctrl_c_ends_it(daemon):
    os.kill(daemon.pid, signal.SIGSTOP)
    process = subprocess.Popen(
        [sys.executable, "-m", "pickledbd_client.ctl", "-e", daemon.endpoint, "ping"],
        stderr=subprocess.PIPE,
    )
    try:
        # it has connected once its interpreter is up; before that Ctrl+C ends it too
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert (process.returncode, err) == (130, b"")


@pytest.mark.parametrize(("answer", "left"), [("y\n", []), ("\n", ["a"]), ("no\n", ["a"])])
def test_at_a_terminal_purge_asks_first(daemon, db, answer, left):
    db.set("a", 1)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pickledbd_client.ctl", "-e", daemon.endpoint, "purge"],
        stdin=theirs,
        stderr=subprocess.PIPE,
    )
    os.write(ours, answer.encode())
    _, err = process.communicate(timeout=PATIENCE)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0
    assert f"Remove all 1 keys of {daemon.location}?".encode() in err
    assert db.all() == left


def test_what_is_piped_and_is_no_text_is_refused_whatever_the_locale(on, db):
    for locale in ("utf-8:strict", "utf-8:surrogateescape", "ascii"):
        status, out, err = on(
            "set", "k", "-", stdin=b"ab\xff", text=False, env={"PYTHONIOENCODING": locale}
        )
        assert (status, out) == (3, b"")
        assert b"'k'" in err
        assert b"byte 2" in err
        assert b"Traceback" not in err
        text = "\u00e9".encode()
        given = on("set", "l", "-", stdin=text, text=False, env={"PYTHONIOENCODING": locale})
        assert given == (0, b"", b"")
        assert db.pop("l") == "\u00e9"
    assert "k" not in db
