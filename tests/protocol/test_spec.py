"""SPEC.md tells the truth: its examples are sent to a daemon, its table is the code's table."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pickledbd import records
from pickledbd_protocol import COMMANDS, counters
from pickledbd_protocol.errors import BY_CODE

SPEC = (Path(__file__).parents[2] / "protocol" / "SPEC.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```json (request|reply)\n(.*?)^```", SPEC, re.MULTILINE | re.DOTALL)


def matches(expected, found):
    if expected == "...":
        return True
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(matches, expected, found))
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(
            matches(expected[name], found[name]) for name in expected
        )
    return type(expected) is type(found) and expected == found


def test_the_examples_are_what_a_daemon_answers(dealer):
    kinds = [kind for kind, _ in BLOCKS]
    assert kinds == ["request", "reply"] * (len(kinds) // 2)
    assert len(kinds) > 40
    for (_, request), (_, reply) in zip(BLOCKS[::2], BLOCKS[1::2], strict=True):
        dealer.send(request.encode())
        found = dealer.recv()
        assert matches(json.loads(reply), json.loads(found)), (request, found)
        if isinstance(json.loads(found), dict):
            assert list(json.loads(found).get("result", {})) == list(
                json.loads(reply).get("result", {})
            )


def test_every_command_of_the_table_is_specified_with_its_arguments():
    table = SPEC.split("## Commands")[1].split("Setting a key")[0]
    specified = {}
    for row in re.findall(r"^\| `.*$", table, re.MULTILINE):
        op, args, _, writes, _ = (cell.strip() for cell in row.strip("|").split("|"))
        optional = re.findall(r"\(`(\w+)`\)", args)
        needed = [arg for arg in re.findall(r"`(\w+)`", args) if arg not in optional]
        specified[op.strip("`")] = (needed, optional, writes == "yes")
    assert specified == {
        name: (list(command.args), list(command.optional), command.writes)
        for name, command in COMMANDS.items()
    }


def test_every_command_has_an_example():
    requests = [json.loads(block) for kind, block in BLOCKS if kind == "request"]
    requests += [one for several in requests if isinstance(several, list) for one in several]
    ops = {request.get("op") for request in requests if isinstance(request, dict)}
    assert ops == {*COMMANDS, "lend"}


def format_of(heading):
    """What the one block of Python in a section defines, its asserts having held."""
    section = SPEC.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"^```python format\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    spec = {}
    exec(block, spec)
    return spec


def test_the_counter_table_s_layout_is_the_code_s():
    spec = format_of("The counter table")
    constants = {name: value for name, value in spec.items() if name.isupper()}
    assert len(constants) == 10
    assert constants == {name: getattr(counters, name) for name in constants}


def test_the_journal_s_format_is_the_code_s():
    spec = format_of("The journal")
    assert spec["FORMAT"] == records.FORMAT
    assert spec["HEADER_BYTES"] == records.HEADER_BYTES
    for text in (b"{}", b'{"set":{"k":"\xc3\xa4"}}', b'{"clear":true}' + b" " * 70_000):
        for place in (0, 1, 2**40):
            assert records.encode([text], 12, place) == spec["record"](text, 12, place)


def test_every_error_code_is_specified():
    section = SPEC.split("## Errors")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` ", section, re.MULTILINE)) == BY_CODE.keys()
