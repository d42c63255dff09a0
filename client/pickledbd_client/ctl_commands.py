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

from pickledbd_client.calls import Some
from pickledbd_client.database import PickleDB
from pickledbd_client.formats import as_lines
from pickledbd_client.raw import RawPickleDB
from pickledbd_client.watching import Resync
from pickledbd_protocol import (
    InvalidValue,
    PickleDBError,
    RequestTimeout,
    check_integers,
    encode_value,
    restore,
    shown,
)

DONE, NOT_THERE, USAGE, FAILED = range(4)


def set_(db: PickleDB, options: argparse.Namespace) -> int:
    db.set(options.key, _value(options.key, options.value), ttl=options.ttl, token=options.token)
    return DONE


def get(db: PickleDB, options: argparse.Namespace) -> int:
    value, version = db.get_versioned(options.key)
    if not version:
        return _not_there(db, options)
    if options.versioned:
        write_line({"value": _json(value), "version": version})
    elif options.raw and isinstance(value, bytes):
        write(value)
    elif options.raw and isinstance(value, str):
        write(value.encode())
    else:
        write_line(_json(value))
    return DONE


def cas(db: PickleDB, options: argparse.Namespace) -> int:
    version = 0 if options.version == "0" else options.version
    value = _value(options.key, options.value)
    if db.cas(options.key, version, value, ttl=options.ttl, token=options.token):
        return DONE
    print(
        f"pickledbctl: key {shown(options.key)} in {db.location} is not of version {version}",
        file=sys.stderr,
    )
    return NOT_THERE


def incr(db: PickleDB, options: argparse.Namespace) -> int:
    write_line(db.incr(options.key, options.by, options.default, token=options.token))
    return DONE


def exists(db: PickleDB, options: argparse.Namespace) -> int:
    return DONE if options.key in db else NOT_THERE


def setdefault(db: PickleDB, options: argparse.Namespace) -> int:
    value = _value(options.key, options.value)
    write_line(_json(db.setdefault(options.key, value, token=options.token)))
    return DONE


def all_(db: RawPickleDB, options: argparse.Namespace) -> int:
    some = Some(options.prefix, options.glob)
    if options.json:
        write_line(db.all(some.prefix, glob=some.glob))
        return DONE
    for keys in db.listed(some):
        write("".join(f"{key}\n" for key in keys).encode())
    return DONE


def items(db: RawPickleDB, options: argparse.Namespace) -> int:
    for text in as_lines(db.dumped(Some(options.prefix, options.glob), ttls=False)):
        write(text)
    return DONE


def len_(db: PickleDB, _options: argparse.Namespace) -> int:
    write_line(len(db))
    return DONE


def popitem(db: PickleDB, options: argparse.Namespace) -> int:
    try:
        key, value = db.popitem(token=options.token)
    except KeyError:
        print(f"pickledbctl: no keys in {db.location}", file=sys.stderr)
        return NOT_THERE
    write_line({"key": key, "value": _json(value)})
    return DONE


def get_many(db: PickleDB, options: argparse.Namespace) -> int:
    found = db.get_many(options.keys)
    for key, value in found.items():
        write_line({"key": key, "value": _json(value)})
    missing = [shown(key) for key in options.keys if key not in found]
    if missing:
        print(f"pickledbctl: no key {', '.join(missing)} in {db.location}", file=sys.stderr)
    return NOT_THERE if missing else DONE


def set_many(db: PickleDB, options: argparse.Namespace) -> int:
    keys, values = options.pairs[::2], options.pairs[1::2]
    if len(keys) > len(values):
        print(f"pickledbctl: no value is given for key {shown(keys[-1])}", file=sys.stderr)
        return USAGE
    items = {key: _value(key, text) for key, text in zip(keys, values, strict=True)}
    db.set_many(items, ttl=options.ttl, token=options.token)
    return DONE


def remove_many(db: PickleDB, options: argparse.Namespace) -> int:
    write_line(db.remove_many(options.keys, token=options.token))
    return DONE


def remove(db: PickleDB, options: argparse.Namespace) -> int:
    return DONE if db.remove(options.key, token=options.token) else _not_there(db, options)


def pop(db: PickleDB, options: argparse.Namespace) -> int:
    try:
        value = db.pop(options.key, token=options.token)
    except KeyError:
        return _not_there(db, options)
    write_line(_json(value))
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
    write(b"-\n" if left is None else b"%.3f\n" % left)
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

    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, pass_on)
    try:
        process = subprocess.Popen(argv, env=os.environ | environment)  # noqa: S603 - as the user says
        for noted in early:
            process.send_signal(noted)
        while True:
            try:
                status = process.wait()
            except KeyboardInterrupt:
                continue
            return status if status >= 0 else 128 - status
    except OSError as error:
        print(f"pickledbctl: cannot run {argv[0]}: {error.strerror}", file=sys.stderr)
        return FAILED
    finally:  # a shell goes on after it
        for number, handler in before.items():
            signal.signal(number, handler)


def watch(db: PickleDB, options: argparse.Namespace) -> int:
    for change in db.watch(options.prefix, options.since):
        if isinstance(change, Resync):
            items = {key: _json(value) for key, value in change.items.items()}
            write_line({"resync": items, "seq": change.seq})
        elif change.removed:
            write_line({"key": change.key, "removed": True, "seq": change.seq})
        else:
            write_line({"key": change.key, "value": _json(change.value), "seq": change.seq})
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


def ping(db: PickleDB, _options: argparse.Namespace) -> int:
    started = time.monotonic()
    db.ping()
    took_ms = (time.monotonic() - started) * 1000
    write(f"{db.location} answered in {took_ms:.2f} ms\n".encode())
    return DONE


def metrics(options: argparse.Namespace) -> int:
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
        serve(
            options.location,
            options.listen,
            timeout=options.timeout,
            curve=options.curve,
            insecure=options.insecure,
        )
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


def _value(key: str, typed: str) -> Any:
    """The value that was typed, or piped: JSON (bytes as `$binary`), or else the text itself."""
    encoded = sys.stdin.buffer.read() if typed == "-" else typed.encode(errors="surrogatepass")
    try:
        value = orjson.loads(encoded)
        check_integers(encoded)
    except orjson.JSONDecodeError:
        try:
            return encoded.decode(errors="strict" if typed == "-" else "surrogatepass")
        except UnicodeDecodeError as error:
            raise InvalidValue(
                f"cannot store key {shown(key)}: standard input is not UTF-8: {error.reason} at "
                f"byte {error.start:,}"
            ) from None
    except InvalidValue as error:
        raise InvalidValue(f"cannot store key {shown(key)}: {error}") from None
    return restore(value)


def _json(value: Any) -> orjson.Fragment:
    """A value as it is on the wire, bytes too."""
    return orjson.Fragment(encode_value("", value))


def reason(error: Exception) -> str:
    """What went wrong, in words: the system's errors have a number in theirs."""
    if isinstance(error, PickleDBError) or not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename or 'standard input or output'}: {error.strerror}"


def write_line(told: Any) -> None:
    """JSON on a line of its own, to stdout."""
    write(orjson.dumps(told) + b"\n")


def write(data: bytes) -> None:
    """To stdout as it is, whatever the locale; keys and values are UTF-8."""
    sys.stdout.buffer.write(data)
