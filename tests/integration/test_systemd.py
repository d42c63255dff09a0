"""The unit in systemd/, installed as its README says on a system that systemd really booted.

The system is a container over an overlay of this one's /, with no network. What it writes, and
its mounts, are in the memory and the mount namespace of its own processes, and end with them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import tomllib
from pathlib import Path

import pytest

from support import wait_until

REPO = Path(__file__).parents[2]
UNIT = REPO / "systemd" / "pickledbd.service"
README = REPO / "systemd" / "README.md"

BOOT_SECONDS = 120
COMMAND_SECONDS = 180

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's"),
    # One boot for all, where the workers of pytest-xdist go by groups (--dist loadgroup)
    pytest.mark.xdist_group("systemd"),
]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can boot a container")

# The mounts are made in a mount namespace of their own, so there are none left to undo, whatever
# happens. The upper layer is a tmpfs since it can lie neither on an overlay nor below "/" itself.
BOOT = """
for group in $CGROUPS; do
    echo $$ >"$group/cgroup.procs"
done
mount -t tmpfs -o size=1g,mode=755 tmpfs "$1"
cd "$1"
mkdir upper work root
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root
shift
exec systemd-nspawn --directory=root "$@"
"""

# The way in: a socket whose every connection is a shell that runs what it is sent. There is no
# network in there, so pip is told where the wheels are.
SHELL_SOCKET = """
[Socket]
ListenStream=/srv/shell/socket
SocketMode=0600
Accept=yes
"""
SHELL_SERVICE = """
[Service]
ExecStart=/bin/sh /srv/shell/run
StandardInput=socket
StandardOutput=socket
StandardError=socket
WorkingDirectory=/srv/pickledbd
Environment=PIP_CONFIG_FILE=/dev/null PIP_NO_INDEX=1 PIP_FIND_LINKS=/srv/wheels
"""
SHELL_RUN = """
script=$(cat)
status=0
sh -euc "$script" </dev/null || status=$?
printf '\\n%d' $status
"""


class Machine:
    """A container that systemd boots. Its processes end with `close`, or with this process."""

    def __init__(self, directory, wheels):
        self._log = directory / "console"
        self._shell = directory / "shell" / "socket"
        root, units, shell = (directory / name for name in ("machine", "units", "shell"))
        for made in (root, units, shell):
            made.mkdir()
        (units / "shell.socket").write_text(SHELL_SOCKET)
        (units / "shell@.service").write_text(SHELL_SERVICE)
        (shell / "run").write_text(SHELL_RUN)
        address = directory / "notify"
        self._init = None
        self._cgroups = own_cgroups()
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices,
            self._log.open("w") as log,
        ):
            notices.bind(os.fspath(address))
            self._nspawn = subprocess.Popen(
                [
                    # On SIGTERM, which it gets when this process dies, nspawn shuts down what it
                    # booted; killed, it would leave that running
                    *("setpriv", "--pdeathsig", "TERM", "unshare", "--mount"),
                    *("sh", "-euc", BOOT, "sh", root),
                    *("--boot", "--private-network", "--console=pipe", "--notify-ready=yes"),
                    *("--register=no", "--keep-unit", f"--machine=pickledbd-test-{os.getpid()}"),
                    *("--resolv-conf=off", "--timezone=off", "--link-journal=no"),
                    f"--bind-ro={REPO}:/srv/pickledbd",
                    f"--bind-ro={wheels}:/srv/wheels",
                    f"--bind-ro={units}:/run/systemd/system",
                    f"--bind={shell}:/srv/shell",
                    # None of the services that this system has enabled are to run in there
                    "systemd.unit=basic.target",
                    "systemd.wants=shell.socket",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "NOTIFY_SOCKET": os.fspath(address),
                    "CGROUPS": " ".join(map(os.fspath, self._cgroups)),
                },
            )
            try:
                self._wait_booted(notices)
            except BaseException:
                self.close()
                raise

    def _wait_booted(self, notices):
        ended = os.pidfd_open(self._nspawn.pid)
        deadline = time.monotonic() + BOOT_SECONDS
        told = ""
        try:
            while "READY=1" not in told.splitlines():
                patience = max(0, deadline - time.monotonic())
                ready, _, _ = select.select([notices, ended], [], [], patience)
                assert notices in ready, f"the container did not boot\n{self._log.read_text()}"
                told = notices.recv(2**16).decode()
                if leader := re.search(r"^X_NSPAWN_LEADER_PID=(\d+)$", told, re.MULTILINE):
                    self._init = os.pidfd_open(int(leader[1]))
        finally:
            os.close(ended)

    def try_run(self, command, user="root"):
        """Run a shell's command line in there; its exit status, and what it wrote."""
        if user != "root":
            command = shlex.join(["sh", "-euc", command])
            command = f"setpriv --reuid={user} --regid={user} --init-groups {command}"
        deadline = time.monotonic() + COMMAND_SECONDS
        output = b""
        with socket.socket(socket.AF_UNIX) as shell:
            shell.connect(os.fspath(self._shell))
            shell.sendall(command.encode())
            shell.shutdown(socket.SHUT_WR)
            while True:
                shell.settimeout(max(0.001, deadline - time.monotonic()))
                chunk = shell.recv(2**16)
                if not chunk:
                    break
                output += chunk
        output, _, status = output.decode().rpartition("\n")
        return int(status), output.removesuffix("\n")

    def run(self, command, user="root"):
        """What a command line that has to succeed wrote."""
        status, output = self.try_run(command, user)
        if status != 0:
            _, journal = self.try_run("journalctl --no-pager --lines=50")
            pytest.fail(f"{command}\nexits with {status}\n{output}\n\n{journal}", pytrace=False)
        return output

    def ctl(self, *arguments, user="root"):
        return self.run(shlex.join(["/opt/pickledbd/bin/pickledbctl", *arguments]), user)

    def python(self, *lines, user="root"):
        lines = ("from pickledbd_client import PickleDB", *lines)
        return self.run(shlex.join(["/opt/pickledbd/bin/python", "-c", "\n".join(lines)]), user)

    def show(self, name):
        return self.run(f"systemctl show --value --property={name} pickledbd")

    def data(self):
        return json.loads(self.run("cat /var/lib/pickledbd/default.db"))

    def close(self):
        if self._init is None:
            self._nspawn.terminate()
        else:  # the first process of a pid namespace takes all others with it
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init, signal.SIGKILL)
            os.close(self._init)
        try:
            self._nspawn.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()
        for group in self._cgroups:
            for path, _, _ in os.walk(group, topdown=False):
                os.rmdir(path)


