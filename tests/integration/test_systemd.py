"""The units in systemd/, installed as their README says on a system that systemd really booted."""

from __future__ import annotations

import json
import re
import shlex
import signal

import pytest

from booted import UNITS, marks, needs_root, readme
from support import wait_until

pytestmark = marks


@needs_root
def test_installed_as_the_readme_says_it_serves_as_its_own_user(machine):
    for unit in ("pickledbd.service", "pickledbd.socket"):
        assert machine.run(f"systemctl is-active {unit}") == "active"
        assert machine.run(f"systemctl is-enabled {unit}") == "enabled"
    assert machine.show("Type") == "notify"
    assert machine.run(f"stat --format=%U:%G /proc/{machine.show('MainPID')}") == (
        "pickledbd:pickledbd"
    )
    names = " ".join(f"/etc/systemd/system/{path.name}" for path in UNITS.glob("*.s*t"))
    names += " /etc/systemd/system/pickledbd.service"
    assert machine.run(f"systemd-analyze verify {names} 2>&1") == ""


@needs_root
def test_it_runs_as_confined_as_its_unit_says(machine):
    """What systemd could not do here it would leave out, with a warning at most."""
    said = machine.run("systemd-analyze security --no-pager --threshold=10 pickledbd.service")
    assert "Overall exposure level for pickledbd.service: 0." in said
    process = f"/proc/{machine.show('MainPID')}"
    status = dict(
        line.split(":\t", 1) for line in machine.run(f"cat {process}/status").splitlines()
    )
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(status["CapBnd"], 16) == int(status["CapPrm"], 16) == 0
    assert re.search(r"\nMax core file size +0 +0 ", machine.run(f"cat {process}/limits"))
    network = "readlink {}/ns/net"
    assert machine.run(network.format(process)) != machine.run(network.format("/proc/1"))
    within = f"nsenter --target={process[6:]} --mount"
    assert machine.try_run(f"{within} touch /etc/something")[0] != 0
    assert machine.try_run(f"{within} touch /var/lib/something")[0] != 0
    assert machine.run(f"{within} ls /home /tmp") == "/home:\n\n/tmp:"


@needs_root
def test_its_clock_goes_on_over_a_restart_as_it_knows_the_boot_of_the_machine(machine):
    clocks = []
    machine.python("PickleDB().set('short', 'life', ttl=1000)")
    for _ in range(2):
        machine.run("systemctl restart pickledbd")
        head = machine.run("cd /var/lib/pickledbd; sed -n 's/^[^{]*//; 1p' default.db.journal.*")
        clocks.append(json.loads(head)["clock"])
    assert len(clocks[0]["boot"]) == len("eece4c27-0ab1-4b87-80e1-a08b8a0b6f12")
    assert clocks[0]["boot"] == clocks[1]["boot"]
    assert clocks[0]["ahead_ns"] == clocks[1]["ahead_ns"]


@needs_root
def test_its_socket_and_its_data_are_for_the_group_only(machine):
    machine.ctl("set", "kept", "private")
    machine.ctl("save")
    stat = "stat --format='%A %U:%G' "
    assert machine.run(stat + "/run/pickledbd") == "drwxr-x--- pickledbd:pickledbd"
    assert machine.run(stat + "/run/pickledbd/default.sock") == "srw-rw---- pickledbd:pickledbd"
    assert machine.run(stat + "/var/lib/pickledbd") == "drwxr-x--- pickledbd:pickledbd"
    assert machine.run(stat + "/var/lib/pickledbd/default.db") == "-rw-r----- pickledbd:pickledbd"


@needs_root
@pytest.mark.parametrize("user", ["root", "member"])
def test_root_and_members_of_the_group_are_served_without_naming_an_endpoint(machine, user):
    assert "answered" in machine.ctl("ping", user=user)
    machine.ctl("set", "greeting", f"from {user}", user=user)
    assert machine.ctl("get", "--raw", "greeting", user=user) == f"from {user}"
    assert machine.python("print(PickleDB().get('greeting'))", user=user) == f"from {user}"
    assert (
        machine.python("print(PickleDB().location)", user=user) == "/var/lib/pickledbd/default.db"
    )


@needs_root
def test_who_is_not_in_the_group_is_told_that_it_is_not_allowed(machine):
    told = machine.python(
        "from pickledbd_client import NotAllowed",
        "try:",
        "    PickleDB()",
        "except NotAllowed as error:",
        "    print(error)",
        user="stranger",
    )
    assert told.startswith("not allowed to connect to ipc:///run/pickledbd/default.sock")
    status, output = machine.try_run("/opt/pickledbd/bin/pickledbctl ping", user="stranger")
    assert (status, output) == (3, f"pickledbctl: {told}")


