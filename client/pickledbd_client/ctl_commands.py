"""What the commands of `pickledbctl` do.

Each takes the database and the parsed arguments, writes to stdout what was asked for, and returns
an exit status.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from typing import Any

import orjson

from pickledbd_client.database import PickleDB
from pickledbd_client.watching import Resync
from pickledbd_protocol import (
    InvalidValue,
    RequestTimeout,
    check_integers,
    encode_value,
    restore,
    shown,
)

DONE, NOT_THERE, USAGE, FAILED = range(4)  # argparse itself exits with 2 on wrong usage


def set_(db: PickleDB, options: argparse.Namespace) -> int:
    db.set(options.key, _value(options), ttl=options.ttl, token=options.token)
    return DONE


def get(db: PickleDB, options: argparse.Namespace) -> int:
    value, version = db.get_versioned(options.key)
    if not version:
        return _not_there(db, options)
    if options.versioned:
        _write_line({"value": _json(value), "version": version})
    elif options.raw and isinstance(value, bytes):
        _write(value)
    elif options.raw and isinstance(value, str):
        _write(value.encode())
    else:
        _write_line(_json(value))
    return DONE


def cas(db: PickleDB, options: argparse.Namespace) -> int:
    version = 0 if options.version == "0" else options.version
    value = _value(options)
    if db.cas(options.key, version, value, ttl=options.ttl, token=options.token):
        return DONE
    print(
        f"pickledbctl: key {shown(options.key)} in {db.location} is not of version {version}",
        file=sys.stderr,
    )
    return NOT_THERE


def incr(db: PickleDB, options: argparse.Namespace) -> int:
    _write_line(db.incr(options.key, options.by, options.default, token=options.token))
    return DONE


def all_(db: PickleDB, options: argparse.Namespace) -> int:
    keys = db.all(options.prefix, glob=options.glob)
    _write(
        orjson.dumps(keys) + b"\n" if options.json else "".join(f"{key}\n" for key in keys).encode()
    )
    return DONE


def items(db: PickleDB, options: argparse.Namespace) -> int:
    for key, value in db.items(options.prefix, glob=options.glob):
        _write_line({"key": key, "value": _json(value)})
    return DONE


def remove(db: PickleDB, options: argparse.Namespace) -> int:
    return DONE if db.remove(options.key, token=options.token) else _not_there(db, options)


def pop(db: PickleDB, options: argparse.Namespace) -> int:
    try:
        value = db.pop(options.key, token=options.token)
    except KeyError:
        return _not_there(db, options)
    _write_line(_json(value))
    return DONE


def purge(db: PickleDB, options: argparse.Namespace) -> int:
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
    db.purge(token=options.token)
    return DONE


def ttl(db: PickleDB, options: argparse.Namespace) -> int:
    left = db.ttl(options.key)
    if left is None and options.key not in db:
        return _not_there(db, options)
    _write(b"-\n" if left is None else b"%.3f\n" % left)
    return DONE


def expire(db: PickleDB, options: argparse.Namespace) -> int:
    there = db.expire(options.key, options.seconds, token=options.token)
    return DONE if there else _not_there(db, options)


def persist(db: PickleDB, options: argparse.Namespace) -> int:
    there = db.persist(options.key, token=options.token) or options.key in db
    return DONE if there else _not_there(db, options)


def lock(db: PickleDB, options: argparse.Namespace) -> int:
    lock = db.lock(options.name, options.ttl, options.wait)
    try:
        held = lock.acquire()
    except RequestTimeout as error:
        print(f"pickledbctl: {error}", file=sys.stderr)
        return NOT_THERE
    try:
        status = _run(options.argv, {"PICKLEDBD_TOKEN": str(held.token)})
    finally:
        lock.release()
    return status


def _run(argv: list[str], environment: dict[str, str]) -> int:
    """Run a command to its end, which is told of signals; its exit status as a shell has it.

    Not of SIGINT, as a terminal tells both of its Ctrl+C.
    """
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    try:
        process = subprocess.Popen(argv, env=os.environ | environment)  # noqa: S603 - as the user says
    except OSError as error:
        print(f"pickledbctl: cannot run {argv[0]}: {error.strerror}", file=sys.stderr)
        return FAILED
    for noted in early:
        process.send_signal(noted)
    while True:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            continue
        return status if status >= 0 else 128 - status


def watch(db: PickleDB, options: argparse.Namespace) -> int:
    for change in db.watch(options.prefix, options.since):
        if isinstance(change, Resync):
            items = {key: _json(value) for key, value in change.items.items()}
            _write_line({"resync": items, "seq": change.seq})
        elif change.removed:
            _write_line({"key": change.key, "removed": True, "seq": change.seq})
        else:
            _write_line({"key": change.key, "value": _json(change.value), "seq": change.seq})
        sys.stdout.flush()
    return DONE


def save(db: PickleDB, _options: argparse.Namespace) -> int:
    if sys.stderr.isatty():
        print(f"saving {len(db):,} keys ...", file=sys.stderr)
    started = time.monotonic()
    db.save()
    if sys.stderr.isatty():
        print(f"saved {db.location} in {time.monotonic() - started:.2f} s", file=sys.stderr)
    return DONE


def info(db: PickleDB, options: argparse.Namespace) -> int:
    told = db.info()
    if options.json:
        _write(orjson.dumps(told) + b"\n")
        return DONE
    width = max(map(len, told))
    for name, value in told.items():
        _write(f"{name:{width}}  {_shown_fact(name, value)}\n".encode())
    return DONE


def ping(db: PickleDB, _options: argparse.Namespace) -> int:
    started = time.monotonic()
    db.ping()
    took_ms = (time.monotonic() - started) * 1000
    _write(f"{db.location} answered in {took_ms:.2f} ms\n".encode())
    return DONE


def metrics(location: str | None, options: argparse.Namespace) -> int:
    try:
        from pickledbd_client.metrics import serve  # noqa: PLC0415 - an extra, which few need
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("prometheus_client"):
            raise
        print(
            "pickledbctl: metrics needs the package prometheus-client: "
            "pip install 'pickledbd[metrics]'",
            file=sys.stderr,
        )
        return FAILED
    try:
        serve(location, options.listen, options.timeout, insecure=options.insecure)
    except ValueError as error:
        print(f"pickledbctl: --listen {error}", file=sys.stderr)
        return USAGE
    except OSError as error:
        print(f"pickledbctl: cannot listen at {options.listen}: {error.strerror}", file=sys.stderr)
        return FAILED
    return DONE


def _not_there(db: PickleDB, options: argparse.Namespace) -> int:
    print(f"pickledbctl: no key {shown(options.key)} in {db.location}", file=sys.stderr)
    return NOT_THERE


def _value(options: argparse.Namespace) -> Any:
    """The value that was typed, or piped: JSON (bytes as `$binary`), or else the text itself."""
    key = options.key
    if options.value == "-":
        encoded = sys.stdin.buffer.read()
    else:
        encoded = options.value.encode(errors="surrogatepass")
    try:
        value = orjson.loads(encoded)
        check_integers(encoded)
    except orjson.JSONDecodeError:
        try:
            return encoded.decode(errors="strict" if options.value == "-" else "surrogatepass")
        except UnicodeDecodeError as error:
            raise InvalidValue(
                f"cannot store key {shown(key)}: standard input is not UTF-8: {error.reason} at "
                f"byte {error.start:,}"
            ) from None
    except InvalidValue as error:
        raise InvalidValue(f"cannot store key {shown(key)}: {error}") from None
    return restore(value)


def _shown_fact(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "last_save_time":
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if name in ("keys", "clients", "dirty") else str(value)


def _json(value: Any) -> orjson.Fragment:
    """A value as it is on the wire, bytes too."""
    return orjson.Fragment(encode_value("", value))


def _write_line(told: Any) -> None:
    _write(orjson.dumps(told) + b"\n")


def _write(data: bytes) -> None:
    """To stdout as it is, whatever the locale; keys and values are UTF-8."""
    sys.stdout.buffer.write(data)
