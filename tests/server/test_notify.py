"""What the daemon tells its service manager: readiness, progress, status, and that it is alive."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time

import pytest

from managed import Manager
from pickledbd.notify import Notifier
from support import Daemon

KEYS = 200_000


@pytest.fixture
def manage(tmp_path):
    """Makes managers that listen."""
    with contextlib.ExitStack() as stack:

        def manage(**options):
            manager = Manager(tmp_path / "notify.sock", **options)
            stack.callback(manager.close)
            return manager

        yield manage


def test_it_tells_when_it_is_ready_what_there_is_and_when_it_stops(location, manage):
    location.write_text('{"a": 1}')
    manager = manage()
    daemon = Daemon(location, env=manager.env)
    ready = manager.until("READY")[-1]
    assert ready == {"READY": "1", "STATUS": "1 keys; 0 clients; 0 unsaved changes; no save yet"}
    with contextlib.closing(daemon.client()) as db:
        db.set("b", 2)
        assert manager.next() == {"STATUS": "2 keys; 1 clients; 1 unsaved changes; no save yet"}
        db.save()
        saved = manager.next()["STATUS"]
        assert saved.startswith("2 keys; 1 clients; 0 unsaved changes; saved at 20")
    daemon.process.send_signal(signal.SIGTERM)
    told = manager.until("STOPPING")
    assert int(told[-1]["EXTEND_TIMEOUT_USEC"]) >= 30e6
    assert daemon.end()[0] == 0


def test_while_nothing_changes_nothing_is_told(location, manage):
    script = "import sys; from pickledbd import cli, loop; loop.UPKEEP_SECONDS = 0.05; "
    script += "sys.exit(cli.main(sys.argv[1:]))"
    manager = manage(watchdog_usec=600_000_000)
    daemon = Daemon(location, program=(sys.executable, "-c", script), env=manager.env)
    assert manager.until("READY")[-1]["WATCHDOG"] == "1"
    with pytest.raises(TimeoutError):
        manager.next(0.5)
    daemon.stop()


def test_a_failed_save_and_refused_writes_are_in_the_status(wired):
    about = wired.engine._about
    wired.engine._saver.failed(error := OSError("no room\nREADY=1"))
    assert about.line().startswith(f"writes are refused: {error}; 0 keys; ")
    wired.engine._status.last_save_error = "cannot save it"
    assert about.line().endswith("the last save failed: cannot save it")


def layouts():
    entries = (f'"key:{n}":{n}' for n in range(KEYS))
    yield "{\n" + ",\n".join(entries) + "\n}\n"
    yield json.dumps({f"key:{n}": n for n in range(KEYS)})


@pytest.mark.parametrize("layout", range(2), ids=["of ours", "of pickleDB's, on one line"])
def test_a_start_that_takes_long_asks_for_more_time_as_it_gets_on(layout, location, manage):
    text = list(layouts())[layout]
    location.write_text(text)
    script = "import sys; from pickledbd import cli, notify; notify.PROGRESS_SECONDS = 0; "
    script += "sys.exit(cli.main(sys.argv[1:]))"
    manager = manage(watchdog_usec=600_000_000)
    daemon = Daemon(location, program=(sys.executable, "-c", script), env=manager.env)
    *told, ready = manager.until("READY")
    assert len(told) >= 3
    for each in told:
        assert each.keys() == {"STATUS", "EXTEND_TIMEOUT_USEC"}  # not alive: that would begin it
        assert each["STATUS"].startswith("loading: my.db, ")
        # At least a minute, and beyond that as long as a slow machine needs for all of it
        assert int(each["EXTEND_TIMEOUT_USEC"]) >= 60e6 + len(text) / 8.4
    assert ready["STATUS"].startswith("200,000 keys; ")
    daemon.stop()


def test_a_replay_that_takes_long_asks_for_more_time_too(location, manage):
    location.write_text("{}")
    daemon = Daemon(location)
    with contextlib.closing(daemon.client()) as db:
        db.set_many({f"key:{n}": n for n in range(KEYS // 10)})
    daemon.kill()
    location.write_text('{"another": 1}')
    script = "import sys; from pickledbd import cli, notify; notify.PROGRESS_SECONDS = 0; "
    script += "sys.exit(cli.main(sys.argv[1:]))"
    manager = manage()
    daemon = Daemon(
        location,
        "--replay-journal",
        program=(sys.executable, "-c", script),
        env=manager.env,
    )
    told = manager.until("READY")
    saving = [each for each in told if each["STATUS"].startswith("loading: saving 20,001 keys, ")]
    assert saving
    assert all(int(each["EXTEND_TIMEOUT_USEC"]) >= 60e6 for each in saving)
    daemon.check_and_stop()


def test_a_stop_that_takes_long_asks_for_more_time_as_it_gets_on(location, manage):
    """By a disk that takes two seconds for the last step."""
    script = "import sys, time; from pickledbd import cli, snapshot\n"
    script += "publish = snapshot.Writing.publish\n"
    script += "def slow(self): time.sleep(2.5); publish(self)\n"
    script += "snapshot.Writing.publish = slow\nsys.exit(cli.main(sys.argv[1:]))"
    manager = manage(watchdog_usec=1_500_000)
    daemon = Daemon(location, program=(sys.executable, "-c", script), env=manager.env)
    with contextlib.closing(daemon.client()) as db:
        db.set("a", 1)
    manager.until("READY")
    daemon.process.send_signal(signal.SIGTERM)
    manager.until("STOPPING")
    told = [manager.next(1.5) for _ in range(2)]
    for each in told:
        assert each["STATUS"] == "stopping: saving 1 keys, 0 MiB written"
        assert int(each["EXTEND_TIMEOUT_USEC"]) >= 30e6
        assert each["WATCHDOG"] == "1"
    assert daemon.end()[0] == 0


@pytest.mark.parametrize("busy", [False, True])
def test_it_tells_that_it_is_alive_in_half_of_what_the_watchdog_waits(busy, location, manage):
    manager = manage(watchdog_usec=1_000_000)
    daemon = Daemon(location, env=manager.env)
    db = daemon.client()
    manager.until("READY")
    for _ in range(4):
        alive = False
        until = time.monotonic() + 0.9  # of 1, on a machine that may be busy
        while not alive and time.monotonic() < until:
            if busy:
                db.set("a", 1)
            with contextlib.suppress(TimeoutError):
                alive = "WATCHDOG" in manager.next(0.001 if busy else 0.9)
        assert alive
    db.close()
    daemon.stop()


def test_a_daemon_that_is_stuck_does_not_tell_that_it_is_alive(location, manage):
    script = "import sys, time; from pickledbd import cli, handlers\n"
    script += "handlers.HANDLERS['get'] = lambda *_: time.sleep(3600)\n"
    script += "sys.exit(cli.main(sys.argv[1:]))"
    manager = manage(watchdog_usec=300_000)
    daemon = Daemon(location, program=(sys.executable, "-c", script), env=manager.env)
    manager.until("WATCHDOG")
    with contextlib.closing(daemon.client(timeout=0.1)) as db, pytest.raises(TimeoutError):
        db.get("a")
    with contextlib.suppress(TimeoutError):
        while True:  # what was told before that
            manager.next(0)
    with pytest.raises(TimeoutError):
        manager.next(0.6)
    daemon.process.send_signal(signal.SIGABRT)  # as systemd does
    assert "Fatal Python error: Aborted" in daemon.end()[1]


# Without a daemon


def test_what_the_environment_tells_is_for_this_process_alone(monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert Notifier.from_environment()._watchdog == 2.0
    assert not [name for name in os.environ if name.startswith(("NOTIFY_", "WATCHDOG_"))]
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert Notifier.from_environment()._watchdog == float("inf")
    assert Notifier.from_environment().keep_alive(0.0) == float("inf")


def test_who_is_awake_tells_it_after_a_third_and_nobody_is_woken_before_the_half(manage, tmp_path):
    manager = manage()
    notifier = Notifier(os.fspath(tmp_path / "notify.sock"), 60.0)
    assert notifier.keep_alive(1000.0) == 1030.0
    assert notifier.keep_alive(1019.0) == 1030.0
    assert notifier.keep_alive(1020.5) == 1050.5
    assert [manager.next(0) for _ in range(2)] == [{"WATCHDOG": "1"}] * 2
    with pytest.raises(TimeoutError):
        manager.next(0)


def test_what_others_name_adds_no_members(manage, tmp_path):
    manager = manage()
    Notifier(os.fspath(tmp_path / "notify.sock")).status("a file\nREADY=1")
    assert manager.next(0) == {"STATUS": "a file READY=1"}


def test_a_manager_that_does_not_listen_is_not_waited_for(manage, tmp_path):
    manager = manage()
    notifier = Notifier(os.fspath(tmp_path / "notify.sock"), 60.0)
    for number in range(3000):  # more than its queue holds
        notifier.status(str(number))
    assert notifier.keep_alive(1000.0) == 1003.0  # to be tried again
    with contextlib.suppress(TimeoutError):
        while True:
            manager.next(0)
    assert notifier.keep_alive(1003.0) == 1033.0
    Notifier("/nowhere/at/all").status("nobody is told")