@needs_root
def test_a_member_reads_without_asking_also_after_a_restart(machine):
    lines = (
        "db = PickleDB()",
        "db.set('at', 'hand')",
        "def asked():",
        "    before = db._link.mark()",
        "    assert db.get('at') == 'hand'",
        "    return db._link.mark() != before",
        "asked()",
        "print(asked(), flush=True)",
    )
    wait = ("pid = db.info()['pid']", "while db.info()['pid'] == pid: pass")
    going_on = machine.begin(*lines, "db.set('reading', 1)", *wait, "asked(), print(asked())")
    assert machine.python(*lines, user="member") == "False"
    wait_until(lambda: machine.try_run("/opt/pickledbd/bin/pickledbctl get reading")[0] == 0, "it")
    machine.run("systemctl restart pickledbd")
    assert going_on.result() == "False\nFalse"
    assert machine.python(*lines, user="member") == "False"
    table = "/run/pickledbd/default.sock.counters"
    assert machine.run(f"stat --format='%A %U:%G' {table}") == "-rw-r----- pickledbd:pickledbd"


@needs_root
def test_what_was_saved_survives_a_restart(machine):
    machine.ctl("set", "before", "the restart")
    machine.ctl("save")
    assert machine.data()["before"] == "the restart"
    machine.run("systemctl restart pickledbd")
    assert machine.ctl("get", "--raw", "before") == "the restart"


@needs_root
def test_a_stop_saves(machine):
    machine.ctl("save")
    machine.ctl("set", "unsaved", "until the stop")
    assert "unsaved" not in machine.data()
    machine.run("systemctl stop pickledbd.socket")
    assert machine.data()["unsaved"] == "until the stop"
    assert machine.show("Result") == "success"
    assert machine.show("ActiveState") == "inactive"
    assert machine.run("ls -A /run/pickledbd") == ""
    machine.run("systemctl start pickledbd")
    assert machine.ctl("get", "--raw", "unsaved") == "until the stop"


@needs_root
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGHUP, signal.SIGTERM])
def test_a_daemon_that_was_not_stopped_by_systemd_is_started_again(machine, number):
    machine.run("systemctl reset-failed pickledbd")
    restarts = int(machine.show("NRestarts"))
    before, after = machine.python(
        "import os",
        "db = PickleDB(timeout=60)",
        "db.set('n', 1)",
        "db.save()",
        "print(db.info()['pid'])",
        f"os.kill(db.info()['pid'], {number:d})",
        "assert db.get('n') == 1  # waits for the next daemon",
        "print(db.info()['pid'])",
    ).split()
    assert before != after
    wait_until(lambda: machine.run("systemctl is-active pickledbd") == "active", "the restart")
    assert machine.show("MainPID") == after
    assert int(machine.show("NRestarts")) == restarts + 1


@needs_root
def test_a_file_that_cannot_be_served_is_left_alone_and_not_tried_for_ever(machine):
    machine.run("systemctl stop pickledbd.socket")
    machine.run("cd /var/lib/pickledbd; mv default.db good.db; echo 'not JSON' >default.db")
    faster = ("RestartSec=0", "[Unit]", "StartLimitBurst=5")
    try:
        with machine.changed(*faster):
            machine.run("systemctl reset-failed pickledbd")
            assert machine.try_run("systemctl start pickledbd")[0] != 0
            journal = "journalctl --unit=pickledbd --lines=20"
            wait_until(lambda: "repeated too quickly" in machine.run(journal), "the last try")
            assert machine.show("ActiveState") == "failed"
            assert "default.db is not JSON" in machine.run(journal)
            assert machine.run("cat /var/lib/pickledbd/default.db") == "not JSON"
    finally:
        machine.run("mv /var/lib/pickledbd/good.db /var/lib/pickledbd/default.db")
        machine.run("systemctl reset-failed pickledbd.service pickledbd.socket")
        machine.run("systemctl start pickledbd")


