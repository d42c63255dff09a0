"""Daemons that a service manager starts: with sockets passed to them, and a socket to tell it."""

from __future__ import annotations

import os
import socket
import sys

from support import PATIENCE, PROGRAM, Daemon

# As systemd does between fork and exec: descriptors from 3 on, and whom they are for
PASS = """
import fcntl, os, sys
count = int(sys.argv[1])
sockets, program = [int(n) for n in sys.argv[2:2 + count]], sys.argv[2 + count:]
for number, aside in enumerate([fcntl.fcntl(n, fcntl.F_DUPFD_CLOEXEC, 100) for n in sockets], 3):
    os.dup2(aside, number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count)}
os.execv(program[0], program)
"""


def listening(address):
    """A socket that listens at a path, or at a port of this machine."""
    found = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    found.bind(address)
    found.listen(4096)
    return found


def activated(location, *sockets, options=(), names=None, program=PROGRAM, **popen):
    """A daemon to which these sockets were passed."""
    numbers = [each.fileno() for each in sockets]
    env = {**os.environ, **popen.pop("env", {})}
    if names is not None:
        env["LISTEN_FDNAMES"] = names
    program = (sys.executable, "-c", PASS, str(len(numbers)), *map(str, numbers), *program)
    return Daemon(location, *options, program=program, pass_fds=numbers, env=env, **popen)


class Manager:
    """What a daemon that is told of its `env` tells."""

    def __init__(self, path, *, watchdog_usec=None):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(path))
        self.env = {**os.environ, "NOTIFY_SOCKET": os.fspath(path)}
        if watchdog_usec is not None:
            self.env["WATCHDOG_USEC"] = str(watchdog_usec)

    def next(self, patience=PATIENCE):
        """The members of the next message; TimeoutError."""
        self._socket.settimeout(patience)
        try:
            told = self._socket.recv(2**16).decode()
        except BlockingIOError:  # without any patience
            raise TimeoutError from None
        return dict(line.split("=", 1) for line in told.splitlines())

    def until(self, member, value=None):
        """The messages up to one that has this member."""
        told = [self.next()]
        while member not in told[-1] or value not in (None, told[-1][member]):
            told.append(self.next())
        return told

    def close(self):
        self._socket.close()
