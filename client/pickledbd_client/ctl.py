"""`pickledbctl`: the database for people and shell scripts.

Values are JSON. Exit status: 0 done, 1 no such key, 2 usage, 3 an error, told in one line.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from pickledbd_client.database import PickleDB
from pickledbd_client.route import DEFAULT_ENDPOINT
from pickledbd_protocol import (
    PickleDBError,
    __version__,
    check_integers,
    encode_value,
    restore,
    shown,
)

DONE, NO_SUCH_KEY, FAILED = 0, 1, 3  # argparse itself exits with 2 on wrong usage

_EPILOG = f"""\
Without -f and -e, $PICKLEDBD_URL is used (a path or an endpoint), else the system service at
{DEFAULT_ENDPOINT}.

values:
  VALUE is JSON: 5, true, null, '"text"', '[1, 2]', '{{"name": "Ann"}}'. What is not JSON is stored
  as the string typed. "-" reads the value from standard input. `get` prints JSON; with --raw, a
  string or bytes as they are.

exit status:
  0 done   1 the key is not there   2 wrong usage   3 an error, told in one line on stderr

examples:
  pickledbctl -f my.db set greeting "Hello, world!"
  pickledbctl -f my.db get greeting
  pickledbctl -f my.db all | wc -l
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
        with contextlib.closing(PickleDB(location, timeout=options.timeout)) as db:
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
    except KeyboardInterrupt:
        return 130  # as a shell reports the end by SIGINT
    return status


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
        type=_timeout,
        default=30.0,
        help="how long to wait for an answer (default: 30)",
    )
    parser.add_argument("--version", action="version", version=f"pickledbctl {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Any, about: str) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        return sub

    sub = command("set", _set, "store a value under a key")
    sub.add_argument("key", metavar="KEY")
    sub.add_argument("value", metavar="VALUE", help='JSON, else the string itself; "-": from stdin')
    sub = command("get", _get, "print the value of a key, as JSON")
    sub.add_argument("key", metavar="KEY")
    sub.add_argument("-r", "--raw", action="store_true", help="print a string or bytes as they are")
    sub = command("all", _all, "print all keys, one a line, in the order of their insertion")
    sub.add_argument("--json", action="store_true", help="print them as one JSON array")
    sub = command("remove", _remove, "remove a key")
    sub.add_argument("key", metavar="KEY")
    sub = command("purge", _purge, "remove everything")
    sub.add_argument("-y", "--yes", action="store_true", help="do not ask")
    command("save", _save, "have everything on disk")
    sub = command("info", _info, "tell about the daemon")
    sub.add_argument("--json", action="store_true", help="print it as JSON")
    command("ping", _ping, "tell whether the daemon answers, and how fast")
    return parser


def _endpoint(text: str) -> str:
    if "://" not in text:
        raise ValueError
    return text


def _timeout(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


# The commands. Each takes the database and the parsed arguments and returns an exit status.


def _set(db: PickleDB, options: argparse.Namespace) -> int:
    text = sys.stdin.read() if options.value == "-" else options.value
    db.set(options.key, _typed(text))
    return DONE


def _get(db: PickleDB, options: argparse.Namespace) -> int:
    try:
        value = db[options.key]
    except KeyError:
        print(f"pickledbctl: no key {shown(options.key)} in {db.location}", file=sys.stderr)
        return NO_SUCH_KEY
    if options.raw and isinstance(value, bytes):
        _write(value)
    elif options.raw and isinstance(value, str):
        _write(value.encode())
    else:
        _write(encode_value(options.key, value) + b"\n")
    return DONE


def _all(db: PickleDB, options: argparse.Namespace) -> int:
    keys = db.all()
    _write(
        orjson.dumps(keys) + b"\n" if options.json else "".join(f"{key}\n" for key in keys).encode()
    )
    return DONE


def _remove(db: PickleDB, options: argparse.Namespace) -> int:
    if db.remove(options.key):
        return DONE
    print(f"pickledbctl: no key {shown(options.key)} in {db.location}", file=sys.stderr)
    return NO_SUCH_KEY


def _purge(db: PickleDB, options: argparse.Namespace) -> int:
    if sys.stdin.isatty() and not options.yes:
        print(
            f"Remove all {len(db):,} keys of {db.location}? [y/N] ",
            end="",
            file=sys.stderr,
            flush=True,
        )
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("nothing was removed", file=sys.stderr)
            return DONE
    db.purge()
    return DONE


def _save(db: PickleDB, _options: argparse.Namespace) -> int:
    if sys.stderr.isatty():
        print(f"saving {len(db):,} keys ...", file=sys.stderr)
    started = time.monotonic()
    db.save()
    if sys.stderr.isatty():
        print(f"saved {db.location} in {time.monotonic() - started:.2f} s", file=sys.stderr)
    return DONE


def _info(db: PickleDB, options: argparse.Namespace) -> int:
    told = db.info()
    if options.json:
        _write(orjson.dumps(told) + b"\n")
        return DONE
    width = max(map(len, told))
    for name, value in told.items():
        _write(f"{name:{width}}  {_shown_fact(name, value)}\n".encode())
    return DONE


def _ping(db: PickleDB, _options: argparse.Namespace) -> int:
    started = time.monotonic()
    db.ping()
    took_ms = (time.monotonic() - started) * 1000
    _write(f"{db.location} answered in {took_ms:.2f} ms\n".encode())
    return DONE


def _typed(text: str) -> Any:
    """The value that was typed: JSON (bytes as `$binary`), or else the text itself."""
    encoded = text.encode(errors="surrogatepass")
    try:
        value = orjson.loads(encoded)
    except orjson.JSONDecodeError:
        return text
    check_integers(encoded)
    return restore(value)


def _shown_fact(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "last_save_time":
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if name in ("keys", "clients", "dirty") else str(value)


def _write(data: bytes) -> None:
    """To stdout as it is, whatever the locale; keys and values are UTF-8."""
    sys.stdout.buffer.write(data)


if __name__ == "__main__":
    sys.exit(main())
