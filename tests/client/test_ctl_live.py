"""`pickledbctl info --watch`: a live view for people, lines for scripts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess

import pytest

from commanding import CTL, Terminal, ctl
from support import PATIENCE, Daemon


@pytest.fixture
def watching():
    """Begins pickledbctl with its output in a pipe."""
    begun = []

    def begin(*args):
        begun.append(
            subprocess.Popen(
                [*CTL, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate(timeout=PATIENCE)


def line_with(process, text):
    for line in process.stdout:
        if text in line:
            return line
    pytest.fail(f"it ended without {text!r}")


def test_in_a_pipe_it_is_a_line_each_time_with_what_grows(watching, daemon, db):
    process = watching("-e", daemon.endpoint, "info", "--watch", "0.1")
    first = process.stdout.readline()
    assert re.match(r"\d\d:\d\d:\d\d  keys=0 clients=\d+ dirty=0 ", first)
    assert "longest_slice_ms=" in first
    assert "pid=" not in first
    assert "/s=" not in first
    db.set_many({f"k{n}": n for n in range(500)})
    rate = re.search(r"keys/s=([\d.]+)", line_with(process, "keys/s="))
    assert float(rate[1]) > 0
    assert float(re.search(r" requests/s=([\d.]+)", line_with(process, "requests/s="))[1]) > 0
    db.save()
    line_with(process, "last_save=")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")


def test_as_json_it_is_an_object_each_time(watching, daemon, db):
    db.set("a", 1)
    process = watching("-e", daemon.endpoint, "info", "--json", "--watch", "0.1")
    for _ in range(2):
        told = json.loads(process.stdout.readline())
        assert (told["keys"], told["pid"], "rates" in told) == (1, daemon.pid, True)


@pytest.mark.parametrize("by", ["path", "endpoint"])
def test_it_outlives_the_daemon_and_starts_none(watching, location, by):
    daemon = Daemon(location)
    where = ("-f", location) if by == "path" else ("-e", daemon.endpoint)
    process = watching(*where, "info", "--watch", "0.05")
    line_with(process, "keys=0")
    daemon.kill()
    assert "unavailable, retrying: " in line_with(process, "unavailable")
    daemon = Daemon(location)
    with daemon.client() as db:
        db.set("a", 1)
        line_with(process, "keys=1")
    daemon.check_and_stop()


def test_at_a_terminal_the_view_is_drawn_anew(daemon, db):
    terminal = Terminal("-e", daemon.endpoint, "info", "--watch", "0.1")
    try:
        shown = terminal.until("longest_slice_ms")
        assert "\x1b[H\x1b[J" in shown
        assert str(daemon.pid) in shown
        db.set_many({f"k{n}": n for n in range(5000)})
        terminal.until("5,000")
        terminal.until("/s)")
        terminal.type("\x03")
        assert terminal.end()[0] == 0
    finally:
        terminal.close()


@pytest.mark.parametrize(("rows", "columns"), [(24, 80), (10, 30), (200, 500)])
def test_the_view_fits_into_the_terminal_and_begins_with_what_matters(db, daemon, rows, columns):
    db.set("k", 1)
    where = ("-e", daemon.endpoint)
    terminal = Terminal(*where, "info", "--watch", "0.05", size=(rows, columns))
    try:
        for _ in range(3):
            view = terminal.until("\x1b[H\x1b[J")
        lines = view.partition("\x1b")[0].split("\r\n")
    finally:
        terminal.close()
    assert len(lines) <= rows  # the last is that of the cursor
    assert max(map(len, lines)) <= columns
    names = [line.split()[0] for line in lines[2:-1]]
    assert names[0] == "keys"
    if rows >= 24:
        assert {"clients", "last_save_time", "longest_slice_ms", "requests", "errors"} <= set(names)
    if columns == 500:
        assert set(db.info()) <= set(names)
        wanted = r"^requests +\d+ \(\+[\d.]+/s\)  .*info: \d+ \(\+"
        assert re.search(wanted, "\n".join(lines), re.MULTILINE)


def test_what_has_members_is_told_in_words(location):
    daemon = Daemon(location, "--slow-ms", "0.0001")
    with contextlib.closing(daemon.client()) as db:
        db.set("k\n", 1)
        db.get_many(["a"] * 3)
        _, out, _ = ctl("-e", daemon.endpoint, "info")
        assert re.search(r"^limits +request_bytes: [\d,]+  .*  keys: -  ", out, re.MULTILINE)
        assert re.search(r"^requests +\d+  .*  set: 1  .*get_many: 1", out, re.MULTILINE)
        assert re.search(r"^errors +0$", out, re.MULTILINE)
        assert re.search(r"^slices +0\.1: \d+  .*  more: 0$", out, re.MULTILINE)
        moment = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
        who = rf"for uid {os.getuid()}, pid {os.getpid()}"
        assert re.search(rf"^slow +{moment} ", out, re.MULTILINE)
        for what in ("get_many of 3 items", r"set 'k\\n'"):
            line = rf"^ +{moment} {what} held [\d.]+ ms, {who}$"
            assert re.search(line, out, re.MULTILINE)
        assert "{" not in out
    daemon.stop()


def test_a_very_long_pause_is_a_long_one(watching, daemon):
    process = watching("-e", daemon.endpoint, "info", "--watch", "1e300")
    process.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")


def test_the_seconds_are_a_number_over_0(daemon):
    for wrong in ("0", "-1", "soon"):
        assert ctl("-e", daemon.endpoint, "info", f"--watch={wrong}")[0] == 2
