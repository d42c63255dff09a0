"""`pickledbctl info`: what a daemon tells of itself, once, or again and again as a live view."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from typing import Any

import orjson

from pickledbd_client.ctl_commands import DONE, write
from pickledbd_client.raw import RawPickleDB
from pickledbd_protocol import RequestTimeout, Unavailable

PATIENCE = 2.0
"""Seconds after which a daemon that does not answer is told to be unavailable."""

_GIVEN = frozenset(
    ("pid", "protocol", "uptime", "last_save_time", "last_save_duration_ms", "longest_slice_ms")
)
"""Numbers that count nothing."""

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
                        text = "\n".join([f"{clock}  (Ctrl+C ends it)", "", *_lines(told, rates)])
                    else:
                        text = f"{clock}  {_line(told, rates)}"
                write(f"{_CLEAR if live else ''}{text}\n".encode())
                sys.stdout.flush()
                time.sleep(options.watch)
    except KeyboardInterrupt:
        return DONE


def _rates(before: dict[str, Any], told: dict[str, Any], seconds: float) -> dict[str, float]:
    """By how much a second those numbers have grown that did. None of another daemon's."""
    if not before or before["pid"] != told["pid"]:
        return {}
    return {
        name: round((value - before[name]) / seconds, 1)
        for name, value in told.items()
        if _counts(name, value) and value > before.get(name, value)
    }


def _counts(name: str, value: Any) -> bool:
    return type(value) in (int, float) and name not in _GIVEN


def _lines(told: dict[str, Any], rates: dict[str, float]) -> list[str]:
    width = max(map(len, told))
    return [
        f"{name:{width}}  {_shown(name, value)}"
        + (f"  (+{rates[name]:,.0f}/s)" if rates.get(name) else "")
        for name, value in told.items()
    ]


def _line(told: dict[str, Any], rates: dict[str, float]) -> str:
    """What changes, in one line."""
    names = [name for name, value in told.items() if _counts(name, value)]
    facts = [f"{name}={told[name]}" for name in (*names, "longest_slice_ms") if name in told]
    facts += [f"{name}/s={rate}" for name, rate in rates.items()]
    if told.get("last_save_time"):
        facts.append(f"last_save={_shown('last_save_time', told['last_save_time'])[-8:]}")
    return " ".join(facts)


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "last_save_time":
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if type(value) is int and name not in _GIVEN else str(value)
