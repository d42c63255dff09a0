"""Running `pickledbctl` as a person and a shell script do."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
import time

from support import PATIENCE

CTL = [sys.executable, "-m", "pickledbd_client.ctl"]


def ctl(*args, stdin="", env=None, text=True, patience=PATIENCE):
    """To its end; exit status, stdout and stderr."""
    ended = subprocess.run(
        [*CTL, *map(str, args)],
        input=stdin if text or isinstance(stdin, bytes) else stdin.encode(),
        capture_output=True,
        text=text,
        timeout=patience,
        check=False,
        env={**os.environ, **(env or {})},
    )
    return ended.returncode, ended.stdout, ended.stderr


_RUN = """
import os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A pickledbctl, or another `program`, whose input and outputs are a terminal."""

    def __init__(self, *args, program=tuple(CTL), env=None, size=(0, 0)):
        self.ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, size)
        self.process = subprocess.Popen(
            # In a session of its own, whose terminal it makes this by opening it
            [sys.executable, "-c", _RUN, *program, *map(str, args)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb", **(env or {})},
        )
        os.close(theirs)
        self.shown = ""

    def type(self, text):
        os.write(self.ours, text.encode())

    def until(self, text):
        """Wait until this is shown, behind what was waited for before; what is shown up to it."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.shown:
            assert select.select([self.ours], [], [], deadline - time.monotonic())[0], self.shown
            self.shown += os.read(self.ours, 2**16).decode(errors="replace")
        found, _, self.shown = self.shown.partition(text)
        return found + text

    def end(self):
        """Wait for its end; its exit status, and what else it has shown."""
        while select.select([self.ours], [], [], PATIENCE)[0]:
            try:
                self.shown += os.read(self.ours, 2**16).decode(errors="replace")
            except OSError:  # nobody has the other end any more
                break
        return self.process.wait(PATIENCE), self.shown

    def close(self):
        self.process.kill()
        self.process.wait(PATIENCE)
        os.close(self.ours)
