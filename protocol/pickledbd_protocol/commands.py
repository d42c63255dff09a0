"""The one table of commands: what may be asked, with which arguments, and what it does.

May live here: descriptions of commands and the checks of their arguments' shapes. No I/O, no
store. The codec refuses every request that this table does not describe, so a handler never
sees an argument of the wrong shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pickledbd_protocol.errors import ProtocolError


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


@dataclass(frozen=True)
class Command:
    """One command.

    `writes`: it may change the data, so it must not be repeated blindly after a lost reply.
    `waits`: its reply may come much later than those of commands sent after it.
    `whole`: it concerns the whole content, not some keys of it.
    `parts`: a large one may be sent in several messages.
    `steps`: it may be a step of a batch.
    """

    name: str
    args: Mapping[str, Kind] = field(default_factory=dict)
    optional: Mapping[str, Kind] = field(default_factory=dict)
    writes: bool = False
    waits: bool = False
    whole: bool = False
    parts: bool = False
    steps: bool = False


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        # about the daemon
        Command("hello", {"versions": VERSIONS}),
        Command("ping"),
        Command("info", optional={"reset": FLAG}),
        Command("save", waits=True),
        # one key
        Command("get", {"key": KEY}),
        Command("exists", {"key": KEY}),
        Command("set", {"key": KEY, "value": VALUE}, writes=True, steps=True),
        Command("setdefault", {"key": KEY, "value": VALUE}, writes=True),
        Command("remove", {"key": KEY}, writes=True, steps=True),
        Command("pop", {"key": KEY}, writes=True),
        Command("popitem", writes=True, whole=True),
        # many keys, each command all-or-nothing
        Command("get_many", {"keys": KEYS}),
        Command("set_many", {"items": ITEMS}, writes=True, parts=True, steps=True),
        Command("remove_many", {"keys": KEYS}, writes=True, steps=True),
        # the whole database
        Command("len", whole=True),
        Command("all", whole=True, waits=True),
        Command("dump", whole=True, waits=True),
        Command("replace", {"items": ITEMS}, writes=True, whole=True, parts=True),
        Command("purge", writes=True, whole=True, steps=True),
        Command("batch", {"steps": STEPS}, writes=True, whole=True),
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
