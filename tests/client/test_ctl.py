"""`pickledbctl` as a person and a shell script use it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from commanding import ctl
from pickledbd_client.ctl import main
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


@pytest.fixture
def told(capsys):
    """What pickledbctl prints where it does nothing but that: in this process, which is quick."""

    def tell(*args):
        with pytest.raises(SystemExit) as end:
            main(args)
        assert end.value.code == 0
        return capsys.readouterr().out

    return tell


def test_help_tells_about_values_and_exit_status(told):
    out = told("--help")
    for word in ("VALUE is JSON", "exit status", "PICKLEDBD_URL", "examples"):
        assert word in out
    assert "VALUE" in told("set", "--help")
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


def test_ctrl_c_can_end_no_import_that_orjson_makes_while_it_is_loaded():
    """It would crash."""
    looks = """if True:
        import sys
        class Look:
            begun = False
            def find_spec(self, name, path=None, target=None):
                self.begun = self.begun or name == "orjson.orjson"
                if self.begun and not hasattr(sys.modules["orjson"], "dumps"):
                    print(name)
        sys.meta_path.insert(0, Look())
        import {}
    """
    for package in ("pickledbd_client", "pickledbd.cli"):
        command = [sys.executable, "-c", looks.format(package)]
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        assert ended.stdout.split() == ["orjson.orjson"]


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


def test_whether_a_key_is_there_is_the_exit_status(on, db):
    db.set("a", None)
    assert on("exists", "a") == (0, "", "")
    assert on("exists", "b") == (1, "", "")


def test_a_default_is_set_once(on, db):
    assert on("setdefault", "k", "[1]") == (0, "[1]\n", "")
    assert on("setdefault", "k", "2") == (0, "[1]\n", "")
    assert db.db == {"k": [1]}


def test_the_last_item_is_popped(on, db):
    db.db = {"a": 1, "b": b"\xff"}
    wanted = '{"key":"b","value":{"$binary":{"base64":"/w==","subType":"00"}}}\n'
    assert on("popitem") == (0, wanted, "")
    assert on("popitem")[0] == 0
    status, out, err = on("popitem")
    assert (status, out, "no keys in" in err) == (1, "", True)


def test_several_keys_at_once(on, db):
    assert on("len") == (0, "0\n", "")
    assert on("set-many", "a", "1", "b c", "[2]", "--ttl", "60") == (0, "", "")
    assert db.db == {"a": 1, "b c": [2]}
    assert db.ttl("a")
    assert on("get-many", "b c", "a") == (
        0,
        '{"key":"b c","value":[2]}\n{"key":"a","value":1}\n',
        "",
    )
    status, out, err = on("get-many", "a", "x", "y")
    assert (status, out) == (1, '{"key":"a","value":1}\n')
    assert "no key 'x', 'y' in" in err
    assert on("set-many", "--", "-x", "--", "--", "-1") == (0, "", "")
    assert (db["-x"], db["--"]) == ("--", -1)
    status, out, err = on("set-many", "a", "2", "b")
    assert (status, out) == (2, "")
    assert "no value is given for key 'b'" in err
    status, out, err = on("set-many", "a", "2", "b", str(2**64))
    assert (status, out) == (3, "")
    assert "'b'" in err
    assert db["a"] == 1
    assert on("remove-many", "a", "x", "y") == (0, "1\n", "")
    assert on("len") == (0, "3\n", "")


def test_every_command_has_help_with_an_example_of_it(told):
    listed = told("--help").split("\ncommands:")[1].split("\n\n")[0]
    names = re.findall(r"^    ([a-z-]+) +\S", listed, re.MULTILINE)
    assert len(names) > 25
    assert {"export", "import", "backup", "shell", "setdefault", "exists"} <= set(names)
    for name in names:
        examples = told(name, "--help").split("\nexamples:\n")[1].splitlines()
        assert all("pickledbctl " in line for line in examples)
        assert any(f" {name}" in line for line in examples)


def test_the_exit_status_told_is_that_of_the_readme(told):
    listed = dict(re.findall(r"^  (\d+) +(\S.*)$", told("--help"), re.MULTILINE))
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert listed == dict(re.findall(r"^\| `(\d+)` \| (.*) \|$", readme, re.MULTILINE))


def test_items_and_keys_stream_to_a_reader_that_has_had_enough(daemon, db):
    db.set_many({f"key {n}": "x" * 100 for n in range(50_000)})
    for command, first in (("items", '{"key":"key 0"'), ("export", '{"key":"key 0"')):
        line = f"{sys.executable} -m pickledbd_client.ctl -e {daemon.endpoint} {command} | head -1"
        ended = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True,
            timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.startswith(first)
