"""The log: its forms, that nobody can forge a line of it, and that it holds nobody up."""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import os
import pty
import re
import socket
import sys
from pathlib import Path

import pytest

from pickledbd import logs
from support import PROGRAM, Daemon, run, wait_until

ROOT = Path(__file__).parents[2]
FORGED = "a\npickledbd: stopping: SIGTERM\x1b[2K\u2028"


@pytest.fixture
def piped():
    """Makes handlers that write to a pipe, and reads what is in it."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)

    made = []

    def handler(form, **options):
        made.append(logs.Handler(form, writer, **options))
        return made[-1]

    def read():
        with contextlib.suppress(BlockingIOError):
            return os.read(reader, 2**20).decode()
        return ""

    yield handler, read
    for each in made:
        each.close()
    os.close(reader)
    os.close(writer)


@pytest.fixture
def journal(tmp_path, monkeypatch):
    """A journal's socket, and its path."""
    monkeypatch.chdir(tmp_path)  # the path of a socket has to be short
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
        there.bind("journal")
        there.setblocking(False)
        yield there, "journal"


def record(message, *args, level=logging.INFO, **extra):
    return logging.getLogger("test").makeRecord(
        "test", level, "", 1, message, args, extra.pop("exc_info", None), extra=extra
    )


def fault():
    """What is told of an error whose text a client has chosen."""
    try:
        raise ValueError(FORGED)
    except ValueError:
        return sys.exc_info()


def fields(entry):
    """What a journal takes an entry to say (systemd's Native Journal Protocol)."""
    found = {}
    while entry:
        line, _, entry = entry.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(entry[:8], "little")
            value, end, entry = entry[8 : 8 + size], entry[8 + size : 9 + size], entry[9 + size :]
            assert end == b"\n"
        found[name.decode()] = value.decode()
    return found


def test_a_line_for_people_is_one_line_whatever_a_client_put_into_it(piped):
    handler, read = piped
    handler("text").emit(record("key %s", FORGED))
    assert read() == "pickledbd: key a\\npickledbd: stopping: SIGTERM\\x1b[2K\\u2028\n"


def test_a_traceback_stands_behind_its_line_and_is_indented(piped):
    handler, read = piped
    handler("text").emit(record("a set failed", exc_info=fault()))
    first, *others = read().splitlines()
    assert first == "pickledbd: a set failed"
    assert len(others) > 3
    assert all(line.startswith("    ") for line in others)


def test_a_line_for_programs_is_an_object_with_the_event_and_its_fields(piped):
    handler, read = piped
    path = os.fsdecode(b"/tmp/\xff")
    handler("json").emit(
        record(
            "key %s in %s",
            FORGED,
            path,
            level=logging.ERROR,
            event="fault",
            peer_pid=7,
            path=path,
            exc_info=fault(),
        )
    )
    (line,) = read().split("\n")[:-1]
    told = json.loads(line)
    assert "ValueError: a\npickledbd: stop" in told.pop("traceback")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told.pop("time"))
    assert told == {
        "level": "error",
        "event": "fault",
        "message": f"key {FORGED} in /tmp/\\udcff",
        "peer_pid": 7,
        "path": "/tmp/\\udcff",
    }


@pytest.mark.parametrize(
    ("level", "priority"),
    [("DEBUG", "7"), ("INFO", "6"), ("WARNING", "4"), ("ERROR", "3"), ("CRITICAL", "2")],
)
def test_the_journal_gets_fields_and_a_priority(piped, journal, level, priority):
    handler, read = piped
    there, path = journal
    made = record(
        "key %s", FORGED, level=getattr(logging, level), event="slow", peer_uid=5, key=FORGED
    )
    handler("journal", journal=path).emit(made)
    assert fields(there.recv(2**16)) == {
        "MESSAGE": "key a\\npickledbd: stopping: SIGTERM\\x1b[2K\\u2028",
        "PRIORITY": priority,
        "SYSLOG_IDENTIFIER": "pickledbd",
        "PICKLEDBD_EVENT": "slow",
        "PICKLEDBD_PEER_UID": "5",
        "PICKLEDBD_KEY": FORGED,  # with its length, so it may hold anything
    }
    assert read() == ""


