"""The `pickledbd` command: from its arguments to a daemon that serves, and to its exit status.

0: it served, and its data is saved. 1: it could not serve, or not save at its end. 2: usage.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from pickledbd.checking import check
from pickledbd.counters import Counters
from pickledbd.endpoints import CannotServe, Claim, counters_path, is_utf8, private_endpoint
from pickledbd.engine import Engine
from pickledbd.journal import Journal
from pickledbd.limits import Limits
from pickledbd.loop import Loop
from pickledbd.notify import EXTEND_USEC, notify
from pickledbd.options import parser
from pickledbd.ownership import AlreadyOwnedError, Ownership
from pickledbd.recovery import recover
from pickledbd.saver import Gate, Saver
from pickledbd.signals import Signals
from pickledbd.snapshot import DataFile, Progress, Unreadable, with_progress
from pickledbd.status import Status
from pickledbd.store import Store
from pickledbd.tasks import Tasks
from pickledbd_protocol import SaveFailed

log = logging.getLogger(__name__)

MIB = 2**20

GC_THRESHOLD = 50_000
"""Containers made until the collector looks at them: a batch holds thousands, and no circle."""

NAME_MAX = 255 - len(".journal.1234567.discarded-1234567890123456789")
"""The longest name, in bytes, that leaves room for those of the files beside it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon in the foreground; its exit status."""
    options = parser().parse_args(argv)
    if options.detach:
        if os.fork():
            os._exit(0)  # nothing is open yet; the child belongs to nobody
        os.setsid()
        os.chdir("/")
        os.environ.pop("NOTIFY_SOCKET", None)  # its starter's, which has its own state to tell
    # A client that starts a daemon hears whether it serves, and why not: nothing else, and later
    # nothing at all
    level = logging.CRITICAL if options.detach else logging.INFO
    logging.basicConfig(stream=sys.stderr, level=level, format="pickledbd: %(message)s")
    try:
        if options.check:
            return check(_data_path(options.location))
        with contextlib.ExitStack() as stack:
            _serve(options, stack)
    except (CannotServe, Unreadable, SaveFailed) as error:
        print(f"pickledbd: {error}", file=sys.stderr)  # noqa: T201 - the one clear line
        return 1
    except _Stopped:
        return 0  # before it served, so there is nothing to save
    return 0


class _Stopped(Exception):
    """A signal came while the daemon was starting."""


def _serve(options: argparse.Namespace, stack: contextlib.ExitStack) -> None:
    try:
        engine, loop = _start(options, stack)
    except OSError as error:
        what = f" ({error.filename})" if error.filename else ""
        raise CannotServe(f"cannot serve {options.location}: {error.strerror}{what}") from None
    try:
        why = loop.run()
        log.info("stopping: %s", why)
    finally:
        # Also after a fault of the loop's: what was acknowledged is whole, and worth keeping.
        notify(STOPPING=1)
        failure = loop.finish()
    if failure is not None:
        raise failure
    engine.end()


def _start(options: argparse.Namespace, stack: contextlib.ExitStack) -> tuple[Engine, Loop]:
    """Own, load, listen and tell so; `stack` undoes it."""
    signals = Signals()
    _raise_descriptor_limit()
    path = _data_path(options.location)
    owner = _own(path, options.lock_fd)
    stack.callback(owner.release)
    owner.announce({"pid": os.getpid(), "state": "starting"})

    claims = []
    for endpoint in dict.fromkeys(options.bind) or [private_endpoint(path)]:
        claims.append(Claim(endpoint, private=not options.bind))
        stack.callback(claims[-1].release)

    def progress(what: str, done: int) -> None:
        if signals.received:
            raise _Stopped
        owner.announce({"pid": os.getpid(), "state": "loading", "bytes": done})
        status = f"reading {what}: {done / MIB:.0f} MiB"
        notify(STATUS=status, EXTEND_TIMEOUT_USEC=EXTEND_USEC)

    status = Status(
        location=str(path),
        request_bytes=options.max_request * MIB,
        limits=Limits.of(options),
    )
    file = DataFile(path, options.backups)
    counters = Counters()
    engine, tasks = _recover(
        options,
        file,
        stack,
        owner=owner,
        status=status,
        signals=signals,
        counters=counters,
        progress=progress,
    )
    loop = Loop(
        engine,
        claims,
        owner=owner,
        status=status,
        signals=signals,
        tasks=tasks,
        idle_exit=options.idle_exit,
    )
    stack.callback(counters.close)
    stack.callback(loop.close)
    endpoints = [claim.endpoint for claim in claims]
    private = not options.bind
    counters.share(lambda: counters_path(endpoints, private=private), sweep=private)
    # What is there now stays: the collector need not look through it again and again
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    status.endpoints = loop.bind()
    owner.announce({"pid": os.getpid(), "state": "serving", "endpoints": status.endpoints})
    where = " and ".join(status.endpoints)
    with contextlib.suppress(OSError):  # whoever would have read it has gone
        print(f"pickledbd: serving {path} ({engine.keys} keys) at {where}", flush=True)  # noqa: T201 - the ready line
    if options.detach:
        _leave_terminal()
    notify(READY=1, STATUS=f"serving {engine.keys} keys")
    return engine, loop


def _recover(
    options: argparse.Namespace,
    file: DataFile,
    stack: contextlib.ExitStack,
    *,
    owner: Ownership,
    status: Status,
    signals: Signals,
    counters: Counters,
    progress: Progress,
) -> tuple[Engine, Tasks]:
    """An engine with what the data file and its journals hold."""
    file.sweep()
    found = recover(file, choice=options.choice, progress=progress)
    for warning in found.warnings:
        log.warning("%s", warning)
    longest = max(found.steps, key=lambda step: found.steps[step])
    log.info(
        "loaded %s: %d keys, %d changes from the journal; the longest step was %s, %.3f s",
        file.path,
        len(found.table),
        found.replayed,
        longest,
        found.steps[longest],
    )
    expiring = with_progress(found.expiring, file.size, lambda done: progress(file.path.name, done))
    store = Store(found.table, counters, found.locks, expiring=expiring)
    exceeded = status.limits.exceeded_by(store.size)
    if exceeded is not None:
        log.warning("%s: %s", file.path, exceeded)
    journal = Journal(
        file.path, durable=options.durability, known=found.known, highest=found.highest
    )
    tasks, gate = Tasks(), Gate(store)
    saver = Saver(
        store,
        file,
        journal,
        found.retries,
        owner=owner,
        status=status,
        tasks=tasks,
        gate=gate,
        wake=signals.wake,
    )
    stack.callback(journal.close)
    stack.callback(saver.close)
    saver.loaded(file.size, found.saved_locks)
    store.changes += found.replayed
    engine = Engine(store, journal, found.retries, saver, status=status, tasks=tasks, gate=gate)
    saver.begin(found.superfluous, choice=options.choice)
    store.locks.begin_anew()
    return engine, tasks


def _raise_descriptor_limit() -> None:
    """As many connections as this user may have: libzmq aborts the process at the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS tells of more than it gives
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _data_path(location: str) -> Path:
    if "://" in location:
        raise CannotServe(f"{location} is an endpoint; LOCATION is the file (see --bind)")
    path = Path(os.path.realpath(os.path.expanduser(location)))  # noqa: PTH111 - as the client does
    if not path.name or not is_utf8(os.fspath(path)):
        raise CannotServe(f"cannot serve {str(path)!r}: a location is a file, named in UTF-8")
    if len(os.fsencode(path.name)) > NAME_MAX:
        raise CannotServe(f"cannot serve {path}: its name is over {NAME_MAX} bytes")
    if not path.parent.is_dir():
        raise CannotServe(f"cannot serve {path}: the directory {path.parent} does not exist")
    return path


def _own(path: Path, lock_fd: int | None) -> Ownership:
    try:
        return Ownership(path, lock_fd)
    except AlreadyOwnedError as taken:
        owner = taken.owner
        if owner.get("pid") is None:
            raise CannotServe(f"{path} is being opened by another program just now") from None
        at = " and ".join(owner.get("endpoints", [])) or f"no endpoint yet ({owner.get('state')})"
        raise CannotServe(
            f"{path} is owned by another daemon, pid {owner['pid']}, at {at}"
        ) from None
    except OSError as error:
        raise CannotServe(f"cannot lock {path}: {error.strerror} ({error.filename})") from None


def _leave_terminal() -> None:
    """Whoever started this daemon has read its ready line and keeps none of its descriptors."""
    with Path(os.devnull).open("r+b") as null:
        for standard in (0, 1, 2):
            os.dup2(null.fileno(), standard)
