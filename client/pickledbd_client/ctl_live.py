"""`pickledbctl info`: what a daemon tells of itself, once, or again and again as a live view."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from typing import Any

import orjson

from pickledbd_client.ctl_commands import DONE, write
from pickledbd_client.progress import size_of
from pickledbd_client.raw import RawPickleDB
from pickledbd_protocol import RequestTimeout, Unavailable

PATIENCE = 2.0
"""Seconds after which a daemon that does not answer is told to be unavailable."""

LONGEST = 1e6
"""Seconds that are slept at most."""

_GIVEN = frozenset(
    ("pid", "protocol", "uptime", "last_save_time", "last_save_duration_ms", "longest_slice_ms")
)
"""Numbers that count nothing."""

_TOTALS = ("requests", "errors")
"""Counts of several kinds, of which the sum is worth being told too."""

_LEAST = frozenset(
    [
        *("pid", "version", "protocol", "location", "endpoints", "read_only", "durability"),
        *("limits", "slow", "slices", "descriptors_max", "python", "libzmq", "orjson"),
    ]
)
"""What does not change, or is long: in a live view it comes last, as far as there is room."""

_EXACT = 100
"""A rate that needs no fraction."""

_CLEAR = "\x1b[H\x1b[J"


def info(db: RawPickleDB, options: argparse.Namespace) -> int:
    """Print what the daemon tells of itself."""
    if options.watch is not None:
        return _watch(db, options)
    told = db.info()
    if options.json:
        write(orjson.dumps(told) + b"\n")
    else:
        write("".join(f"{line}\n" for line in _lines(told, {})).encode())
    return DONE


def _watch(db: RawPickleDB, options: argparse.Namespace) -> int:
    """The same every so many seconds, until Ctrl+C."""
    live = sys.stdout.isatty() and not options.json
    before: dict[str, Any] = {}
    asked = 0.0
    try:
        with contextlib.closing(db.sibling(PATIENCE)) as again:
            while True:
                clock = time.strftime("%H:%M:%S")
                try:
                    told, now = again.info(), time.monotonic()
                except (Unavailable, RequestTimeout) as error:
                    before = {}
                    text = f"{clock}  unavailable, retrying: {error}"
                else:
                    rates = _rates(before, told, now - asked)
                    before, asked = told, now
                    if options.json:
                        text = orjson.dumps(told | {"rates": rates}).decode()
                    elif live:
                        title = f"{clock}  (Ctrl+C ends it)  pid {told['pid']}, {again.location}"
                        text = _view(title, told, rates)
                    else:
                        text = f"{clock}  {_line(told, rates)}"
                write(f"{_CLEAR if live else ''}{text}\n".encode())
                sys.stdout.flush()
                time.sleep(min(options.watch, LONGEST))
    except KeyboardInterrupt:
        return DONE


def _rates(before: dict[str, Any], told: dict[str, Any], seconds: float) -> dict[str, float]:
    """By how much a second those numbers have grown that did. None of another daemon's."""
    if not before or before["pid"] != told["pid"]:
        return {}
    then = _numbers(before)
    return {
        name: round((value - then.get(name, 0)) / seconds, 3)
        for name, value in _numbers(told).items()
        if value > then.get(name, 0)
    }


def _numbers(told: dict[str, Any]) -> dict[str, float]:
    """What counts something, by its name; of several kinds each, as `requests.get`, and the sum."""
    found: dict[str, float] = {}
    for name, value in told.items():
        if type(value) is dict:
            each = {kind: count for kind, count in value.items() if type(count) is int}
            if name in _TOTALS:
                found[name] = sum(each.values())
            found |= {f"{name}.{kind}": count for kind, count in each.items()}
        elif type(value) in (int, float) and name not in _GIVEN:
            found[name] = value
    return found


def _view(title: str, told: dict[str, Any], rates: dict[str, float]) -> str:
    """All of it that the terminal has room for, what matters first."""
    columns, rows = size_of(sys.stdout)
    first = {name: value for name, value in told.items() if name not in _LEAST}
    lines = [title, "", *_lines(first | told, rates)]
    return "\n".join(line[:columns] for line in lines[: rows - 1])


def _lines(told: dict[str, Any], rates: dict[str, float]) -> list[str]:
    """A line for each member; of what was slow, for each time."""
    width = max(map(len, told))
    return [
        f"{'' if number else name:{width}}  {text}"
        for name, value in told.items()
        for number, text in enumerate(_texts(name, value, rates))
    ]


def _texts(name: str, value: Any, rates: dict[str, float]) -> list[str]:
    if name == "slow":
        return [_slow(each) for each in value] or ["-"]
    if type(value) is dict:
        each = [
            f"{kind}: {_shown(kind, count)}{_growth(f'{name}.{kind}', rates)}"
            for kind, count in value.items()
        ]
        if name in _TOTALS:
            each.insert(0, f"{sum(value.values()):,}{_growth(name, rates)}")
        return ["  ".join(each) or "-"]
    return [f"{_shown(name, value)}{_growth(name, rates)}"]


def _growth(name: str, rates: dict[str, float]) -> str:
    rate = rates.get(name)
    if rate is None:
        return ""
    return f" (+{rate:,.0f}/s)" if rate >= _EXACT else f" (+{rate:.3g}/s)"


def _slow(told: dict[str, Any]) -> str:
    """One of what was slow, as the daemon's log tells it."""
    facts = [_moment(told["time"]), told["command"]]
    if "count" in told:
        facts.append(f"of {told['count']:,} items")
    if "key" in told:
        facts.append(told["key"])
    facts.append(f"{told['how']} {told['ms']:,} ms")
    return " ".join(facts) + (f", for {told['peer']}" if "peer" in told else "")


def _line(told: dict[str, Any], rates: dict[str, float]) -> str:
    """What changes, in one line."""
    facts = [f"{name}={value}" for name, value in _numbers(told).items() if "." not in name]
    facts += [f"longest_slice_ms={told['longest_slice_ms']}"]
    facts += [f"{name}/s={rate}" for name, rate in rates.items() if "." not in name]
    if told.get("last_save_time"):
        facts.append(f"last_save={_shown('last_save_time', told['last_save_time'])[-8:]}")
    return " ".join(facts)


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "last_save_time":
        return _moment(value)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if type(value) is int and name not in _GIVEN else str(value)


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
