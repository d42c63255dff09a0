"""`pickledbctl`: the database for people and shell scripts. What its commands do: ctl_commands.

Values are JSON. Exit status: 0 done, 1 no such key, 2 usage, 3 an error, told in one line.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pickledbd_client import ctl_commands
from pickledbd_client.ctl_commands import DONE, FAILED
from pickledbd_client.database import PickleDB
from pickledbd_client.route import DEFAULT_ENDPOINT
from pickledbd_protocol import PickleDBError, __version__

_EPILOG = f"""\
Without -f and -e, $PICKLEDBD_URL is used (a path or an endpoint), else the system service at
{DEFAULT_ENDPOINT}.

values:
  VALUE is JSON: 5, true, null, '"text"', '[1, 2]', '{{"name": "Ann"}}'. What is not JSON is stored
  as the string typed. "-" reads the value from standard input. `get` prints JSON; with --raw, a
  string or bytes as they are. A key or number that begins with "-" is put behind "--":
  pickledbctl incr -- n -1e3

exit status:
  0 done   1 the key is not there, or not of that version, or the lock not free in time
  2 wrong usage   3 an error, told in one line on stderr
  `lock` has that of its command

examples:
  pickledbctl -f my.db set greeting "Hello, world!"
  pickledbctl -f my.db set session:42 '{{"user": "Ann"}}' --ttl 3600
  pickledbctl -f my.db get greeting
  pickledbctl -f my.db incr hits
  pickledbctl -f my.db all --prefix user: | wc -l
  pickledbctl -f my.db watch user:
  pickledbctl -f my.db lock nightly --timeout 0 -- ./report.sh
  pickledbctl info
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    options = _parser().parse_args(argv)
    for name in ("stdin", "stdout", "stderr"):  # closed by who ran this: nothing to read or say
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("r+", encoding="utf-8"))  # noqa: SIM115 - until the end
    location = options.endpoint if options.file is None else options.file
    try:
        status: int
        if options.run is ctl_commands.metrics:  # of a daemon that may come and go
            status = ctl_commands.metrics(location, options)
        else:
            with contextlib.closing(PickleDB(location, timeout=options.timeout)) as db:
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
        print(f"pickledbctl: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 130  # as a shell reports the end by SIGINT
    return status


_DASHES = "\0--"
"""A -- behind the first: for Python 3.11 each of them is none of the arguments."""


class _CommandParser(argparse.ArgumentParser):
    """Of one command. What stands behind the first -- is taken as it is.

    For `lock` that is the command to be run.
    """

    runs_another = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = list(args)
        end = words.index("--") if "--" in words else len(words)
        behind = words[end + 1 :]
        if self.runs_another:
            options, rest = super().parse_known_args(words[:end], namespace)
            options.argv = behind
            if not behind:
                self.error("the COMMAND to be run stands behind --")
        else:
            words[end + 1 :] = [_DASHES if word == "--" else word for word in behind]
            options, rest = super().parse_known_args(words, namespace)
            for name, value in vars(options).items():
                if value == _DASHES:
                    setattr(options, name, "--")
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}".replace(_DASHES, "--"))
        return options, []


