"""`pickledbctl shell`, by a person at a prompt and by a script in a pipe."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from pathlib import Path

import pytest

from commanding import CTL, Terminal, ctl
from pickledbd_client import ctl_shell
from pickledbd_client.ctl_parser import of_lines
from pickledbd_client.ctl_table import add_all
from pickledbd_client.raw import RawPickleDB
from support import wait_until


@pytest.fixture
def piped(daemon):
    """The shell with these lines."""

    def run(*lines):
        script = "\n".join(lines).encode(errors="surrogateescape")
        status, out, err = ctl("-e", daemon.endpoint, "shell", stdin=script, text=False)
        return status, out.decode(), err.decode()

    return run


def test_lines_are_commands_as_on_the_command_line(piped, db):
    status, out, err = piped(
        "set greeting 'Hello, world!'",
        'set "a key" \'{"n": [1, 2]}\' --ttl 60',
        "",
        "   # a comment",
        "get 'a key'",
        "get --raw greeting",
        "incr -- -n -3",
        "all --json",
    )
    assert (status, err) == (0, "")
    assert out == '{"n":[1,2]}\nHello, world!-3\n["greeting","a key","-n"]\n'
    assert db.ttl("a key")


def test_an_error_is_one_line_and_the_last_one_is_the_exit_status(piped, db):
    status, out, err = piped(
        "frobnicate",
        "set k",
        "set k {'x",
        "get nobody",
        "set k 99999999999999999999",
        "export /no/such/folder/x.json",
        b"get \xff".decode(errors="surrogateescape"),
        "expire k soon",
        "set k 5",
        "len",
    )
    assert (status, out) == (2, "1\n")
    said = err.splitlines()
    assert all(line.startswith("pickledbctl: ") for line in said)
    for line, what in zip(
        said,
        (
            "there is no command 'frobnicate'",
            "VALUE (help set tells more)",
            "No closing quotation",
            "no key 'nobody'",
            "over 64 bits",
            "cannot write /no/such/folder/x.json",
            "lone surrogate",
            "'soon' is not a number of seconds",
        ),
        strict=True,
    ):
        assert what in line
    assert db["k"] == 5
    assert piped("get nobody", "len")[0] == 1
    assert piped("set k 99999999999999999999", "len")[0] == 3
    assert piped("set k 1", "len")[0] == 0
    assert piped()[0] == 0


def test_help_and_exit(piped):
    status, out, err = piped("help", "help set", "set --help", "help nothing", "exit", "len")
    assert status == 2
    assert "there is no command 'nothing'" in err
    for word in ("  setdefault ", "  export ", "  lock ", "usage: set ", "examples:"):
        assert word in out
    assert "shell" not in out.split("usage:")[0]
    assert not out.endswith("0\n")


def test_a_command_may_read_what_follows(piped, db):
    assert piped("set before 1", "set text -", "all", "that is left")[0] == 0
    assert db.db == {"before": 1, "text": "all\nthat is left"}


def test_a_lock_is_held_for_its_command_alone(piped):
    status, out, _ = piped("lock x -- sh -c 'echo $PICKLEDBD_TOKEN'", "lock x --timeout 0 -- true")
    assert status == 0
    assert int(out) > 0


def test_a_reader_that_has_had_enough_ends_it(daemon, db):
    db.set_many({f"key {n}": n for n in range(100_000)})
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [*CTL, "-e", daemon.endpoint, "shell"],
        input=b"all\nset after 1\n",
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert "after" not in db


@pytest.fixture
def prompt(daemon, tmp_path):
    """Makes shells at a terminal."""
    begun = []

    def begin():
        begun.append(
            Terminal(
                "-e", daemon.endpoint, "shell", env={"XDG_STATE_HOME": str(tmp_path / "state")}
            )
        )
        begun[-1].until("my.db> ")
        return begun[-1]

    yield begin
    for terminal in begun:
        terminal.close()


def is_asleep(pid):
    """Whether it waits for something; true where the system does not tell."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
    return True


def test_a_person_at_a_prompt(prompt, db):
    shell = prompt()
    shell.type("set a 5\r")
    shell.until("my.db> ")
    assert db["a"] == 5
    shell.type("get nobody\r")
    shell.until("no key 'nobody'")
    shell.until("my.db> ")
    os.write(shell.ours, b"get \xff\r")
    shell.until("lone surrogate")
    shell.until("my.db> ")
    shell.type("get wron")
    shell.until("wron")
    # Python's own prompt does not notice a signal in the moment before it sleeps
    wait_until(lambda: is_asleep(shell.process.pid), "it to wait")
    shell.type("\x03")  # Ctrl+C clears the line
    shell.until("my.db> ")
    shell.type("get a\r")
    assert "5" in shell.until("my.db> ").splitlines()
    shell.type("\x04")  # Ctrl+D ends
    status, _ = shell.end()
    assert status == 3


def test_ctrl_c_ends_what_goes_on_and_not_the_shell(prompt, db, tmp_path):
    shell = prompt()
    shell.type("watch\r")
    wait_until(lambda: db.info()["waiting"], "the watch")
    db.set("k", 1)
    shell.until('"key":"k"')
    shell.type("\x03")
    shell.until("my.db> ")
    fifo = tmp_path / "fifo.jsonl"
    os.mkfifo(fifo)
    shell.type(f"import {fifo}\r")
    with fifo.open("w") as writing:
        writing.write('{"key":"b","value":1}\n' * 20_000)  # more than a pipe holds: it is read
        shell.type("\x03")
        shell.until("interrupted; nothing was changed")
    shell.until("my.db> ")
    shell.type("info --watch\r")
    shell.until("Ctrl+C ends it")
    shell.type("\x03")
    shell.until("my.db> ")
    shell.type("exit\r")
    assert shell.end()[0] == 0


def test_lines_are_remembered_for_their_user_alone(prompt, db, tmp_path):
    shell = prompt()
    shell.type("set a 5\r")
    shell.until("my.db> ")
    shell.type("exit\r")
    assert shell.end()[0] == 0
    history = tmp_path / "state" / "pickledbd" / "history"
    assert "set a 5" in history.read_text().splitlines()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    db.remove("a")
    shell = prompt()
    shell.type("\x10\x10\r")  # Ctrl+P: the line before, and the one before that
    shell.until("my.db> ")
    assert db["a"] == 5
    shell.type("\x04")
    assert shell.end()[0] == 0


def test_tab_completes_commands_and_keys(prompt, db):
    db.db = {"user:ann": 1, "job": 2}
    shell = prompt()
    shell.type("persi\tus\t\r")
    assert "persist user:ann" in shell.until("my.db> ")
    shell.type("exit\r")
    assert shell.end()[0] == 0


def test_what_may_be_completed(daemon, db):
    db.set_many({f"many:{n}": n for n in range(30_000)})
    db.update({"user:1": 1, "user:2": 2, "a key": 3})
    commands = of_lines()
    add_all(commands)
    with RawPickleDB(daemon.endpoint) as raw:

        def offered(line):
            return ctl_shell.candidates(raw, commands, line, line.rpartition(" ")[2])

        assert offered("ex") == ["exists ", "expire ", "export ", "exit "]
        assert "set " in offered("")
        assert offered("get user") == ["user:1 ", "user:2 "]
        assert offered("get a") == ["'a key' "]
        assert offered("help exp") == ["expire", "export"]
        assert offered("set k --t") == ["--token", "--ttl"]
        assert offered("nothing x") == []
        assert len(offered("get many:")) == ctl_shell.KEYS_MAX
        assert raw.ping()