def own_cgroups():
    """New cgroups, one in each hierarchy that systemd uses: what it finds in its own it may end."""
    made = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, kind, path = line.split(":", 2)
        for mount in ("", "/unified") if number == "0" else ("/systemd",):
            parent = Path(f"/sys/fs/cgroup{mount}{path}")
            if (number == "0" or kind == "name=systemd") and (parent / "cgroup.procs").exists():
                made.append(parent / f"pickledbd-test-{os.getpid()}")
                made[-1].mkdir()
    return made


def readme(section):
    """The commands of a section of the README: its first block of code."""
    _, _, text = README.read_text().partition(f"\n## {section}\n")
    return text.split("```sh\n")[1].split("```")[0]


def fetch_wheels(directory):
    """Have what `pip install .` will ask for, as wheels for the system's Python."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    print_version = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = subprocess.run(
        ["/usr/bin/python3", "-c", print_version], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--dest", directory),
            *("--only-binary=:all:", "--python-version", version),
            *project["project"]["dependencies"],
            *project["project"]["optional-dependencies"]["metrics"],
            *project["build-system"]["requires"],
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A machine on which the README's commands for installing were run."""
    if not shutil.which("systemd-nspawn"):
        pytest.fail("there is no systemd-nspawn: apt-get install systemd-container", pytrace=False)
    directory = tmp_path_factory.mktemp("systemd")
    wheels = directory / "wheels"
    fetch_wheels(wheels)
    with contextlib.closing(Machine(directory, wheels)) as booted:
        booted.run(readme("Install"))
        booted.run("useradd --groups pickledbd member; useradd stranger")
        yield booted


