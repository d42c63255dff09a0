"""`pickledbctl shell`: the commands by a prompt, or from a pipe, on one connection.

A line is parsed as the command line is, by the same table. A wrong one, and an error, is told in
one line and ends nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from pickledbd_client.calls import Some
from pickledbd_client.ctl_commands import DONE, FAILED, USAGE, reason
from pickledbd_client.ctl_parser import CommandParser, Commands, HelpShown, UsageError, of_lines
from pickledbd_client.ctl_table import add_all
from pickledbd_client.raw import RawPickleDB
from pickledbd_protocol import PickleDBError

HISTORY_LINES = 1000
"""Lines that are remembered."""

KEYS_MAX = 200
"""Keys that are offered for completion, at most."""

_ENDS = ("exit", "quit")


def shell(db: RawPickleDB, _options: argparse.Namespace) -> int:
    """Carry out one line after the other; the exit status of the last that failed."""
    commands = of_lines()
    add_all(commands)
    status = DONE
    typed = sys.stdin.isatty()
    with _prompt(db, commands) if typed else contextlib.nullcontext(_next_of_pipe) as next_line:
        while True:
            try:
                line = next_line()
                if line is None or line.strip() in _ENDS:
                    return status
                status = _carry_out(db, line, commands) or status
                sys.stdout.flush()
            except KeyboardInterrupt as stop:
                if not typed:
                    raise
                print(f"\npickledbctl: interrupted; {stop}" if stop.args else "")


def _carry_out(db: RawPickleDB, line: str, commands: Commands) -> int:
    """One line; its exit status."""
    status = DONE
    try:
        words = [] if line.lstrip().startswith("#") else _words(line)
        if words[:1] == ["help"]:
            _help(words[1:], commands)
        elif words:
            options = _parser(words[0], commands).parse_args(words[1:])
            status = options.run(db, options)
    except HelpShown:
        pass
    except UsageError as error:
        print(f"pickledbctl: {error}", file=sys.stderr)
        status = USAGE
    except (PickleDBError, OSError) as error:
        if isinstance(error, BrokenPipeError) and not isinstance(error, PickleDBError):
            raise  # nobody reads what is written
        print(f"pickledbctl: {reason(error)}", file=sys.stderr)
        status = FAILED
    return status


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UsageError(f"{error} in this line") from None


def _help(words: list[str], commands: Commands) -> None:
    if not words:
        width = max(map(len, commands.parsers))
        for name, about in commands.about.items():
            sys.stdout.write(f"  {name:{width}}  {about}\n")
        sys.stdout.write(f"  {'help':{width}}  this; help COMMAND tells more\n")
        sys.stdout.write(f"  {'exit':{width}}  end, as Ctrl+D does\n")
    else:
        sys.stdout.write(_parser(words[0], commands).format_help())


def _parser(name: str, commands: Commands) -> CommandParser:
    if name not in commands.parsers:
        raise UsageError(f"there is no command {name!r} (help tells all)")
    return commands.parsers[name]


def _next_of_pipe() -> str | None:
    # Not by sys.stdin, which reads ahead: a command may read what follows, as `set k -` does
    line = sys.stdin.buffer.readline()
    return line.decode(errors="surrogateescape") if line else None


@contextlib.contextmanager
def _prompt(db: RawPickleDB, commands: Commands) -> Iterator[Callable[[], str | None]]:
    """A prompt with a history and completion, as far as this Python has readline."""
    prompt = f"{Path(db.location).name}> "
    if isinstance(sys.stdin, io.TextIOWrapper):  # what is typed may be anything
        sys.stdin.reconfigure(errors="surrogateescape")

    def next_line() -> str | None:
        try:
            return input(prompt)
        except EOFError:
            sys.stdout.write("\n")
            return None

    try:
        import readline  # noqa: PLC0415 - where there is none, there is a plain prompt
    except ImportError:
        yield next_line
        return
    history = _history()
    with contextlib.suppress(OSError):  # what cannot be remembered does no harm
        history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(history, os.O_RDWR | os.O_CREAT, 0o600))  # or it would be everybody's
        readline.read_history_file(history)
    readline.set_history_length(HISTORY_LINES)
    readline.set_completer_delims(" \t\n")
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
    found: list[str] = []

    def complete(text: str, number: int) -> str | None:
        if not number:
            found[:] = candidates(db, commands, readline.get_line_buffer(), text)
        return found[number] if number < len(found) else None

    readline.set_completer(complete)
    try:
        yield next_line
    finally:
        readline.set_completer(None)
        with contextlib.suppress(OSError):
            readline.write_history_file(history)


def candidates(db: RawPickleDB, commands: Commands, line: str, text: str) -> list[str]:
    """What `text`, which the cursor is at the end of, may become: a command, an option, a key."""
    before = line.split()
    if not before or (len(before) == 1 and text):
        return [f"{name} " for name in (*commands.parsers, "help", *_ENDS) if name.startswith(text)]
    name = before[0]
    if name == "help":
        return [each for each in commands.parsers if each.startswith(text)]
    if name not in commands.parsers:
        return []
    if text.startswith("-"):
        options = commands.parsers[name].format_usage()
        flags = {word.strip("[]|,") for word in options.split()}
        return sorted(flag for flag in flags if flag.startswith(text))
    keys: list[str] = []
    with contextlib.suppress(PickleDBError), contextlib.closing(db.listed(Some(text))) as listed:
        for some in listed:
            keys += some
            if len(keys) > KEYS_MAX:
                break
    return [f"{shlex.quote(key)} " for key in keys[:KEYS_MAX]]


def _history() -> Path:
    """Where the lines are remembered (XDG Base Directory Specification)."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "pickledbd" / "history"