def test_the_journal_gets_a_traceback_as_one_entry(piped, journal):
    handler, _ = piped
    there, path = journal
    handler("journal", journal=path).emit(record("failed", exc_info=fault()))
    message = fields(there.recv(2**16))["MESSAGE"]
    assert message.startswith("failed\n    Traceback")
    with pytest.raises(BlockingIOError):
        there.recv(1)


def test_where_the_journal_s_socket_is_out_of_reach_lines_tell_their_priority(piped):
    handler, read = piped
    handler("journal", journal="/nowhere").emit(
        record("key %s", FORGED, level=logging.WARNING, exc_info=fault())
    )
    lines = read().splitlines()
    assert lines[0] == "<4>key a\\npickledbd: stopping: SIGTERM\\x1b[2K\\u2028"
    assert len(lines) > 4
    assert all(line.startswith("<4>    ") for line in lines[1:])


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_log_that_nobody_reads_holds_nobody_up_and_tells_later_what_is_missing(piped, form):
    handler, read = piped
    writing = handler(form)
    before = logging.raiseExceptions
    while not writing.lost:
        writing.emit(record("x" * 10_000))
    for _ in range(9):
        writing.emit(record("lost"))
    assert writing.lost == 10
    assert before == logging.raiseExceptions
    whole = read()
    writing.emit(record("and on"))
    lines = (whole + read()).splitlines()
    assert "and on" in lines[-2]
    assert "10 lines of this log are missing here" in lines[-1]
    if form == "json":
        assert json.loads(lines[-1])["count"] == 10
        assert json.loads(lines[-2])["message"] == "and on"  # on a line of its own
    writing.emit(record("told once"))
    assert len(read().splitlines()) == 1


def test_nor_does_a_journal_that_takes_no_more(piped, journal):
    handler, read = piped
    there, path = journal
    writing = handler("journal", journal=path)
    while not writing.lost:
        writing.emit(record("x" * 10_000))
    taken = 0
    with contextlib.suppress(BlockingIOError):
        while there.recv(2**16):
            taken += 1
    assert taken
    writing.emit(record("and on"))
    assert fields(there.recv(2**16))["MESSAGE"] == "and on"
    assert "1 lines of this log are missing" in fields(there.recv(2**16))["MESSAGE"]
    assert read() == ""


def test_a_log_whose_reader_has_gone_is_lost():
    reader, writer = os.pipe()
    os.close(reader)
    handler = logs.Handler("text", writer)
    handler.emit(record("nobody"))
    assert handler.lost == 1
    os.close(writer)
    closed = logs.Handler("text", -1)
    closed.emit(record("nobody"))
    assert closed.lost == 1


def test_a_mistaken_call_to_log_fails_nobody(piped, capsys):
    handler, _ = piped
    handler("text").emit(record("%d keys", "many"))
    assert "many" in capsys.readouterr().err


def test_the_journal_is_known_by_its_stream(monkeypatch, tmp_path):
    with (tmp_path / "log").open("w") as file:
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
        assert not logs.is_journal(file)
        found = os.fstat(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        assert logs.is_journal(file)
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino + 1}")
        assert not logs.is_journal(file)
        assert not logs.is_journal(None)


# The daemon's


def test_a_daemon_logs_a_line_of_json_for_each_event_from_start_to_stop(location):
    daemon = Daemon(location, "--log-format", "json")
    assert daemon.ready.startswith("pickledbd: serving")
    told = [json.loads(line) for line in daemon.stop().splitlines()]
    assert [each["event"] for each in told] == ["loaded", "serving", "stopping"]
    assert told[1]["endpoints"] == [daemon.endpoint]
    assert told[2]["why"] == "SIGTERM"


def test_what_it_cannot_serve_is_told_in_the_same_form(location):
    location.write_text("[]")
    status, said, err = run(location, "--log-format", "json")
    told = json.loads(err)
    assert (status, said) == (1, "")
    assert (told["event"], told["level"]) == ("failed", "critical")
    assert "not an object of keys" in told["message"]
    _, _, err = run(location)
    assert err == f"pickledbd: {told['message']}\n"


