"""`pickledbctl` where several people and scripts meet: versions, expiry, locks, watching."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from support import PATIENCE, wait_until


@pytest.fixture
def on(daemon):
    """pickledbctl on the test's daemon: exit status and the two outputs."""

    def run(*args, stdin=""):
        ended = subprocess.run(
            command(daemon, *args),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return ended.returncode, ended.stdout, ended.stderr

    return run


def command(daemon, *args):
    module = [sys.executable, "-m", "pickledbd_client.ctl", "-e", daemon.endpoint]
    return [*module, *map(str, args)]


@pytest.fixture
def begin(daemon):
    """A pickledbctl that is at it, as its process."""
    begun = []

    def start(*args):
        begun.append(
            subprocess.Popen(
                command(daemon, *args),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate(timeout=PATIENCE)


def test_numbers_are_added_to(on, db):
    assert on("incr", "n") == (0, "1\n", "")
    assert on("incr", "n", "-3") == (0, "-2\n", "")
    assert on("incr", "m", "0.5", "--default", "2") == (0, "2.5\n", "")
    assert on("incr", "n", "one")[0] == 2
    assert on("incr", "--", "-n", "-1e3") == (0, "-1000.0\n", "")
    db.set("s", "text")
    status, out, err = on("incr", "s")
    assert (status, out) == (3, "")
    assert "'s'" in err
    assert db.get("s") == "text"


def test_a_value_is_set_if_nobody_has_changed_it(on, db):
    assert on("cas", "k", "0", '{"a": 1}') == (0, "", "")
    status, out, _ = on("get", "--versioned", "k")
    told = json.loads(out)
    assert (status, told["value"]) == (0, {"a": 1})
    assert on("cas", "k", told["version"], "2") == (0, "", "")
    status, _, err = on("cas", "k", told["version"], "3")
    assert status == 1
    assert "'k'" in err
    assert db.get("k") == 2
    assert on("pop", "k") == (0, "2\n", "")
    assert on("pop", "k")[0] == 1


def test_keys_live_for_as_long_as_is_said(on, db):
    assert on("set", "k", "1", "--ttl", "100") == (0, "", "")
    status, out, _ = on("ttl", "k")
    assert status == 0
    assert 0 < float(out) <= 100
    assert on("persist", "k") == (0, "", "")
    assert on("ttl", "k") == (0, "-\n", "")
    assert on("expire", "k", "50") == (0, "", "")
    assert 0 < db.ttl("k") <= 50
    for args in (("ttl", "no"), ("expire", "no", "1"), ("persist", "no")):
        status, out, err = on(*args)
        assert (status, out) == (1, "")
        assert "no key 'no'" in err
    for wrong in ("0", "-1", "nan", "inf", "soon"):
        assert on("set", "k", "2", "--ttl", wrong)[0] == 2
    assert db.get("k") == 1


def test_some_keys_are_printed(on, db):
    db.update({"user:1": 1, "job:1": b"\xff", "user:2": [2]})
    assert on("all", "--prefix", "user:") == (0, "user:1\nuser:2\n", "")
    assert on("all", "-g", "*:1") == (0, "user:1\njob:1\n", "")
    status, out, _ = on("items", "-g", "*:1")
    assert status == 0
    assert list(map(json.loads, out.splitlines())) == [
        {"key": "user:1", "value": 1},
        {"key": "job:1", "value": {"$binary": {"base64": "/w==", "subType": "00"}}},
    ]


def test_a_command_runs_while_a_lock_is_held(on, begin, db):
    held = begin("lock", "L", "--", "sh", "-c", "echo $PICKLEDBD_TOKEN; exec sleep 60")
    token = int(held.stdout.readline())
    assert db.set("k", 1, token=token)
    status, out, err = on("lock", "L", "--timeout", "0", "--", "echo", "ran")
    assert (status, out) == (1, "")
    assert "'L'" in err
    assert on("set", "k", "2", "--token", token) == (0, "", "")
    waits = begin("lock", "L", "--", "echo", "ran")
    wait_until(lambda: db.info()["waiting"], "the second to wait")
    held.send_signal(signal.SIGTERM)  # which the command hears of
    assert held.wait(PATIENCE) == 128 + signal.SIGTERM
    assert waits.communicate(timeout=PATIENCE) == ("ran\n", "")
    assert waits.returncode == 0
    for late in (("set", "k", "3"), ("expire", "k", "9"), ("persist", "k"), ("purge", "-y")):
        status, _, err = on(*late, "--token", token)
        assert status == 3
        assert "not held any more" in err
    assert db.get("k") == 2


@pytest.mark.parametrize("options", [[], ["--timeout", "5"], ["--ttl", "9", "--timeout", "5"]])
def test_the_command_is_run_as_it_stands_behind_the_first_dashes(on, options):
    """Whatever it makes of further ones: to git they tell files from branches."""
    argv = ["printf", "[%s]", "a", "--", "-b", "--", "c"]
    assert on("lock", "L", *options, "--", *argv) == (0, "[a][--][-b][--][c]", "")
    assert on("lock", *options, "L", "--", *argv) == (0, "[a][--][-b][--][c]", "")


def test_dashes_behind_the_first_are_arguments(on, db):
    assert on("set", "k", "--", "--") == (0, "", "")
    assert on("set", "--", "--", "v") == (0, "", "")
    assert dict(db) == {"k": "--", "--": "v"}
    assert on("get", "--", "--") == (0, '"v"\n', "")
    assert on("remove", "--", "--") == (0, "", "")
    assert list(db) == ["k"]
    status, _, err = on("get", "k", "--", "--")
    assert status == 2
    assert err.endswith("unrecognized arguments: --\n")


@pytest.mark.parametrize(("argv", "wrong"), [(["L", "--bogus"], "--bogus"), (["L", "a"], "a")])
def test_what_a_lock_does_not_know_is_named(on, argv, wrong):
    status, out, err = on("lock", *argv, "--", "echo", "ran")
    assert (status, out) == (2, "")
    assert err.endswith(f"unrecognized arguments: {wrong}\n")


@pytest.mark.parametrize("argv", [["L"], ["L", "--"], ["L", "echo", "ran"], ["--", "echo"]])
def test_a_lock_without_a_command_behind_dashes_is_wrong_usage(on, argv):
    status, out, err = on("lock", *argv)
    assert (status, out) == (2, "")
    assert "COMMAND" in err or "NAME" in err


def test_a_command_that_cannot_be_run_leaves_no_lock(on, db):
    status, _, err = on("lock", "L", "--", "/no/such/command")
    assert status == 3
    assert "cannot run /no/such/command" in err
    assert db.info()["locks"] == 0


def test_changes_are_printed_until_ctrl_c(begin, db):
    watch = begin("watch", "user:")
    wait_until(lambda: db.info()["waiting"], "the watch to begin")
    db.set("job:1", 1)
    db.set("user:1", b"\xff")
    db.remove("user:1")
    first, second = (json.loads(watch.stdout.readline()) for _ in range(2))
    value = {"$binary": {"base64": "/w==", "subType": "00"}}
    assert first == {"key": "user:1", "value": value, "seq": first["seq"]}
    assert second == {"key": "user:1", "removed": True, "seq": second["seq"]}
    again = begin("watch", "user:", "--since", first["seq"])
    assert json.loads(again.stdout.readline()) == second
    since_long = begin("watch", "--since", 1)
    told = json.loads(since_long.stdout.readline())
    assert told == {"resync": {"job:1": 1}, "seq": told["seq"]}
    for process in (watch, again, since_long):
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.communicate() == ("", "")
