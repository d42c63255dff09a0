"""A system that systemd really booted, for tests of the units in systemd/.

It is a container over an overlay of this one's /, with no network. What it writes, and its
mounts, are in the memory and the mount namespace of its own processes, and end with them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
UNITS = REPO / "systemd"
README = UNITS / "README.md"

BOOT_SECONDS = 120
COMMAND_SECONDS = 180

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can boot a container")

marks = [
    pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's"),
    # One boot for all, where the workers of pytest-xdist go by groups (--dist loadgroup)
    pytest.mark.xdist_group("systemd"),
]

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
        self._threads = ThreadPoolExecutor()
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

    def show(self, name, unit="pickledbd"):
        return self.run(f"systemctl show --value --property={name} {unit}")

    def begin(self, *lines, user="root"):
        """Have a program of these lines run, and go on; `result()` of what this returns waits."""
        return self._threads.submit(self.python, *lines, user=user)

    @contextlib.contextmanager
    def changed(self, *lines, unit="pickledbd.service"):
        """While the unit has these lines more, in its own section."""
        section = "[Socket]" if unit.endswith(".socket") else "[Service]"
        folder = f"/run/systemd/system.control/{unit}.d"
        text = shlex.quote("\n".join([section, *lines, ""]))
        self.run(f"mkdir -p {folder}; printf %s {text} >{folder}/test.conf")
        self.run("systemctl daemon-reload")
        try:
            yield
        finally:
            self.run(f"rm -r {folder}; systemctl daemon-reload")

    def data(self):
        return json.loads(self.run("cat /var/lib/pickledbd/default.db"))

    def close(self):
        self._threads.shutdown(wait=False, cancel_futures=True)
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


def readme(section, block=1):
    """The commands of a section of the README: a block of its code, the first one."""
    _, _, text = README.read_text().partition(f"\n## {section}\n")
    return text.split("\n## ")[0].split("```sh\n")[block].split("```")[0]


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