@needs_root
def test_the_log_is_entries_of_the_journal_with_fields(machine):
    machine.run("systemctl restart pickledbd")
    lines = "journalctl --unit=pickledbd --output=json --lines=1 PICKLEDBD_EVENT="
    told = json.loads(machine.run(f"{lines}serving"))
    assert told["MESSAGE"].startswith("serving /var/lib/pickledbd/default.db (")
    assert (told["PRIORITY"], told["SYSLOG_IDENTIFIER"]) == ("6", "pickledbd")
    assert (told["_PID"], told["_TRANSPORT"]) == (machine.show("MainPID"), "journal")
    assert int(told["PICKLEDBD_KEYS"]) >= 0
    assert json.loads(machine.run(f"{lines}stopping"))["PICKLEDBD_WHY"] == "SIGTERM"
    assert "pickledbd: serving" not in machine.run("journalctl --unit=pickledbd")  # and only once


@needs_root
def test_its_metrics_are_served_by_a_unit_of_their_own(machine):
    machine.run(readme("Metrics"))
    try:
        get = (
            "from urllib.request import urlopen",
            "print(urlopen('http://127.0.0.1:9431/metrics').read().decode())",
        )
        wait_until(lambda: "pickledbd_up" in machine.try_run(python(*get))[1], "the exporter")
        assert 'pickledbd_up{location="ipc:///run/pickledbd/default.sock"} 1.0' in machine.run(
            python(*get)
        )
        machine.run("systemctl stop pickledbd.socket pickledbd.service")
        assert 'sock"} 0.0' in machine.run(python(*get))
        assert machine.run("systemd-analyze verify pickledbd-metrics.service 2>&1") == ""
    finally:
        machine.run("systemctl disable --now pickledbd-metrics")
        machine.run("systemctl start pickledbd.socket pickledbd.service")


def python(*lines):
    return shlex.join(["/opt/pickledbd/bin/python", "-c", "\n".join(lines)])


# What the first release had: no socket unit, the daemon binds the socket itself
FIRST = """
[Service]
Type=notify
ExecStart=/opt/pickledbd/bin/pickledbd /var/lib/pickledbd/default.db --bind ipc:///run/pickledbd/default.sock
User=pickledbd
Group=pickledbd
StateDirectory=pickledbd
StateDirectoryMode=0750
RuntimeDirectory=pickledbd
RuntimeDirectoryMode=0750
RuntimeDirectoryPreserve=restart
UMask=0027
Restart=always

[Install]
WantedBy=multi-user.target
"""


@needs_root
def test_upgraded_as_the_readme_says_from_units_without_a_socket_no_call_fails(machine):
    machine.run("systemctl disable --now pickledbd.socket pickledbd.service")
    machine.run("rm /etc/systemd/system/pickledbd.s*")
    machine.run(f"printf %s {shlex.quote(FIRST)} >/etc/systemd/system/pickledbd.service")
    machine.run("systemctl daemon-reload; systemctl enable --now pickledbd")
    machine.ctl("set", "before", "the upgrade")
    counts = machine.begin(
        "import os",
        "db = PickleDB(timeout=60)",
        "db.set('count', 0)",
        "count = 0",
        "while not os.path.exists('/run/upgraded'):",
        "    count += 1",
        "    assert db.incr('count') == count",
        "print(count)",
        user="member",
    )
    try:
        get = "/opt/pickledbd/bin/pickledbctl get count"
        wait_until(lambda: machine.try_run(f"{get} && test $({get}) -gt 0")[0] == 0, "counting")
        machine.run(readme("Upgrade"))
    finally:
        machine.run("touch /run/upgraded")
    assert int(counts.result()) > 0
    assert machine.ctl("get", "--raw", "before") == "the upgrade"
    assert machine.run("systemctl is-active pickledbd.socket") == "active"
    assert machine.show("TriggeredBy") == "pickledbd.socket"
    machine.run("systemctl enable pickledbd.socket")


@needs_root
def test_uninstalled_as_the_readme_says_it_leaves_the_data_and_nothing_else(machine):
    machine.run("systemctl reset-failed pickledbd")
    machine.ctl("set", "before", "the end")
    machine.run(readme("Several databases"))
    machine.run(readme("Uninstall"))
    try:
        assert machine.data()["before"] == "the end"
        for unit in ("pickledbd", "pickledbd.socket", "pickledbd@a", "pickledbd@a.socket"):
            assert machine.try_run(f"systemctl cat {unit}")[0] != 0
        assert "pickledbd" not in machine.run("ls /opt /run; ls -R /etc/systemd/system")
        assert machine.run("systemctl list-units --no-legend 'pickledbd*'") == ""
    finally:
        machine.run(readme("Install"))
    assert machine.ctl("get", "--raw", "before") == "the end"