Command = Callable[[str, Any, str], _CommandParser]
"""Adds a command, by its name, what it does, and what is said about it."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pickledbctl",
        description="Read and change a pickledbd database.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "-f",
        "--file",
        metavar="LOCATION",
        help="the database file; its daemon is started if need be",
    )
    where.add_argument(
        "-e",
        "--endpoint",
        metavar="ENDPOINT",
        type=_endpoint,
        help="a daemon's endpoint, ipc:///PATH or tcp://...",
    )
    parser.add_argument(
        "-t",
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=30.0,
        help="how long to wait for an answer (default: 30)",
    )
    parser.add_argument("--version", action="version", version=f"pickledbctl {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_CommandParser)

    def command(name: str, run: Any, about: str) -> _CommandParser:
        sub: _CommandParser = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        return sub

    for add in (_add_values, _add_keys, _add_others):
        add(command)
    return parser


def _add_values(command: Command) -> None:
    sub = command("set", ctl_commands.set_, "store a value under a key")
    sub.add_argument("key", metavar="KEY")
    sub.add_argument("value", metavar="VALUE", help='JSON, else the string itself; "-": from stdin')
    sub.add_argument("--ttl", metavar="SECONDS", type=_seconds, help="the key is gone after these")
    _fenced(sub)
    sub = command("get", ctl_commands.get, "print the value of a key, as JSON")
    sub.add_argument("key", metavar="KEY")
    how = sub.add_mutually_exclusive_group()
    how.add_argument("-r", "--raw", action="store_true", help="print a string or bytes as they are")
    how.add_argument(
        "--versioned", action="store_true", help="print an object of its value and its version"
    )
    sub = command("cas", ctl_commands.cas, "store a value if the key's is still of a version")
    sub.add_argument("key", metavar="KEY")
    sub.add_argument(
        "version", metavar="VERSION", help="of `get --versioned`; 0: there is no such key"
    )
    sub.add_argument("value", metavar="VALUE", help="as of `set`")
    sub.add_argument("--ttl", metavar="SECONDS", type=_seconds, help="the key is gone after these")
    _fenced(sub)
    sub = command("incr", ctl_commands.incr, "add to a number and print the sum")
    sub.add_argument("key", metavar="KEY")
    sub.add_argument("by", metavar="BY", type=_number, nargs="?", default=1, help="(default: 1)")
    sub.add_argument(
        "--default", metavar="N", type=_number, default=0, help="if there is no such key (0)"
    )
    _fenced(sub)


def _add_keys(command: Command) -> None:
    sub = command("all", ctl_commands.all_, "print keys, one a line, in order of insertion")
    _some(sub)
    sub.add_argument("--json", action="store_true", help="print them as one JSON array")
    sub = command("items", ctl_commands.items, "print items, as an object of key and value a line")
    _some(sub)
    sub = command("remove", ctl_commands.remove, "remove a key")
    sub.add_argument("key", metavar="KEY")
    _fenced(sub)
    sub = command("pop", ctl_commands.pop, "remove a key and print its value, as JSON")
    sub.add_argument("key", metavar="KEY")
    _fenced(sub)
    sub = command("purge", ctl_commands.purge, "remove everything")
    sub.add_argument("-y", "--yes", action="store_true", help="do not ask")
    _fenced(sub)
    sub = command(
        "ttl", ctl_commands.ttl, "print the seconds until a key is gone; - if it lives on"
    )
    sub.add_argument("key", metavar="KEY")
    sub = command("expire", ctl_commands.expire, "have a key be gone after some time")
    sub.add_argument("key", metavar="KEY")
    sub.add_argument("seconds", metavar="SECONDS", type=_seconds)
    _fenced(sub)
    sub = command("persist", ctl_commands.persist, "have a key not expire")
    sub.add_argument("key", metavar="KEY")
    _fenced(sub)


def _add_others(command: Command) -> None:
    sub = command(
        "lock",
        ctl_commands.lock,
        "run a command while holding a lock, whose token is in its environment (PICKLEDBD_TOKEN)",
    )
    sub.runs_another = True
    sub.usage = "%(prog)s [-h] [--ttl SECONDS] [--timeout SECONDS] NAME -- COMMAND ..."
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--ttl", metavar="SECONDS", type=_seconds, default=30.0, help="(default: 30)")
    sub.add_argument(
        "--timeout",
        dest="wait",
        metavar="SECONDS",
        type=_wait,
        help="wait no longer than that; 0: not at all",
    )
    sub = command("watch", ctl_commands.watch, "print each change, as an object a line; to Ctrl+C")
    sub.add_argument("prefix", metavar="PREFIX", nargs="?", default="")
    sub.add_argument("--since", metavar="SEQ", type=int, help="begin after this `seq`")
    command("save", ctl_commands.save, "have everything on disk")
    sub = command("info", ctl_commands.info, "tell about the daemon")
    sub.add_argument("--json", action="store_true", help="print it as JSON")
    command("ping", ctl_commands.ping, "tell whether the daemon answers, and how fast")
    sub = command("metrics", ctl_commands.metrics, "serve `info` as metrics for Prometheus")
    sub.add_argument(
        "--listen",
        metavar="ADDRESS",
        default="127.0.0.1:9431",
        help="HOST:PORT, or unix:/PATH (default: 127.0.0.1:9431)",
    )
    sub.add_argument(
        "--insecure", action="store_true", help="also where others than this machine reach it"
    )


def _fenced(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--token",
        metavar="TOKEN",
        type=int,
        help="only if the lock of this token is held ($PICKLEDBD_TOKEN under `lock`)",
    )


def _some(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("-p", "--prefix", default="", help="only keys that begin with this")
    sub.add_argument(
        "-g", "--glob", help="only keys that match this: *, ?, [a-z], [!a-z]; put it in quotes"
    )


def _endpoint(text: str) -> str:
    if "://" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is none; ipc:///PATH or tcp://HOST:PORT is")
    return text


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds over 0")


def _wait(text: str) -> float:
    with contextlib.suppress(ValueError):
        if float(text) == 0:
            return 0.0
    return _seconds(text)


def _number(text: str) -> float:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number")


if __name__ == "__main__":
    sys.exit(main())
