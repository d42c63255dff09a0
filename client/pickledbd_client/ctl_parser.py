"""How `pickledbctl` reads its command line, and each line of its shell.

May live here: parsers without their commands, which are in ctl_table.
"""

from __future__ import annotations

import argparse
import contextlib
import textwrap
from typing import Any, NoReturn

from pickledbd_client.route import DEFAULT_ENDPOINT
from pickledbd_protocol import __version__

_EPILOG = f"""\
Without -f and -e, $PICKLEDBD_URL is used (a path or an endpoint), else the system service at
{DEFAULT_ENDPOINT}. `pickledbctl COMMAND --help` tells more about a command.

values:
  VALUE is JSON: 5, true, null, '"text"', '[1, 2]', '{{"name": "Ann"}}'. What is not JSON is stored
  as the string typed. "-" reads the value from standard input. `get` prints JSON; with --raw, a
  string or bytes as they are. Bytes are {{"$binary": {{"base64": "AP8=", "subType": "00"}}}}.
  A key or number that begins with "-" is put behind "--": pickledbctl incr -- n -1e3

exit status:
  0    done
  1    the key is not there, or not of that version, or the lock not free in time
  2    wrong usage
  3    an error, told in one line on stderr; nothing was changed, unless it says so
  130  ended by Ctrl+C
  `lock` has that of its command, `shell` that of the last line that failed.

environment:
  PICKLEDBD_URL    the database, where neither -f nor -e is given
  PICKLEDBD_CURVE  the keys for tcp, where --curve is not given: SECRET:DAEMON
  PICKLEDBD_TOKEN  the token of the lock, for the command that `lock` runs
  XDG_STATE_HOME   where `shell` keeps its history (default: ~/.local/state)

examples:
  pickledbctl -f my.db set greeting "Hello, world!"
  pickledbctl -f my.db set session:42 '{{"user": "Ann"}}' --ttl 3600
  pickledbctl -f my.db get greeting
  pickledbctl -f my.db incr hits
  pickledbctl -f my.db all --prefix user: | wc -l
  pickledbctl -f my.db watch user:
  pickledbctl -f my.db lock nightly --timeout 0 -- ./report.sh
  pickledbctl -f my.db export --prefix user: | jq .value.name
  pickledbctl -f my.db backup /backups/my-$(date +%F).db
  pickledbctl info --watch
  pickledbctl shell
"""

_DASHES = "\0--"
"""A -- behind the first: for Python 3.11 each of them is none of the arguments."""


class UsageError(Exception):
    """A line of the shell that is no command, and why."""


class HelpShown(Exception):
    """A line of the shell that is answered, as it asked for help."""


class CommandParser(argparse.ArgumentParser):
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
                elif isinstance(value, list):
                    setattr(options, name, ["--" if each == _DASHES else each for each in value])
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}".replace(_DASHES, "--"))
        return options, []


class ShellParser(CommandParser):
    """The same where a wrong line ends nothing."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog.strip(), **options)

    def exit(self, _status: int = 0, _message: str | None = None) -> NoReturn:
        raise HelpShown

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (help {self.prog} tells more)")


class Commands:
    """The commands, which are added one by one."""

    def __init__(self, actions: Any) -> None:
        self._actions = actions
        self.parsers: dict[str, CommandParser] = actions.choices
        self.about: dict[str, str] = {}
        """What each does, in a few words."""

    def add(
        self,
        name: str,
        run: Any,
        about: str,
        *,
        more: str = "",
        examples: str,
        opens: bool = True,
    ) -> CommandParser:
        """A command by its name: what it does, what is said about it, and how it is used.

        `run` is given the database, if it `opens` one, and the options.
        """
        text = f"{about[0].upper()}{about[1:]}. {' '.join(more.split())}"
        lines = "\n".join(
            f"  {'' if '| pickledbctl -' in line else 'pickledbctl '}{line.strip()}"
            for line in examples.splitlines()
        )
        sub: CommandParser = self._actions.add_parser(
            name,
            help=about,
            description=textwrap.fill(text.strip(), 96),
            epilog=f"examples:\n{lines}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run, opens=opens)
        self.about[name] = about
        return sub


def whole() -> tuple[argparse.ArgumentParser, Commands]:
    """The parser of the command line, whose commands are yet to be added."""
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
        dest="location",
        metavar="LOCATION",
        help="the database file; its daemon is started if need be",
    )
    where.add_argument(
        "-e",
        "--endpoint",
        dest="location",
        metavar="ENDPOINT",
        type=_endpoint,
        help="a daemon's endpoint, ipc:///PATH or tcp://...",
    )
    parser.add_argument(
        "--curve",
        nargs=2,
        metavar=("SECRET", "DAEMON"),
        help="for tcp, the files of your own secret key (NAME.key_secret) and of the daemon's "
        "public key (NAME.key); see `keygen` (default: $PICKLEDBD_CURVE, SECRET:DAEMON)",
    )
    parser.add_argument(
        "-t",
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        default=30.0,
        help="how long to wait for an answer (default: 30)",
    )
    parser.add_argument("--version", action="version", version=f"pickledbctl {__version__}")
    actions = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=CommandParser
    )
    return parser, Commands(actions)


def of_lines() -> Commands:
    """The commands of the shell, whose parsers raise UsageError where a line is wrong."""
    return Commands(argparse.ArgumentParser().add_subparsers(prog="", parser_class=ShellParser))


# Types of arguments


def _endpoint(text: str) -> str:
    if "://" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is none; ipc:///PATH or tcp://HOST:PORT is")
    return text


def seconds(text: str) -> float:
    """A span of time."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds over 0")


def wait(text: str) -> float:
    """A span of time, which may be none."""
    with contextlib.suppress(ValueError):
        if float(text) == 0:
            return 0.0
    return seconds(text)


def number(text: str) -> float:
    """An int or a float."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number")
