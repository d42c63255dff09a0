"""The one table of commands: what may be asked, with which arguments, and what it does.

May live here: descriptions of commands and the checks of their arguments' shapes. No I/O, no
store. The codec refuses every request that this table does not describe, so a handler never
sees an argument of the wrong shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pickledbd_protocol.errors import ProtocolError

COUNT_MAX = 2**53 - 1
"""The largest integer that every language's JSON reads exactly."""

TTL_MS_MAX = 100 * 366 * 86_400_000
"""The longest time to live, in milliseconds: a hundred years."""

NAME_MAX = 64
"""The longest name of a holder of locks, or of a watcher, in characters."""

GLOB_MAX = 1000
"""The longest glob, in characters."""


def _any(_value: Any) -> bool:
    return True


def _is_key(value: Any) -> bool:
    return type(value) is str


def _is_keys(value: Any) -> bool:
    return type(value) is list and all(map(_is_key, value))


def _is_items(value: Any) -> bool:
    return type(value) is dict


def _is_steps(value: Any) -> bool:
    return type(value) is list and all(map(_is_step, value))


def _is_step(value: Any) -> bool:
    if type(value) is not dict or value.keys() - {"op", "args"} or type(value.get("op")) is not str:
        return False
    command = COMMANDS.get(value["op"])
    if command is None or not command.steps:
        return False
    check_args(command, value.get("args", {}))
    return True


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _is_versions(value: Any) -> bool:
    return type(value) is list and all(type(v) is int for v in value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_version(value: Any) -> bool:
    return type(value) is str or (type(value) is int and value == 0)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= COUNT_MAX


def _is_counts(value: Any) -> bool:
    return type(value) is list and all(map(_is_count, value))


def _is_ttl(value: Any) -> bool:
    return type(value) is int and 0 < value <= TTL_MS_MAX


def _is_ttls(value: Any) -> bool:
    return type(value) is dict and all(map(_is_ttl, value.values()))


def _is_glob(value: Any) -> bool:
    return type(value) is str and len(value) <= GLOB_MAX


def _is_name(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= NAME_MAX


@dataclass(frozen=True)
class Kind:
    """The shape of an argument: its test, and how an error message describes it."""

    holds: Callable[[Any], bool]
    described: str


KEY = Kind(_is_key, "a string")
KEYS = Kind(_is_keys, "an array of strings")
VALUE = Kind(_any, "any JSON value")
ITEMS = Kind(_is_items, "an object")
FLAG = Kind(_is_flag, "true or false")
STEPS = Kind(_is_steps, "an array of objects with the op and args of writes")
VERSIONS = Kind(_is_versions, "an array of integers")
NUMBER = Kind(_is_number, "a number")
VERSION = Kind(_is_version, "a version, a string, or 0")
COUNT = Kind(_is_count, "an integer from 0 to 2**53 - 1")
COUNTS = Kind(_is_counts, "an array of integers from 0 to 2**53 - 1")
TTL = Kind(_is_ttl, "an integer of milliseconds, over 0 and at most 100 years")
TTLS = Kind(_is_ttls, "an object of keys to such integers of milliseconds as ttl_ms is")
NAME = Kind(_is_name, f"a string of 1 to {NAME_MAX} characters")
GLOB = Kind(_is_glob, f"a string of at most {GLOB_MAX} characters")

_TOKEN: dict[str, Kind] = {"token": COUNT}
_TTL: dict[str, Kind] = {"ttl_ms": TTL}
_TTLS: dict[str, Kind] = {"ttls": TTLS}
_SOME: dict[str, Kind] = {"prefix": KEY, "glob": GLOB}


@dataclass(frozen=True)
class Command:
    """One command.

    `writes`: it may change the data, so it must not be repeated blindly after a lost reply.
    `parks`: it may wait for something that may never happen, and is answered then.
    `whole`: it concerns the whole content, not some keys of it.
    `parts`: a large one may be sent in several messages.
    `steps`: it may be a step of a batch.
    `reads`: it changes nothing for others, so who may only read may ask it, but for the arguments
    that are `restricted`.
    """

    name: str
    args: Mapping[str, Kind] = field(default_factory=dict)
    optional: Mapping[str, Kind] = field(default_factory=dict)
    writes: bool = False
    parks: bool = False
    whole: bool = False
    parts: bool = False
    steps: bool = False
    reads: bool = False
    restricted: Sequence[str] = ()


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        # about the daemon
        Command("hello", {"versions": VERSIONS}, reads=True),
        Command("ping", reads=True),
        Command("info", optional={"reset": FLAG}, reads=True, restricted=["reset"]),
        Command("save"),
        # one key
        Command("get", {"key": KEY}, reads=True),
        Command("exists", {"key": KEY}, reads=True),
        Command("set", {"key": KEY, "value": VALUE}, _TTL | _TOKEN, writes=True, steps=True),
        Command("setdefault", {"key": KEY, "value": VALUE}, _TOKEN, writes=True),
        Command("remove", {"key": KEY}, _TOKEN, writes=True, steps=True),
        Command("pop", {"key": KEY}, _TOKEN, writes=True),
        Command("popitem", {}, _TOKEN, writes=True, whole=True),
        Command(
            "incr",
            {"key": KEY},
            {"by": NUMBER, "default": NUMBER} | _TOKEN,
            writes=True,
            steps=True,
        ),
        Command("get_versioned", {"key": KEY}, reads=True),
        Command(
            "cas",
            {"key": KEY, "version": VERSION, "value": VALUE},
            {"keep_ttl": FLAG} | _TTL | _TOKEN,
            writes=True,
        ),
        Command("if_version", {"key": KEY, "version": VERSION}, steps=True, reads=True),
        # how long a key lives
        Command("ttl", {"key": KEY}, reads=True),
        Command("expire", {"key": KEY, "ttl_ms": TTL}, _TOKEN, writes=True, steps=True),
        Command("persist", {"key": KEY}, _TOKEN, writes=True, steps=True),
        # many keys, each command all-or-nothing
        Command("get_many", {"keys": KEYS}, reads=True),
        Command(
            "set_many",
            {"items": ITEMS},
            _TTL | _TTLS | _TOKEN,
            writes=True,
            parts=True,
            steps=True,
        ),
        Command("remove_many", {"keys": KEYS}, _TOKEN, writes=True, steps=True),
        # the whole database
        Command("len", whole=True, reads=True),
        Command("all", {}, _SOME, whole=True, reads=True),
        Command("dump", {}, _SOME | {"seq": FLAG, "ttl": FLAG}, whole=True, reads=True),
        Command("replace", {"items": ITEMS}, _TTLS | _TOKEN, writes=True, whole=True, parts=True),
        Command("purge", {}, _TOKEN, writes=True, whole=True, steps=True),
        Command("batch", {"steps": STEPS}, _TOKEN, writes=True, whole=True),
        # together: who waits for others, and for what they do
        Command(
            "lock",
            {"name": KEY, "holder": NAME, "ask": COUNT, "ttl_ms": TTL},
            {"wait_ms": COUNT},
            parks=True,
        ),
        Command("unlock", {"name": KEY, "holder": NAME, "ask": COUNT}, writes=True),
        Command("keep", {"holder": NAME, "asks": COUNTS}),
        Command(
            "watch", {}, {"prefix": KEY, "since": COUNT, "watcher": NAME}, parks=True, reads=True
        ),
        Command("unwatch", {"watcher": NAME}, reads=True),
    )
}


def check_args(command: Command, args: Any) -> None:
    """Raise ProtocolError unless `args` is an object with just the command's arguments."""
    if type(args) is not dict:
        raise ProtocolError(f"{command.name}: args must be an object")
    for name, kind in command.args.items():
        if name not in args:
            raise ProtocolError(f"{command.name}: argument {name!r} is missing")
        if not kind.holds(args[name]):
            raise ProtocolError(f"{command.name}: argument {name!r} must be {kind.described}")
    if len(args) == len(command.args):
        return
    for name in sorted(args.keys() - command.args.keys()):
        if name not in command.optional:
            raise ProtocolError(f"{command.name}: this daemon knows no argument {name[:80]!r}")
        kind = command.optional[name]
        if not kind.holds(args[name]):
            raise ProtocolError(f"{command.name}: argument {name!r} must be {kind.described}")
    strange = args["ttls"].keys() - args["items"].keys() if "ttls" in args else ()
    if strange:
        raise ProtocolError(
            f"{command.name}: argument 'ttls' has key {min(strange)[:80]!r}, which 'items' has not"
        )
