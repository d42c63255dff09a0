"""Starts, stops and deaths under a booted systemd, while clients are at work."""

from __future__ import annotations

import contextlib
import json
import time

import pytest

from booted import marks, needs_root
from support import wait_until

pytestmark = [*marks, needs_root]

MANY_KEYS = 1_000_000

# Counts in the database, by threads that each make new connections too, until a file is there.
# Prints what was acknowledged, and what failed.
COUNT = """
import json, os, threading, time
go_on, counted, failures = True, [0] * 4, []

def count(number):
    db = PickleDB()
    while go_on:
        try:
            db.incr("count")
            counted[number] += 1
            new = PickleDB()  # as a process that comes just now
            assert new.incr("count") > 0
            counted[number] += 1
            assert new.get("never") is None
            new.close()
        except BaseException as error:
            failures.append(repr(error))
        time.sleep(0.01)

threads = [threading.Thread(target=count, args=(n,)) for n in range(len(counted))]
[thread.start() for thread in threads]
while not os.path.exists("/run/enough"):
    time.sleep(0.05)
go_on = False
[thread.join() for thread in threads]
print(json.dumps([sum(counted), failures]))
"""


@contextlib.contextmanager
def counting(machine):
    """Clients that count meanwhile; afterwards, every count that was acknowledged is there."""
    machine.run("rm -f /run/enough; systemctl reset-failed pickledbd; systemctl start pickledbd")
    machine.python("PickleDB().set('count', 0)")
    counts = machine.begin(COUNT)

    def at_it():
        before = int(machine.ctl("get", "count"))
        wait_until(lambda: int(machine.ctl("get", "count")) > before + 20, "clients to count")

    try:
        at_it()
        yield at_it
        at_it()
    finally:
        machine.run("touch /run/enough")
        told = counts.result()
    acknowledged, failures = json.loads(told)
    assert failures == []
    assert acknowledged == int(machine.ctl("get", "count"))


@pytest.fixture(scope="module")
def large(machine):
    """While the database has a million keys, in a file that is loaded at the next start."""
    machine.run("systemctl stop pickledbd.socket; mv /var/lib/pickledbd/default.db /srv/small.db")
    machine.run("rm -f /var/lib/pickledbd/default.db.*")
    machine.python(
        "with open('/var/lib/pickledbd/default.db', 'w') as file:",
        f"    lines = ('\"key:%d\":%d' % (n, n) for n in range({MANY_KEYS}))",
        "    file.write('{\\n' + ',\\n'.join(lines) + '\\n}\\n')",
    )
    machine.run("chown pickledbd:pickledbd /var/lib/pickledbd/default.db")
    yield
    machine.run("systemctl stop pickledbd.socket; rm /var/lib/pickledbd/default.db*")
    machine.run("mv /srv/small.db /var/lib/pickledbd/default.db")
    machine.run("systemctl reset-failed pickledbd; systemctl start pickledbd")


def test_twenty_restarts_under_load_refuse_no_client(machine):
    with counting(machine) as at_it:
        for number in range(20):
            machine.run("systemctl restart pickledbd")
            if number % 5 == 0:
                at_it()


def test_killed_it_is_back_and_nothing_acknowledged_is_lost(machine):
    with counting(machine) as at_it:
        for _ in range(3):
            before = machine.show("MainPID")
            machine.run("systemctl kill --kill-whom=main --signal=KILL pickledbd")
            wait_until(lambda: machine.show("MainPID") not in (before, "0"), "the next daemon")  # noqa: B023 - called at once
            at_it()


@pytest.mark.parametrize(
    "seconds",
    [pytest.param(2, id="soon"), pytest.param(180, id="as installed", marks=pytest.mark.long)],
)
def test_stopped_it_is_killed_by_the_watchdog_and_started_again(machine, seconds):
    unit_says = machine.run("grep ^WatchdogSec= /etc/systemd/system/pickledbd.service")
    assert unit_says == "WatchdogSec=3min"
    with machine.changed(f"WatchdogSec={seconds}"):
        machine.run("systemctl restart pickledbd")
        asked = "db = PickleDB(timeout=60)", "db.incr('stopped')"
        machine.python(*asked)
        # While it serves, and while nobody asks anything, it is left alone
        time.sleep(seconds * 1.25)
        pid, restarts = machine.show("MainPID"), int(machine.show("NRestarts"))
        assert restarts == 0
        machine.run(f"kill -STOP {pid}")
        time.sleep(max(0.0, seconds - 20))
        machine.python(*asked)  # waits for the next daemon, and counts once
        assert machine.show("MainPID") != pid
        assert int(machine.show("NRestarts")) == 1
    journal = machine.run(f"journalctl --unit=pickledbd _PID={pid} + UNIT=pickledbd.service")
    assert "Watchdog timeout" in journal
    # And where it was, which tells why it was stuck
    assert "Fatal Python error: Aborted" in journal
    assert "loop.py" in journal
    assert machine.ctl("get", "stopped") == "2"
    machine.ctl("remove", "stopped")
    machine.run("systemctl restart pickledbd")


@pytest.mark.usefixtures("large")
def test_it_is_active_only_when_a_million_keys_are_loaded_and_tells_how_far_it_is(machine):
    told = []

    def look():
        shown = machine.run("systemctl show --property=ActiveState,StatusText pickledbd")
        now = dict(line.split("=", 1) for line in shown.splitlines())
        told.append((now["ActiveState"], now["StatusText"]))
        return told[-1]

    machine.run("systemctl start --no-block pickledbd")
    wait_until(lambda: look()[1].startswith("loading: "), "it to load")
    # Who comes meanwhile waits for it, longer than its own timeout, as it gets on
    new = machine.begin("print(len(PickleDB(timeout=0.2)))", user="member")
    wait_until(lambda: look()[0] == "active", "it to be active")
    assert machine.python("print(PickleDB().info()['keys'])") == str(MANY_KEYS)
    assert {state for state, _ in told[:-1]} == {"activating"}
    assert any(s.startswith("loading: default.db, ") and s.endswith(" MiB") for _, s in told)
    assert told[-1][1].startswith("1,000,000 keys; ")
    assert new.result() == str(MANY_KEYS)


@pytest.mark.usefixtures("large")
def test_a_stop_waits_for_a_save_that_takes_longer_than_its_timeout(machine):
    with machine.changed("TimeoutStopSec=100ms"):
        machine.run("systemctl restart pickledbd")
        machine.ctl("set", "key:0", '"changed"')
        began = time.monotonic()
        machine.run("systemctl stop pickledbd.socket")
        assert time.monotonic() - began > 0.2
    assert machine.show("Result") == "success"
    data = machine.python(
        "import json",
        "data = json.load(open('/var/lib/pickledbd/default.db'))",
        "print(len(data), data['key:0'])",
    )
    assert data == f"{MANY_KEYS} changed"
