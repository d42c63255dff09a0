"""`pickledbctl info --watch`: a live view for people, lines for scripts."""

from __future__ import annotations

import json
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


def test_the_seconds_are_a_number_over_0(daemon):
    for wrong in ("0", "-1", "soon"):
        assert ctl("-e", daemon.endpoint, "info", f"--watch={wrong}")[0] == 2
