"""The options of `pickledbd`: their names, what they may be, and what is said of them.

May live here: the parser. Each option is a key of the configuration file too (`config`), by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from typing import TypeVar

from pickledbd.logs import FORMS, LEVELS
from pickledbd.slow import SLOW_MS
from pickledbd_protocol import __version__

_Number = TypeVar("_Number", int, float)

MEBIBYTES_MAX = 1024
"""The largest --max-request: orjson crashes at a str of 2 GiB."""


def parser() -> argparse.ArgumentParser:
    """The command line of `pickledbd`."""
    parser = argparse.ArgumentParser(
        prog="pickledbd",
        description="Own one pickleDB file and serve it to any number of threads and processes.",
        epilog="It says one line when it is ready, and saves and exits on SIGTERM and SIGINT.",
    )
    parser.add_argument(
        "location", metavar="LOCATION", nargs="?", help="the database file; made if missing"
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="take what is not said here from this TOML file, whose keys are the long names of "
        "these options, and location; with =-FILE it may be missing (default: none)",
    )
    parser.add_argument(
        "--bind",
        metavar="ENDPOINT",
        action="append",
        default=[],
        help="listen at ipc:///PATH or tcp://ADDRESS:PORT; may be repeated; beside the sockets "
        "that systemd passes (default: those; or else one that only this user reaches, and that "
        "clients given LOCATION find)",
    )
    _add_who_may_come(parser)
    parser.add_argument(
        "--idle-exit",
        metavar="SECONDS",
        type=_number(float, "seconds, 0 or more", 0),
        help="save and exit when no client has been connected for so long (default: never)",
    )
    parser.add_argument(
        "--max-request",
        metavar="MIB",
        type=_number(int, f"MiB, 1 to {MEBIBYTES_MAX}", 1, MEBIBYTES_MAX),
        default=256,
        help="the largest request accepted, in MiB, at most 1024 (default: 256)",
    )
    parser.add_argument(
        "--max-key",
        metavar="BYTES",
        type=_number(int, "bytes, 1 or more", 1),
        default=64 * 2**10,
        help="the longest key, and name of a lock, in bytes (default: 65536)",
    )
    parser.add_argument(
        "--max-value",
        metavar="MIB",
        type=_number(int, "MiB, 1 or more", 1),
        help="the largest value, in MiB (default: as --max-request)",
    )
    parser.add_argument(
        "--max-keys",
        metavar="N",
        type=_number(int, "keys, 1 or more", 1),
        help="refuse to add keys beyond so many (default: no limit)",
    )
    parser.add_argument(
        "--max-memory",
        metavar="MIB",
        type=_number(int, "MiB, 1 or more", 1),
        help="refuse to add what would have keys and values take more memory than this, in MiB "
        "(default: no limit)",
    )
    parser.add_argument(
        "--max-clients",
        metavar="N",
        type=_number(int, "connections, 1 or more", 1),
        default=10_000,
        help="serve so many connections at a time, fewer if the system gives fewer descriptors "
        "(default: 10000)",
    )
    parser.add_argument(
        "--max-waiting",
        metavar="N",
        type=_number(int, "requests, 1 or more", 1),
        default=20_000,
        help="so many locks, and requests that wait for a lock, a change, or anything long, at a "
        "time; one connection has half of them at most (default: 20000)",
    )
    parser.add_argument(
        "--max-unread",
        metavar="MIB",
        type=_number(int, "MiB, 16 or more", 16),
        default=64,
        help="hang up on a client that leaves replies of more than this unread, in MiB, 16 or "
        "more (default: 64)",
    )
    parser.add_argument(
        "--durability",
        choices=("save", "journal", "fsync"),
        default="journal",
        help="when a write is safe: at the next save; in the operating system before its reply, so "
        "that the daemon may be killed, and on disk within a second (the default); or on disk "
        "before its reply",
    )
    parser.add_argument(
        "--save-interval",
        metavar="SECONDS",
        type=_number(float, "seconds, 1 or more", 1),
        help="save what is unsaved so often (default: at the end, when a client asks for it, and "
        "when the journal has outgrown the file)",
    )
    parser.add_argument(
        "--backups",
        metavar="N",
        type=_number(int, "files, 0 or more", 0),
        default=0,
        help="keep the last N data files that saves replaced, as LOCATION.backup-TIME (default: 0)",
    )
    parser.add_argument(
        "--slow-ms",
        metavar="MS",
        type=_number(float, "milliseconds, 0 or more", 0),
        default=SLOW_MS,
        help="log what holds all others up for over MS milliseconds, and what takes ten times that "
        f"beside them; 0: nothing (default: {SLOW_MS})",
    )
    parser.add_argument(
        "--log-format",
        choices=FORMS,
        help="lines for people, a JSON object a line, or systemd's journal with fields "
        "(default: journal where stderr is connected to it, else text)",
    )
    parser.add_argument(
        "--log-level",
        choices=LEVELS,
        default="info",
        help="the least that is logged; debug tells of each connection and save (default: info)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="only read the data file and its journal, and say what is found; changes nothing",
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--replay-journal",
        dest="choice",
        action="store_const",
        const="replay",
        help="where data file and journal do not fit together: apply to the file what can be "
        "read of the journal, and save",
    )
    choice.add_argument(
        "--discard-journal",
        dest="choice",
        action="store_const",
        const="discard",
        help="where they do not: do without the journal, which is kept under another name",
    )
    parser.add_argument("--version", action="version", version=f"pickledbd {__version__}")
    # How a client starts it: with the lock already held, and as nobody's child.
    parser.add_argument("--lock-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--detach", action="store_true", help=argparse.SUPPRESS)
    return parser


def _add_who_may_come(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bind-read-only",
        metavar="ENDPOINT",
        action="append",
        default=[],
        help="listen there, too, for clients that may only read; may be repeated (default: none)",
    )
    parser.add_argument(
        "--read-only-clients",
        action="store_true",
        help="have all clients, wherever they come, only read (default: they may do everything)",
    )
    parser.add_argument(
        "--group",
        metavar="NAME",
        help="the group whose members may connect to the ipc endpoints (default: this user's)",
    )
    parser.add_argument(
        "--curve-key",
        metavar="FILE",
        help="the secret key of this daemon, as `pickledbctl keygen` makes it (NAME.key_secret): "
        "with it tcp is encrypted, and for --authorized-keys alone (default: none)",
    )
    parser.add_argument(
        "--authorized-keys",
        metavar="DIR",
        help="the directory with the public keys, NAME.key, of the clients that may come by tcp; "
        "of those in DIR/read-only, that may only read. It may be changed at any time",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="serve tcp beyond loopback without keys: whoever reaches the port may then read and "
        "change everything, and whoever is on the way can listen (default: refused)",
    )


def _number(
    kind: Callable[[str], _Number], what: str, least: int, most: float = sys.float_info.max
) -> Callable[[str], _Number]:
    """Makes a number, from `least` to `most`, of an argument; `what` it counts is told if not."""

    def number(text: str) -> _Number:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if least <= value <= most:
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is no number of {what}")

    return number
