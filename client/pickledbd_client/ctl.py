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

from pickledbd_client.ctl_commands import DONE, FAILED, metrics, reason
from pickledbd_client.ctl_parser import whole
from pickledbd_client.ctl_shell import shell
from pickledbd_client.ctl_table import add_all
from pickledbd_client.keygen import keygen
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
    _tidy_up_at_its_end()
    try:
        status: int
        if not options.opens:
            status = options.run(options)
        else:
            database = RawPickleDB(options.location, timeout=options.timeout, curve=options.curve)
            with contextlib.closing(database) as db:
                status = options.run(db, options)
        sys.stdout.flush()
    except PickleDBError as error:
        print(f"pickledbctl: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        # Python would complain at its exit of what it cannot write
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return DONE  # whoever read the output has had enough
        print(f"pickledbctl: {reason(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt as stop:
        if stop.args:
            print(f"pickledbctl: interrupted; {stop}", file=sys.stderr)
        return INTERRUPTED
    return status


def _tidy_up_at_its_end() -> None:
    """Have what was begun undone by signals too: files that are not whole, locks."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, _frame: sys.exit(128 + number))


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
    sub = commands.add(
        "keygen",
        keygen,
        "make a pair of keys for tcp, in two files",
        more="Asks no daemon. It tells what is to be done with the two.",
        examples="keygen ann\nkeygen daemon --dir /etc/pickledbd",
        opens=False,
    )
    sub.add_argument("name", metavar="NAME", help="of the files: NAME.key_secret and NAME.key")
    sub.add_argument("--dir", metavar="DIR", default=".", help="where to make them (default: .)")
    sub = commands.add(
        "metrics",
        metrics,
        "serve `info` as metrics for Prometheus",
        more="""Of a daemon that may come and go; to Ctrl+C. Needs pickledbd[metrics].""",
        examples="metrics\nmetrics --listen unix:/run/pickledbd-metrics/http.sock",
        opens=False,
    )
    sub.add_argument(
        "--listen",
        metavar="ADDRESS",
        default="127.0.0.1:9431",
        help="HOST:PORT, or unix:/PATH (default: 127.0.0.1:9431)",
    )
    sub.add_argument(
        "--insecure", action="store_true", help="also where others than this machine reach it"
    )
    return found


if __name__ == "__main__":
    sys.exit(main())