def test_the_level_says_what_is_told(location):
    assert Daemon(location, "--log-level", "warning").stop() == ""
    daemon = Daemon(location, "--log-level", "debug", "--log-format", "json")
    with contextlib.closing(daemon.client()) as db:
        db.set("a", 1)
    with contextlib.closing(daemon.client()) as other:
        wait_until(lambda: other.info()["clients"] == 1, "the first to be gone")
    told = [json.loads(line) for line in daemon.stop().splitlines()]
    mine = [each["event"] for each in told if each.get("peer_pid") == os.getpid()]
    assert mine[0] == "connected"
    assert "disconnected" in mine
    assert all(
        (each["peer"], each["peer_uid"]) == (f"uid {os.getuid()}, pid {os.getpid()}", os.getuid())
        for each in told
        if each.get("peer_pid") == os.getpid()
    )
    (saved,) = [each for each in told if each["event"] == "saved"]
    assert saved["bytes"] == location.stat().st_size


def test_who_comes_by_tcp_is_told_by_the_address(location):
    options = ("--log-level", "debug", "--log-format", "json", "--bind", "tcp://127.0.0.1:*")
    daemon = Daemon(location, *options)
    with socket.create_connection(("127.0.0.1", int(daemon.endpoint.rpartition(":")[2]))) as one:
        host, port = one.getsockname()
        with contextlib.closing(daemon.client()) as db:
            wait_until(lambda: db.info()["connections_accepted"] > 1, "all to be seen")
    told = [json.loads(line) for line in daemon.stop().splitlines()]
    assert f"{host}:{port}" in [each.get("peer_address") for each in told]


def test_no_value_is_logged_and_no_key_makes_a_line(location):
    daemon = Daemon(location, "--slow-ms", "0.0001")
    with contextlib.closing(daemon.client()) as db:
        db.set(FORGED, "the secret value")
        db.set("k" * 1000, "the secret value")
        assert len(db.info()["slow"]) > 1
    err = daemon.stop()
    assert "secret" not in err
    assert "k" * 100 not in err
    assert all(line.startswith("pickledbd: ") for line in err.splitlines())
    assert err.count("stopping: SIGTERM") == 1 + err.count("\\npickledbd: stopping: SIGTERM")


def test_a_daemon_whose_log_nobody_reads_goes_on_and_counts_what_is_lost(location):
    daemon = Daemon(location, "--log-level", "debug", "--log-format", "json")

    def lost():
        with socket.socket(socket.AF_UNIX) as one:  # two lines for each
            one.connect(daemon.endpoint.removeprefix("ipc://"))
        return db.info()["log_lines_lost"]

    with contextlib.closing(daemon.client()) as db:
        wait_until(lost, "the pipe to be full")
        db.set("a", 1)
        db.save()
    lines = daemon.stop().splitlines()  # which reads what there is
    assert len([json.loads(line) for line in lines if line.endswith("}")]) > 100
    assert json.loads(location.read_bytes()) == {"a": 1}


def test_nor_does_a_terminal_that_is_stopped_hold_it_up(location):
    ours, theirs = pty.openpty()
    script = f'exec "$@" 2>{os.ttyname(theirs)}'
    daemon = Daemon(location, "--log-level", "debug", program=("sh", "-c", script, "sh", *PROGRAM))

    def lost():
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(daemon.endpoint.removeprefix("ipc://"))
        return db.info()["log_lines_lost"]

    try:
        with contextlib.closing(daemon.client()) as db:
            wait_until(lost, "the terminal to be full")
        assert b"pickledbd: loaded" in os.read(ours, 2**16)
        daemon.stop()
    finally:
        os.close(ours)
        os.close(theirs)


# The list


def calls():
    for path in sorted((ROOT / "server" / "pickledbd").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "log"
            ):
                yield path, node


def events():
    """All that the source tells of."""
    for path in sorted((ROOT / "server" / "pickledbd").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    is_event = isinstance(key, ast.Constant) and key.value == "event"
                    if is_event and isinstance(value, ast.Constant):
                        yield value.value


def test_each_line_has_an_event_and_each_event_is_listed():
    without = [
        (path.name, node.lineno)
        for path, node in calls()
        if "extra" not in {keyword.arg for keyword in node.keywords}
    ]
    assert without == []
    readme = (ROOT / "systemd" / "README.md").read_text(encoding="utf-8")
    table = readme.split("## What it logs")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
    listed = re.findall(r"`(\w+)`", " ".join(cells))
    assert len(listed) == len(set(listed))
    assert set(listed) == set(events()) | {"connected", "disconnected"}
