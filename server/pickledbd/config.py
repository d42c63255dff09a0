"""What the daemon was told to do: by its command line, and by a configuration file.

The file is TOML, and has a key for each option of the command line, by its long name. Which there
are, and what they may be, is asked of the parser: an option that it has is a key by itself. What
the command line says counts; then what the file says; then the default.
"""

from __future__ import annotations

import argparse
import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pickledbd.options import parser

_KINDS = {
    str: "a text in quotes",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "an array",
    dict: "a table",
}
"""What TOML's types are called in messages; the others are dates and times."""


class ConfigError(Exception):
    """A configuration file that cannot be used; the text names it, and the key."""


def options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """All options. Exits with status 2, after one line, where they are wrong."""
    known = parser()
    actions = _actions(known)
    every = known._actions  # noqa: SLF001 - there is no public name
    defaults = {a.dest: a.default for a in every if a.default != argparse.SUPPRESS}
    for action in every:
        action.default = argparse.SUPPRESS  # so that what was given can be told from the rest
    given = vars(known.parse_args(argv))
    try:
        told = _read(given["config"], actions, defaults) if "config" in given else {}
    except ConfigError as error:
        known.exit(2, f"{known.prog}: {error}\n")
    merged = argparse.Namespace(**{**defaults, **told, **given})
    if merged.location is None:
        known.error("one argument is required: LOCATION, here or as location in a --config FILE")
    return merged


def keys() -> dict[str, argparse.Action]:
    """The keys that a file may have, each with what the parser knows of it."""
    return _actions(parser())


def _actions(known: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """What is not for people, or ends the command at once, is left out, and the file itself."""
    return {
        max(action.option_strings, key=len, default=action.dest).lstrip("-"): action
        for action in known._actions  # noqa: SLF001 - there is no public name
        if action.help != argparse.SUPPRESS and action.dest not in ("help", "version", "config")
    }


def _read(
    name: str, actions: dict[str, argparse.Action], defaults: dict[str, Any]
) -> dict[str, Any]:
    """What the file says, by the names of the options. ConfigError.

    A name that begins with "-" is that of a file which may be missing, as in systemd's units.
    """
    path = Path(name.removeprefix("-"))
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if name.startswith("-"):
            return {}
        raise ConfigError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: it cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: it is not TOML: {error}") from None
    told: dict[str, Any] = {}
    by: dict[str, str] = {}
    for key, value in content.items():
        if key not in actions:
            near = difflib.get_close_matches(key, actions, 1)
            hint = f"did you mean {near[0]}?" if near else "the keys are " + ", ".join(actions)
            raise ConfigError(f"{path}: there is no key {key}; {hint}")
        action = actions[key]
        try:
            made = _value(action, value, defaults[action.dest])
        except argparse.ArgumentTypeError as error:
            raise ConfigError(f"{path}: {key}: {error}") from None
        if value is False:
            continue
        if action.dest in by:
            raise ConfigError(f"{path}: {by[action.dest]} and {key} exclude each other")
        by[action.dest] = key
        told[action.dest] = made
    return told


def _value(action: argparse.Action, value: object, default: object) -> object:
    """What the command line would make of it. ArgumentTypeError."""
    if action.nargs == 0:  # a flag
        _demand(value, bool)
        return default if value is False else action.const
    if isinstance(action, argparse._AppendAction):  # noqa: SLF001 - there is no public name
        return [_single(action, each) for each in _demand(value, list)]
    return _single(action, value)


def _single(action: argparse.Action, value: object) -> object:
    made = value
    kind: type = str
    if callable(action.type):
        if type(value) not in (str, int, float):
            _demand(value, float)
        try:
            made = action.type(str(value))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{value!r} is not fit") from None
        kind = float if type(made) in (int, float) else str
    _demand(value, kind)
    if action.choices is not None and made not in action.choices:
        raise argparse.ArgumentTypeError(
            f"{value!r} is none of {', '.join(map(str, action.choices))}"
        )
    return made


def _demand(value: Any, kind: type) -> Any:
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        is_one = _KINDS.get(type(value), "a date or a time")
        raise argparse.ArgumentTypeError(f"it has to be {_KINDS[kind]}, and is {is_one}: {value!r}")
    if isinstance(value, str) and "\0" in value:  # which no path or name can have
        raise argparse.ArgumentTypeError(f"{value!r} is not fit: it has a NUL character")
    return value
