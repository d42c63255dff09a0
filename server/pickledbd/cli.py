"""The `pickledbd` command: from its arguments to a daemon that serves, and to its exit status.

0: it served, and its data is saved. 1: it could not serve, or not save at its end. 2: usage.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import logging
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from pickledbd import access, config, logs
from pickledbd.checking import check
from pickledbd.counters import Counters
from pickledbd.endpoints import CannotServe, counters_path, is_utf8
from pickledbd.engine import Engine
from pickledbd.journal import Journal
from pickledbd.limits import Limits
from pickledbd.loop import Loop
from pickledbd.notify import EXTEND_SECONDS, Notifier
from pickledbd.ownership import AlreadyOwnedError, Ownership
from pickledbd.recovery import recover
from pickledbd.saver import Gate, Saver
from pickledbd.signals import Signals
from pickledbd.slow import SlowLog
from pickledbd.snapshot import DataFile, Progress, Unreadable, with_progress
from pickledbd.status import Status
from pickledbd.store import Store
from pickledbd.tasks import Tasks
from pickledbd_protocol import SaveFailed

log = logging.getLogger(__name__)

MIB = 2**20

GC_THRESHOLD = 50_000
"""Containers made until the collector looks at them: a batch holds thousands, and no circle."""

SLOWEST_BYTES = 8 * MIB
"""What is read of a file in a second, at the least. One that pickleDB wrote, all on one line, is
read in a single step, of which nobody can tell how far it is."""

NAME_MAX = 255 - len(".journal.1234567.discarded-1234567890123456789")
"""The longest name, in bytes, that leaves room for those of the files beside it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon in the foreground; its exit status."""
    options = config.options(argv)
    notifier = Notifier.from_environment()
    if options.detach:
        if os.fork():
            os._exit(0)  # nothing is open yet; the child belongs to nobody
        os.setsid()
        os.chdir("/")
        notifier = Notifier()  # the other is its starter's, which has its own state to tell
    # A client that starts a daemon hears whether it serves, and why not: nothing else, and later
    # nothing at all
    level = "CRITICAL" if options.detach else options.log_level.upper()
    form = "text" if options.detach else options.log_format
    options.log_format = logs.begin(form, logging.getLevelNamesMapping()[level])
    if not options.detach:
        faulthandler.enable()  # where it was, when the watchdog or libzmq aborts it
    try:
        if options.check:
            return check(_data_path(options.location))
        with contextlib.ExitStack() as stack:
            _serve(options, notifier, stack)
    except (CannotServe, Unreadable, SaveFailed) as error:
        log.critical("%s", error, extra={"event": "failed"})  # the one clear line
        return 1
    except _Stopped:
        return 0  # before it served, so there is nothing to save
    except Exception as error:  # in the form of the log, and with the status that Python has for it
        log.critical("ended by a fault: %r", error, exc_info=error, extra={"event": "fault"})
        return 1
    return 0


class _Stopped(Exception):
    """A signal came while the daemon was starting."""


def _serve(options: argparse.Namespace, notifier: Notifier, stack: contextlib.ExitStack) -> None:
    try:
        engine, loop = _start(options, notifier, stack)
    except OSError as error:
        what = f" ({error.filename})" if error.filename else ""
        raise CannotServe(f"cannot serve {options.location}: {error.strerror}{what}") from None
    try:
        why = loop.run()
        log.info("stopping: %s", why, extra={"event": "stopping", "why": why})
    finally:
        # Also after a fault of the loop's: what was acknowledged is whole, and worth keeping.
        notifier.stopping()
        failure = loop.finish()
    if failure is not None:
        raise failure
    engine.end()


def _start(
    options: argparse.Namespace, notifier: Notifier, stack: contextlib.ExitStack
) -> tuple[Engine, Loop]:
    """Own, load, listen and tell so; `stack` undoes it."""
    signals = Signals()
    _raise_descriptor_limit()
    path = _data_path(options.location)
    owner = _own(path, options.lock_fd)
    stack.callback(owner.release)
    owner.announce({"pid": os.getpid(), "state": "starting"})

    claims = access.claim_all(options, path, stack)
    curve = access.curve(options, claims)
    status = Status(
        location=str(path),
        request_bytes=options.max_request * MIB,
        slow=SlowLog(options.slow_ms),
        limits=Limits.of(options),
    )
    file = DataFile(path, options.backups)
    size = file.on_disk()

    def announce(state: str, **more: object) -> None:
        told = {"pid": os.getpid(), "state": state, **more}
        owner.announce(told)
        for claim in claims:
            claim.announce(told)

    def progress(what: str, done: int) -> None:
        if signals.received:
            raise _Stopped
        announce("loading", bytes=done)
        of = f" of {size / MIB:.0f}" if what == path.name else ""
        notifier.progress(
            f"loading: {what}, {done / MIB:.0f}{of} MiB",
            seconds=EXTEND_SECONDS + size / SLOWEST_BYTES,
        )

    counters = Counters()
    engine, tasks = _recover(
        options,
        file,
        stack,
        owner=owner,
        status=status,
        signals=signals,
        notifier=notifier,
        counters=counters,
        progress=progress,
    )
    loop = Loop(
        engine,
        claims,
        owner=owner,
        status=status,
        signals=signals,
        notifier=notifier,
        tasks=tasks,
        idle_exit=options.idle_exit,
        curve=curve,
    )
    stack.callback(counters.close)
    stack.callback(loop.close)
    shared = [claim.endpoint for claim in claims if claim.is_shared]
    endpoints = shared or [claim.endpoint for claim in claims]
    counters.share(
        lambda: counters_path(endpoints, private=not shared),
        sweep=not shared,
        group=access.group(options),
    )
    # What is there now stays: the collector need not look through it again and again
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    status.endpoints = loop.bind()
    announce("serving", endpoints=status.endpoints)
    _tell_ready(status, engine.keys, options.log_format)
    if options.detach:
        _leave_terminal()
    notifier.ready(engine.status)
    return engine, loop


def _tell_ready(status: Status, keys: int, log_format: str) -> None:
    """By a line on stdout; and in a log for programs, instead where stdout is that log."""
    line = f"serving {status.location} ({keys} keys) at {' and '.join(status.endpoints)}"
    if log_format != "text":
        told = {"path": status.location, "endpoints": status.endpoints, "keys": keys}
        log.info("%s", line, extra={"event": "serving", **told})
    if not (log_format == "journal" and logs.is_journal(sys.stdout)):
        with contextlib.suppress(OSError):  # whoever would have read it has gone
            print(f"pickledbd: {line}", flush=True)  # noqa: T201 - the ready line


def _recover(
    options: argparse.Namespace,
    file: DataFile,
    stack: contextlib.ExitStack,
    *,
    owner: Ownership,
    status: Status,
    signals: Signals,
    notifier: Notifier,
    counters: Counters,
    progress: Progress,
) -> tuple[Engine, Tasks]:
    """An engine with what the data file and its journals hold."""
    file.sweep()
    found = recover(file, choice=options.choice, progress=progress)
    for warning in found.warnings:
        log.warning("%s", warning, extra={"event": "recovery"})
    longest = max(found.steps, key=lambda step: found.steps[step])
    log.info(
        "loaded %s: %d keys, %d changes from the journal; the longest step was %s, %.3f s",
        file.path,
        len(found.table),
        found.replayed,
        longest,
        found.steps[longest],
        extra={
            "event": "loaded",
            "path": str(file.path),
            "keys": len(found.table),
            "replayed": found.replayed,
            "seconds": round(sum(found.steps.values()), 6),
        },
    )
    expiring = with_progress(found.expiring, file.size, lambda done: progress(file.path.name, done))
    store = Store(found.table, counters, found.locks, expiring=expiring)
    exceeded = status.limits.exceeded_by(store.size)
    if exceeded is not None:
        told = {"event": "limit_exceeded", "path": str(file.path)}
        log.warning("%s: %s", file.path, exceeded, extra=told)
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
        interval=options.save_interval,
    )
    stack.callback(journal.close)
    stack.callback(saver.close)
    saver.loaded(file.size, found.saved_locks)
    store.changes += found.replayed
    engine = Engine(store, journal, found.retries, saver, status=status, tasks=tasks, gate=gate)
    saver.begin(
        found.superfluous,
        choice=options.choice,
        progress=lambda: notifier.progress(f"loading: {saver.told}"),
    )
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
