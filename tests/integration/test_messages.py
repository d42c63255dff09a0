"""The README tells what messages mean: those that there are."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLES = README.split("### Troubleshooting")[1].split("\n## ")[0]
ROWS = re.findall(r"^\| (`.*?) \| ", TABLES, re.MULTILINE)
MESSAGES = [message for row in ROWS for message in re.findall(r"`([^`]+)`", row)]


def texts(path):
    """All texts of a module, with "…" for what is put into them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%(\.\d+)?[sdf]", "…", node.value)


@cache
def templates():
    rooms = ("server/pickledbd", "client/pickledbd_client", "protocol/pickledbd_protocol")
    return [
        text
        for room in rooms
        for path in sorted((ROOT / room).glob("*.py"))
        for text in texts(path)
    ]


def test_there_are_many():
    assert len(MESSAGES) > 30
    assert len(MESSAGES) == len(set(MESSAGES))


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_one_of_the_source_s(message):
    assert [text for text in templates() if message in text]


def test_one_that_nobody_tells_is_found_out():
    assert not [text for text in templates() if "is owned by nobody" in text]
