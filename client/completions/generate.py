"""Write the completion scripts of bash and zsh for our commands, out of their parsers.

    python client/completions/generate.py [pickledbctl] [pickledbd]

writes them beside this file, whence the wheel takes them to where the shells look (pyproject.toml).
They are static, so that to complete starts no Python; a test tells when they are out of date.
By shtab, which is needed for this alone.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import shtab

from pickledbd import options
from pickledbd_client import ctl

FOLDER = Path(__file__).parent

PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "pickledbctl": ctl.parser,
    "pickledbd": options.parser,
}

NAMES = {"bash": "{}.bash", "zsh": "_{}"}
"""Of the scripts, by shell."""

_FILES = {"DIR", "FILE", "LOCATION", "PATH"}
"""What arguments are called that are files."""


def scripts(name: str) -> dict[str, str]:
    """The texts of the scripts for a command, by their names."""
    parser = PARSERS[name]()
    for each in _parsers(parser):
        each.epilog = None  # not for a script
        for action in each._actions:  # noqa: SLF001 - argparse has no other way to them
            if action.metavar in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined] # as shtab wants it
    return {
        form.format(name): re.sub(r"[ \t]+$", "", shtab.complete(parser, shell), flags=re.MULTILINE)
        for shell, form in NAMES.items()
    }


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """It, and those of its commands."""
    yield parser
    for action in parser._actions:  # noqa: SLF001 - the same
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - the same
            for listed in action._choices_actions:  # noqa: SLF001 - the same
                action.choices[listed.dest].description = listed.help  # all of it would be too long
            yield from action.choices.values()


if __name__ == "__main__":
    for command in sys.argv[1:] or PARSERS:
        for file_name, text in scripts(command).items():
            (FOLDER / file_name).write_text(text, encoding="utf-8")