def test_systemd_analyze_verify_finds_nothing_to_say_about_the_unit(tmp_path):
    if not shutil.which("systemd-analyze"):
        if os.geteuid() == 0:
            pytest.fail("there is no systemd-analyze: apt-get install systemd", pytrace=False)
        pytest.skip("there is no systemd here")
    # It asks for the program to exist, so that of the tests' own environment stands in; in the
    # booted machine below the unit is verified as it is.
    program = Path(sysconfig.get_path("scripts")) / "pickledbd"
    text = UNIT.read_text()
    assert "\nExecStart=/opt/pickledbd/bin/pickledbd " in text
    copy = tmp_path / UNIT.name
    copy.write_text(text.replace("/opt/pickledbd/bin/pickledbd", os.fspath(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", copy],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_readme_installs_with_at_most_five_commands():
    assert len(readme("Install").strip().splitlines()) <= 5


@needs_root
def test_installed_as_the_readme_says_it_serves_as_its_own_user(machine):
    assert machine.run("systemctl is-active pickledbd") == "active"
    assert machine.run("systemctl is-enabled pickledbd") == "enabled"
    assert machine.show("Type") == "notify"
    assert machine.run(f"stat --format=%U:%G /proc/{machine.show('MainPID')}") == (
        "pickledbd:pickledbd"
    )
    assert machine.run("systemd-analyze verify /etc/systemd/system/pickledbd.service 2>&1") == ""


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
    machine.run("systemctl stop pickledbd")
    assert machine.data()["unsaved"] == "until the stop"
    assert machine.show("Result") == "success"
    assert "pickledbd" not in machine.run("ls /run").split()
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
    machine.run("systemctl stop pickledbd; systemctl reset-failed pickledbd")
    try:
        machine.run("""
            mkdir /etc/systemd/system/pickledbd.service.d
            printf '[Service]\nRestartSec=0\n' >/etc/systemd/system/pickledbd.service.d/faster.conf
            systemctl daemon-reload
            cd /var/lib/pickledbd
            mv default.db good.db
            echo 'not JSON' >default.db
        """)
        assert machine.try_run("systemctl start pickledbd")[0] != 0
        journal = "journalctl --unit=pickledbd --lines=20"
        wait_until(lambda: "repeated too quickly" in machine.run(journal), "the last try")
        assert machine.show("ActiveState") == "failed"
        assert "default.db is not JSON" in machine.run(journal)
        assert machine.run("cat /var/lib/pickledbd/default.db") == "not JSON"
    finally:
        machine.run("""
            mv /var/lib/pickledbd/good.db /var/lib/pickledbd/default.db
            rm -r /etc/systemd/system/pickledbd.service.d
            systemctl daemon-reload
            systemctl reset-failed pickledbd
            systemctl start pickledbd
        """)


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
        machine.run("systemctl stop pickledbd")
        assert 'sock"} 0.0' in machine.run(python(*get))
        assert machine.run("systemd-analyze verify pickledbd-metrics.service 2>&1") == ""
    finally:
        machine.run("systemctl disable --now pickledbd-metrics; systemctl start pickledbd")
        machine.run("rm /etc/systemd/system/pickledbd-metrics.service; systemctl daemon-reload")


def python(*lines):
    return shlex.join(["/opt/pickledbd/bin/python", "-c", "\n".join(lines)])


@needs_root
def test_upgraded_as_the_readme_says_it_serves_what_it_held(machine):
    machine.run("systemctl reset-failed pickledbd")
    machine.ctl("set", "before", "the upgrade")
    machine.run(readme("Upgrade"))
    assert machine.ctl("get", "--raw", "before") == "the upgrade"


@needs_root
def test_uninstalled_as_the_readme_says_it_leaves_the_data(machine):
    machine.run("systemctl reset-failed pickledbd")
    machine.ctl("set", "before", "the end")
    machine.run(readme("Uninstall"))
    try:
        assert machine.data()["before"] == "the end"
        assert machine.try_run("systemctl cat pickledbd")[0] != 0
        assert "pickledbd" not in machine.run("ls /opt /run").split()
    finally:
        machine.run(readme("Install"))
    assert machine.ctl("get", "--raw", "before") == "the end"
