"""The configuration file: what it may say, what counts, and how it is refused."""

from __future__ import annotations

import argparse
import contextlib
import json

import pytest

from pickledbd import config
from support import Daemon, run

KEYS = config.keys()

SECRET = ("--lock-fd", "--detach")
"""What is between a client and the daemon that it starts."""


@pytest.fixture
def write(tmp_path):
    """Writes a file; the option that names it."""

    def write(text):
        path = tmp_path / "pickledbd.toml"
        path.write_text(text)
        return f"--config={path}"

    return write


def sample(action):
    """The text of a value that the option may have, and is not its default."""
    if action.choices:
        return next(each for each in action.choices if each != action.default)
    for text in ("7", "70", "ipc:///tmp/some.sock"):
        if action.type is None:
            return "ipc:///tmp/some.sock"
        with contextlib.suppress(argparse.ArgumentTypeError, ValueError):
            action.type(text)
            return text
    raise AssertionError(action)


@pytest.mark.parametrize("key", sorted(KEYS))
def test_every_option_can_be_given_in_the_file(key, write):
    action = KEYS[key]
    location = [] if key == "location" else ["my.db"]
    if action.nargs == 0:
        line, given = f"{key} = true", [f"--{key}"]
    else:
        text = sample(action)
        value = text if isinstance((action.type or str)(text), (int, float)) else json.dumps(text)
        repeats = type(action).__name__ == "_AppendAction"
        line = f"{key} = [{value}]" if repeats else f"{key} = {value}"
        given = [text] if key == "location" else [f"--{key}", text]
    by_file = config.options([*location, write(line)])
    by_line = config.options([*location, *given])
    by_line.config = by_file.config
    assert by_file == by_line
    assert by_file != config.options([*(location or ["my.db"])])


def test_what_there_is_no_key_for_is_between_client_and_daemon():
    known = {name for each in config.parser()._actions for name in each.option_strings}
    keys = {f"--{key}" for key in KEYS}
    assert {name for name in known if name.startswith("--")} - keys == {
        *("--help", "--version", "--config"),
        *SECRET,
    }


def test_the_command_line_counts_before_the_file_and_the_file_before_the_default(write):
    file = write('bind = ["ipc:///a"]\nbackups = 3\nmax-request = 7\nreplay-journal = true\n')
    found = config.options(
        ["my.db", file, "--bind", "ipc:///b", "--backups=0", "--discard-journal"]
    )
    assert (found.bind, found.backups, found.max_request) == (["ipc:///b"], 0, 7)
    assert (found.choice, found.durability) == ("discard", "journal")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("max-reqest = 1", "there is no key max-reqest; did you mean max-request?"),
        ("max_request = 1", "there is no key max_request; did you mean max-request?"),
        ("colour = 1", "there is no key colour; the keys are location, bind,"),
        ("config = 'x'", "there is no key config; "),
        ("lock-fd = 3", "there is no key lock-fd; "),
        ("[server]\nbind = []", "there is no key server; "),
        ("max-request = '1'", "max-request: it has to be a number, and is a text in quotes: '1'"),
        ("max-request = true", "max-request: it has to be a number, and is true or false: True"),
        ("max-request = 0", "max-request: '0' is no number of MiB, 1 to 1024"),
        ("max-request = 1.5", "max-request: '1.5' is no number of MiB, 1 to 1024"),
        ("idle-exit = nan", "idle-exit: 'nan' is no number of seconds, 0 or more"),
        ("idle-exit = [1]", "idle-exit: it has to be a number, and is an array: [1]"),
        ("location = 5", "location: it has to be a text in quotes, and is a number: 5"),
        ("location = 2026-01-01", "location: it has to be a text in quotes, and is a date or"),
        ("bind = 'ipc:///a'", "bind: it has to be an array, and is a text in quotes: 'ipc:///a'"),
        ("bind = [1]", "bind: it has to be a text in quotes, and is a number: 1"),
        ("durability = 'some'", "durability: 'some' is none of save, journal, fsync"),
        ("check = 1", "check: it has to be true or false, and is a number: 1"),
        (
            "replay-journal = true\ndiscard-journal = true",
            "replay-journal and discard-journal exclude each other",
        ),
        ("bind = [", "it is not TOML: "),
        ("bind = " + "[" * 5000, "it is not TOML: "),
        (r'location = "a\u0000b"', "location: 'a\\x00b' is not fit: it has a NUL character"),
        ("backups = 1\nbackups = 1", "it is not TOML: Cannot overwrite"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line_that_names_file_and_key(text, why, write, tmp_path):
    file = write(text)
    status, out, err = run(tmp_path / "my.db", file)
    assert (status, out) == (2, "")
    assert err.startswith(f"pickledbd: {file.removeprefix('--config=')}: {why}")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "my.db").exists()


def test_two_that_exclude_each_other_may_both_be_false(write):
    found = config.options(["my.db", write("replay-journal = false\ndiscard-journal = true\n")])
    assert found.choice == "discard"


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path, write):
    missing = tmp_path / "missing.toml"
    status, _, err = run("my.db", "--config", missing)
    assert (status, err) == (2, f"pickledbd: {missing}: there is no such file\n")
    status, _, err = run("my.db", "--config", tmp_path)
    assert (status, err) == (2, f"pickledbd: {tmp_path}: it cannot be read: Is a directory\n")
    option = write("")
    (tmp_path / "pickledbd.toml").write_bytes(b"location = '\xff'")
    assert "it is not TOML" in run("my.db", option)[2]


def test_a_file_may_be_missing_where_that_is_said(tmp_path, write):
    assert config.options(["my.db", f"--config=-{tmp_path}/missing.toml"]).location == "my.db"
    option = write("backups = 3").replace("=", "=-")
    assert config.options(["my.db", option]).backups == 3


def test_a_daemon_does_what_the_file_says(tmp_path, write):
    path = tmp_path / "data" / "my.db"
    path.parent.mkdir()
    file = write(f'location = "{path}"\ndurability = "fsync"\nmax-request = 2\n')
    status, _, err = run(tmp_path / "other.db", file, "--check")
    assert status == 0, err
    daemon = Daemon(path, file)
    with contextlib.closing(daemon.client()) as db:
        assert db.info()["durability"] == "fsync"
        assert db.info()["location"] == str(path)
    daemon.check_and_stop()
