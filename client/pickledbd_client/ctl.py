"""`pickledbctl`: the database for people and shell scripts.

May live here: running one command, and what becomes of its errors. The commands stand in
ctl_table; what they do, in ctl_commands, ctl_transfer, ctl_live and ctl_shell.

Values are JSON. Exit status: 0 done, 1 no such key, 2 usage, 3 an error, told in one line, 130
Ctrl+C.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pickledbd_client.ctl_commands import DONE, FAILED
from pickledbd_client.ctl_parser import whole
from pickledbd_client.ctl_shell import shell
from pickledbd_client.ctl_table import add_all
from pickledbd_client.raw import RawPickleDB
from pickledbd_protocol import PickleDBError

INTERRUPTED = 130
"""As a shell tells the end by SIGINT."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    options = parser().parse_args(argv)
    for name in ("stdin", "stdout", "stderr"):  # closed by who ran this: nothing to read or say
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("r+", encoding="utf-8"))  # noqa: SIM115 - until the end
    # What was begun is tidied up then too: files that are not whole, locks
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    location = options.endpoint if options.location is None else options.location
    try:
        with contextlib.closing(RawPickleDB(location, timeout=options.timeout)) as db:
            status: int = options.run(db, options)
        sys.stdout.flush()
    except PickleDBError as error:
        print(f"pickledbctl: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        # Python would complain at its exit of what it cannot write
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return DONE  # whoever read the output has had enough
        print(f"pickledbctl: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt as stop:
        if stop.args:
            print(f"pickledbctl: interrupted; {stop}", file=sys.stderr)
        return INTERRUPTED
    return status


def parser() -> argparse.ArgumentParser:
    """Of the command line, with all that --help tells."""
    found, commands = whole()
    add_all(commands)
    commands.add(
        "shell",
        shell,
        "take commands from a prompt, or from a pipe",
        more="""Each line is a command as on the command line, without pickledbctl and its options;
            a line that begins with # is none. Tab completes commands, options and keys; the lines
            are remembered for the next time. Ctrl+C clears the line, or ends what goes on; Ctrl+D
            ends. The exit status is that of the last line that failed.""",
        examples="shell\nshell < commands.txt",
    )
    return found


if __name__ == "__main__":
    sys.exit(main())
