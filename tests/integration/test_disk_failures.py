"""A disk that fails: each syscall of a save, an append and a start in turn, once and for good.

strace makes a syscall of one of the daemon's threads fail. Which ones there are is recorded first,
so a new one is tried from the day it is there. What a kill -9 would leave at that moment is copied
while the daemon is stopped, and is read by the code that a start reads it with.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from pickledbd.checking import check
from pickledbd.recovery import recover
from pickledbd.snapshot import DataFile
from pickledbd_client import PickleDB, SaveFailed, Unavailable, WritesRefused
from support import PATIENCE, Daemon, on_a_small_disk, wait_until

ERRORS = {name: os.strerror(getattr(errno, name)) for name in ("EIO", "ENOSPC")}

TIDY_SECONDS = 5.0

MODES = ("save", "journal", "fsync")


@pytest.fixture(scope="session")
def _strace():
    """Skip where processes cannot be traced."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        try:
            Trace([sleeper.pid], Path(os.devnull), "-e", "trace=none").end()
        except AssertionError as refused:
            pytest.skip(f"strace may not attach to processes here: {refused}")
        finally:
            sleeper.kill()


needs_strace = pytest.mark.usefixtures("_strace")


class Trace:
    """strace at work on some threads. `end` leaves them as they were."""

    def __init__(self, threads, log, *options):
        self.log = log
        self._process = subprocess.Popen(
            ["strace", "-y", "-s", "100000", "-o", log, *options]
            + [f"--attach={thread}" for thread in threads],
            stderr=subprocess.PIPE,
        )
        said = b""
        while said.count(b" attached") < len(threads):
            assert select.select([self._process.stderr], [], [], PATIENCE)[0]
            more = os.read(self._process.stderr.fileno(), 4096)
            said += more
            if not more:
                self.end()
                raise AssertionError(said.decode())

    @property
    def text(self):
        return self.log.read_text(errors="replace")

    @property
    def hits(self):
        """How many syscalls it has made fail."""
        return self.text.count("(INJECTED)")

    def end(self):
        self._process.terminate()
        self._process.communicate(timeout=PATIENCE)


@dataclass(frozen=True)
class Step:
    """A syscall on one of the daemon's files."""

    thread: str
    call: str
    nth: int
    """Of the calls of this name in this thread, in the loop's only of those on its files."""
    on: str
    decides: bool
    """Whether a save cannot have succeeded without it."""
    is_early: bool
    """Whether the data file is not replaced yet when it has failed."""

    def __str__(self):
        return f"{self.call} {self.nth} of the {self.thread} thread, on the {self.on}"


def what_is_touched(line):
    for mark, name in (
        (".lock", "lock file"),
        (".tmp-", "temporary file"),
        (".backup-", "backup"),
        (".journal.", "journal"),
        ("my.db", "data file"),
    ):
        if mark in line:
            return name
    return "directory"


class Sufferer:
    """A daemon whose disk fails, and all that it acknowledged."""

    def __init__(self, location, mode, *options):
        self.location = location
        self.mode = mode
        self.options = ("--durability", mode, *options)
        self.backups = int(options[options.index("--backups") + 1]) if options else 0
        self.daemon = Daemon(location, *self.options)
        self.db = self.daemon.client()
        self.truth = {}
        self.saved = 0
        """How many of its keys a save that succeeded had before it."""
        self._names = itertools.count()
        self._copies = itertools.count()
        for _ in range(3):  # three parts of a save
            self.write("x" * 2**18)
        self.db.save()
        self.threads = {"loop": self.daemon.pid}
        self.recorded("snapshot", self.save)
        if mode == "journal":
            self.recorded("journal", self.write_and_await_its_sync)

    # What it is asked

    def write(self, value=1):
        key = f"key {next(self._names)}"
        self.db.set(key, value)
        self.truth[key] = value

    def save(self):
        told = len(self.truth)
        self.db.save()
        self.saved = told

    def write_and_await_its_sync(self):
        self.write()
        journal = f"{self.location}.journal."
        wait_until(lambda: re.search(rf"fdatasync\(\d+<{journal}", self.trace.text), "a sync")

    def refused_write(self):
        with pytest.raises(WritesRefused):
            self.write()

    def works_again(self):
        """Wait until it writes and saves; it must do so by itself."""

        def works():
            with contextlib.suppress(SaveFailed, WritesRefused):
                self.write()
                self.save()
                return True

        wait_until(works, "the daemon to be well again")
        info = self.db.info()
        assert (info["last_save_status"], info["last_save_error"]) == ("ok", None)
        assert info["writes_refused"] is None

    # Its syscalls

    def log(self):
        return self.location.parent / f"strace-{next(self._copies)}"

    def loops_files(self):
        """Only on these may the loop's calls fail: libzmq needs others to talk to itself."""
        number = max(self.journals(), default=0)
        paths = [f"{self.location}.journal.{n}" for n in range(number, number + 30)]
        return [f"--trace-path={path}" for path in (*paths, f"{self.location}.lock")]

    def recorded(self, thread, work, also=None):
        """The steps that `thread` makes while `work` is done, and `also` fails."""
        self.works_again()
        self.write()
        log = self.log()
        options = ["-e", "trace=%file,%desc"]
        if also is None:
            self.trace = Trace([self.daemon.pid], log, "-f", *options)
        else:  # nobody can trace the other threads too
            self.trace = Trace([self.threads[thread]], log, *options)
            fault = self.failing(also, "EIO", lasting=False)
        try:
            work()
            if also is not None:
                wait_until(lambda: not self.db.info()["writes_refused"], "writes to be accepted")
            self.quiet()
        finally:
            self.trace.end()
            if also is not None:
                fault.end()
        ours = os.fspath(self.location.parent)
        lines = re.findall(r"^(\d*) *(\w+)\((.*)", self.trace.text, re.MULTILINE)
        if also is not None:
            lines = [(str(self.threads[thread]), call, rest) for _, call, rest in lines]
        if thread not in self.threads:
            mark = ".tmp-" if thread == "snapshot" else ".journal."
            others = {str(tid) for tid in self.threads.values()}
            found = [t for t, _, rest in lines if mark in rest and t not in others]
            self.threads[thread] = int(found[0])
        return self.steps_of(thread, lines, ours)

    def steps_of(self, thread, lines, ours):
        steps, counts = [], {}
        renamed = decided = False
        for tid, call, rest in lines:
            is_ours = ours in rest
            assert int(tid) in self.threads.values() or not is_ours, "a thread that is not tried"
            on = what_is_touched(rest)
            fails = is_ours and on in ("journal", "lock file") if thread == "loop" else True
            if tid == str(self.threads[thread]) and fails:
                counts[call] = counts.get(call, 0) + 1
                if is_ours:
                    decides = not decided and call in DECIDING
                    steps.append(Step(thread, call, counts[call], on, decides, not renamed))
            renamed = renamed or call == "rename"
            decided = decided or (renamed and is_ours and call == "fsync")
        return steps

    def failing(self, step, error, *, lasting):
        when = f"{step.nth}{'+' if lasting else ''}"
        options = ["-e", f"inject={step.call}:error={error}:when={when}"]
        if step.thread == "loop":
            options += self.loops_files()
        return Trace([self.threads[step.thread]], self.log(), "-e", f"trace={step.call}", *options)

    # What must hold

    def journals(self):
        names = re.findall(r"my\.db\.journal\.(\d+)", " ".join(os.listdir(self.location.parent)))
        return sorted(map(int, names))

    def quiet(self):
        wait_until(lambda: not self.db.info()["saving"], "the save to end")

    def serves_reads(self):
        assert self.db.all() == list(self.truth)
        key = next(reversed(self.truth))
        assert self.db.get(key) == self.truth[key]
        assert len(self.db) == len(self.truth)

    def tidy(self):
        """No temporary file stays, nor any journal or backup beyond those that are needed."""

        def too_many():
            names = os.listdir(self.location.parent)
            temporary = [name for name in names if ".tmp-" in name]
            backups = [name for name in names if ".backup-" in name]
            return temporary + backups[self.backups :] + self.journals()[2:]

        try:
            wait_until(lambda: not too_many(), "the leftovers to be gone", TIDY_SECONDS)
        except AssertionError:
            pytest.fail(f"it leaves {too_many()}")

    def killed_now(self, *, whole=True):
        """What kill -9 would leave at this moment: the data file's bytes and the content.

        `whole`: whether there must be nothing to cut.
        """
        copy = self.location.parent / f"copy-{next(self._copies)}"
        copy.mkdir()
        os.kill(self.daemon.pid, signal.SIGSTOP)
        tasks = Path(f"/proc/{self.daemon.pid}/task")

        def stopped():
            states = [(task / "stat").read_text().rpartition(")")[2] for task in tasks.iterdir()]
            return all(state.split()[0] in "Tt" for state in states)

        try:
            wait_until(stopped, "the daemon to stand still")
            for path in self.location.parent.glob("my.db*"):
                if path.suffix != ".lock":
                    shutil.copy2(path, copy)
        finally:
            os.kill(self.daemon.pid, signal.SIGCONT)
        data = copy / "my.db"
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert check(data) == (not whole), said.getvalue()
        content = {}
        for keys, values in recover(DataFile(data)).table.view():
            content.update(zip(keys, map(json.loads, values), strict=True))
        found = data.read_bytes()
        shutil.rmtree(copy)
        return found, content

    def loses_nothing(self):
        """Whatever failed: if it were killed now, nothing would be lost and nothing invented."""
        data, content = self.killed_now()
        truth = list(self.truth.items())
        on_disk = list(json.loads(data).items())
        assert on_disk == truth[: len(on_disk)]
        assert len(on_disk) >= self.saved
        assert list(content.items()) == (on_disk if self.mode == "save" else truth)

    def tells_the_truth(self, error, failed, refused):
        """An error names what failed, and info() tells it until a save succeeds."""
        if failed:
            assert ERRORS[error] in str(failed)
            assert f"cannot save {self.location}: " in str(failed)
            info = self.db.info()
            tried_again = info["saving"] or info["last_save_status"] == "ok"
            assert tried_again or info["last_save_error"] == str(failed)
            assert not (tried_again and self.mode == "save")
        if refused:
            assert self.mode != "save"
            assert re.search(r"refused, reads go on: .* failed: ", str(refused))

    def suffer(self, step, error, *, lasting, work, also=None):
        """Have `step` of `work` fail, and see to it that all goes well nevertheless.

        `also`: a further step that fails once.
        """
        self.works_again()
        self.write()
        before = self.location.read_bytes()
        save_time = self.db.info()["last_save_time"]
        traces = [self.failing(step, error, lasting=lasting)]
        if also is not None:
            traces.append(self.failing(also, "EIO", lasting=False))
        try:
            failed = refused = None
            try:
                work()
            except SaveFailed as raised:
                failed = raised
            except WritesRefused as raised:
                refused = raised
            wait_until(lambda: traces[0].hits, "the fault")
            self.serves_reads()
            self.tells_the_truth(error, failed, refused)
            assert failed or work != self.save or not step.decides
            self.loses_nothing()
            was_saved = self.db.info()["last_save_time"] != save_time
            assert (
                was_saved or not (failed and step.is_early) or self.location.read_bytes() == before
            )
            if not lasting:
                self.works_again()
            # whether they are accepted or not, info() tells it and it is true
            with contextlib.suppress(WritesRefused):
                self.write()
            self.loses_nothing()
            if not (lasting and (step.call == "unlink" or step.on == "directory")):
                self.quiet()
                self.tidy()
        finally:
            for trace in traces:
                trace.end()
        self.works_again()
        assert retried_syncs(traces[0].text) == []

    def end(self):
        """Kill it; another one holds the same and leaves nothing behind."""
        self.works_again()
        self.write()
        if self.mode == "save":
            self.save()
        self.daemon.kill()
        self.daemon = Daemon(self.location, *self.options)
        with contextlib.closing(self.daemon.client()) as db:
            assert list(db.db.items()) == list(self.truth.items())
        self.daemon.check_and_stop()
        self.tidy()
        assert len(self.journals()) <= 1  # with the answers that a client may still ask for


DECIDING = {"openat", "write", "fsync", "fdatasync", "link", "rename"}


def retried_syncs(log):
    """Syncs that succeeded after one had failed on the same file, which then tells nothing."""
    failed, retried = set(), []
    for path, answer in re.findall(r"f(?:data)?sync\(\d+<([^>]*my\.db\.[^>]*)>\) += (.*)", log):
        if answer.startswith("-1"):
            failed.add(path)
        elif path in failed:
            retried.append(path)
    return retried


def suffer_all(cases, every, first):
    """Try each, or every so many of them, and tell of all that fail."""
    faults = []
    for sufferer, step, error, lasting, more in cases[first % every :: every]:
        try:
            sufferer.suffer(step, error, lasting=lasting, **more)
        except AssertionError as fault:
            how = "for good" if lasting else "once"
            faults.append(f"{step}, {error} {how}: {fault}")
            raise AssertionError("\n".join(faults)) from fault


def kinds(steps):
    return [
        (step, error, lasting) for step in steps for lasting in (False, True) for error in ERRORS
    ]


def a_save_suffers(location, mode, backups, every):
    sufferer = Sufferer(location, mode, "--backups", backups)
    steps = [
        step for thread in ("loop", "snapshot") for step in sufferer.recorded(thread, sufferer.save)
    ]
    tried = {(step.call, step.on) for step in steps}
    assert tried >= {
        ("openat", "temporary file"),
        ("write", "temporary file"),
        ("fsync", "temporary file"),
        ("rename", "temporary file"),
        ("fsync", "directory"),
        ("write", "journal"),
        ("unlink", "journal"),
    }
    assert not backups or ("link", "backup") in tried
    cases = [(sufferer, *kind, {"work": sufferer.save}) for kind in kinds(steps)]
    suffer_all(cases, every, MODES.index(mode) + backups)
    sufferer.end()


@needs_strace
@pytest.mark.parametrize(("mode", "backups"), [("save", 0), ("journal", 2), ("fsync", 0)])
def test_a_save_survives_each_failing_syscall(location, mode, backups):
    a_save_suffers(location, mode, backups, every=23)


@needs_strace
@pytest.mark.long
@pytest.mark.parametrize("backups", [0, 2])
@pytest.mark.parametrize("mode", MODES)
def test_a_save_survives_each_failing_syscall_of_all(location, mode, backups):
    a_save_suffers(location, mode, backups, every=1)


# Appends


def appending(location, mode, *options):
    """A sufferer, and each step of an append (and in mode journal of its sync) with its work."""
    sufferer = Sufferer(location, mode, *options)
    steps = [(step, sufferer.write) for step in sufferer.recorded("loop", sufferer.write)]
    if mode == "journal":
        recorded = sufferer.recorded("journal", sufferer.write_and_await_its_sync)
        steps += [(step, sufferer.write) for step in recorded]
    tried = {step.call for step, _ in steps}
    assert tried >= {"write", "fdatasync"}
    return sufferer, steps


def an_append_suffers(location, mode, every):
    sufferer, steps = appending(location, mode)
    cases = [(sufferer, *kind, {"work": work}) for step, work in steps for kind in kinds([step])]
    suffer_all(cases, every, 0)
    # and each step of the save that is to begin a new journal, beside the one that failed
    also = steps[0][0]
    recovering = sufferer.recorded("snapshot", sufferer.refused_write, also)
    assert {step.call for step in recovering} >= {"write", "fsync", "fdatasync", "rename"}
    cases = [
        (sufferer, *kind, {"work": sufferer.refused_write, "also": also})
        for kind in kinds(recovering)
    ]
    suffer_all(cases, max(1, 4 * (every - 1)), 5)
    sufferer.end()


@needs_strace
@pytest.mark.parametrize("mode", MODES[1:])
def test_an_append_survives_each_failing_syscall(location, mode):
    an_append_suffers(location, mode, every=6)


@needs_strace
@pytest.mark.long
@pytest.mark.parametrize("mode", MODES[1:])
def test_an_append_survives_each_failing_syscall_of_all(location, mode):
    an_append_suffers(location, mode, every=1)


@needs_strace
@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_sync_that_failed_is_never_tried_again(location, mode, lasting):
    """Every sync of every thread fails: the first of each, or all."""
    sufferer = Sufferer(location, mode)
    calls = "fsync,fdatasync"
    when = "1+" if lasting else "1"
    inject = f"inject={calls}:error=EIO:when={when}"
    trace = Trace([sufferer.daemon.pid], sufferer.log(), "-f", "-e", f"trace={calls}", "-e", inject)
    try:
        refused = 0

        def tried(trace=trace):
            nonlocal refused
            try:
                sufferer.write()
                sufferer.save()
            except (SaveFailed, WritesRefused):
                refused += 1
            return refused >= 5 and trace.hits >= 3 if lasting else trace.hits >= 1

        wait_until(tried, "several syncs to fail")
        if not lasting:
            sufferer.works_again()
        sufferer.serves_reads()
        sufferer.loses_nothing()
    finally:
        trace.end()
    assert retried_syncs(trace.text) == []
    sufferer.works_again()
    sufferer.end()


def a_bad_disk_is_borne(location, mode, attempts):
    sufferer = Sufferer(location, mode, "--backups", "1")
    log = sufferer.log()
    calls = "openat,write,fsync,fdatasync,rename,link,fchmod"
    workers = Trace(
        [tid for name, tid in sufferer.threads.items() if name != "loop"],
        log,
        "-e",
        f"trace={calls}",
        "-e",
        f"inject={calls}:error=EIO",
    )
    loop = Trace(
        [sufferer.daemon.pid],
        sufferer.log(),
        *("-e", "trace=write,fdatasync"),
        *("-e", "inject=write,fdatasync:error=EIO"),
        *sufferer.loops_files(),
    )
    try:
        with pytest.raises(WritesRefused):
            sufferer.write()

        def refused():
            with pytest.raises(WritesRefused, match="Input/output error"):
                sufferer.write()
            sufferer.serves_reads()
            return workers.hits >= attempts

        wait_until(refused, "further attempts to save")
        info = sufferer.db.info()
        assert info["last_save_status"] == "failed"
        assert "Input/output error" in info["last_save_error"]
        assert "Input/output error" in info["writes_refused"]
        with pytest.raises(SaveFailed, match="Input/output error"):
            sufferer.save()
        sufferer.loses_nothing()
        sufferer.tidy()
    finally:
        workers.end()
        loop.end()
    sufferer.works_again()
    sufferer.end()


@needs_strace
def test_a_disk_that_stays_bad_is_tried_now_and_then_and_nothing_piles_up(location):
    a_bad_disk_is_borne(location, "fsync", attempts=2)


@needs_strace
@pytest.mark.long
def test_a_disk_that_stays_bad_for_a_minute_is_tried_and_nothing_piles_up(location):
    a_bad_disk_is_borne(location, "journal", attempts=6)


# What was refused leaves no trace


def failing_once(sufferer, call="write"):
    return Trace(
        [sufferer.daemon.pid],
        sufferer.log(),
        *("-e", f"trace={call}"),
        *("-e", f"inject={call}:error=ENOSPC:when=1"),
        *sufferer.loops_files(),
    )


LARGE = {f"large {n}": n for n in range(3000)}
SEVERAL_PARTS = {f"part {n}": "x" * 2000 for n in range(3000)}

WRITES = {
    "a new key": lambda db: db.set("new", 1),
    "an old key": lambda db: db.set("key 1", "another"),
    "setdefault": lambda db: db.setdefault("new", 1),
    "remove": lambda db: db.remove("key 1"),
    "pop": lambda db: db.pop("key 0"),
    "popitem": lambda db: db.popitem(),
    "purge": lambda db: db.purge(),
    "remove_many": lambda db: db.remove_many(["key 3", "key 1", "no such"]),
    "update": lambda db: db.update({"key 2": 2, "new": 1, "key 0": 0}),
    "set_many of many": lambda db: db.set_many(LARGE),
    "set_many in parts": lambda db: db.set_many(SEVERAL_PARTS),
    "replace": lambda db: setattr(db, "db", {"key 2": 2, "new": 1}),
    "replace by many": lambda db: setattr(db, "db", LARGE),
    "replace in parts": lambda db: setattr(db, "db", SEVERAL_PARTS),
}


@needs_strace
@pytest.mark.parametrize(("mode", "call"), [("journal", "write"), ("fsync", "fdatasync")])
def test_a_write_that_is_refused_leaves_no_trace(location, mode, call):
    sufferer = Sufferer(location, mode)
    for name, write in WRITES.items():
        sufferer.works_again()
        trace = failing_once(sufferer, call)
        try:
            dirty = sufferer.db.info()["dirty"]
            with pytest.raises(WritesRefused):
                write(sufferer.db)
            assert list(sufferer.db.db.items()) == list(sufferer.truth.items()), name
            assert sufferer.db.info()["dirty"] <= dirty, name
            assert trace.hits == 1
            sufferer.loses_nothing()
        finally:
            trace.end()
    sufferer.end()


@needs_strace
def test_a_last_write_that_fails_undoes_a_batch_whose_parts_were_appended(location):
    sufferer = Sufferer(location, "journal")
    for nth in (2, 5):
        sufferer.works_again()
        trace = Trace(
            [sufferer.daemon.pid],
            sufferer.log(),
            *("-e", "trace=write", "-e", f"inject=write:error=EIO:when={nth}"),
            *sufferer.loops_files(),
        )
        try:
            with pytest.raises(WritesRefused):
                sufferer.db.set_many(LARGE)
            sufferer.serves_reads()
            sufferer.loses_nothing()
        finally:
            trace.end()
    sufferer.end()


@needs_strace
def test_writes_of_several_clients_that_share_a_failing_append_are_all_refused(location):
    sufferer = Sufferer(location, "journal")
    answers = {}

    def ask(name, work):
        with contextlib.closing(sufferer.daemon.client()) as db:
            db.ping()
            ready.wait(PATIENCE)
            begin.wait(PATIENCE)
            try:
                answers[name] = work(db)
            except WritesRefused as refused:
                answers[name] = refused

    def shared():
        sufferer.works_again()
        works = {f"set {n}": lambda db, n=n: db.set(f"shared {n}", n) for n in range(6)}
        works["remove"] = lambda db: db.remove("key 1")
        works["popitem"] = lambda db: db.popitem()
        works["get"] = lambda db: [db.get(f"shared {n}") for n in range(6)]
        answers.clear()
        ready.reset()
        begin.clear()
        threads = [threading.Thread(target=ask, args=item) for item in works.items()]
        for thread in threads:
            thread.start()
        ready.wait(PATIENCE)
        # All it is asked while it stands still arrives at once
        trace = Trace(
            [sufferer.daemon.pid],
            sufferer.log(),
            *("-e", "trace=write", "-e", "inject=write:error=EIO:when=1"),
            *("-e", "inject=fdatasync:error=EIO"),
            *sufferer.loops_files(),
        )
        os.kill(sufferer.daemon.pid, signal.SIGSTOP)
        begin.set()
        poll = select.poll()
        poll.poll(100)
        os.kill(sufferer.daemon.pid, signal.SIGCONT)
        for thread in threads:
            thread.join(PATIENCE)
        trace.end()
        appended = trace.text.partition("(INJECTED)")[0].count('\\"client\\"')
        held = sufferer.db.db
        refused = [name for name, answer in answers.items() if isinstance(answer, WritesRefused)]
        assert len(refused) >= appended
        for n in range(6):
            assert (f"shared {n}" in held) == (f"set {n}" not in refused)
        sufferer.truth = held  # what was not in that turn was accepted, or refused, truly
        sufferer.loses_nothing()
        return appended >= 3 and "get" not in refused

    ready, begin = threading.Barrier(10), threading.Event()
    wait_until(shared, "several writes in one append")
    sufferer.end()


# What can be neither made durable nor undone


@needs_strace
def test_a_write_that_can_be_neither_synced_nor_cut_is_told_to_be_in_doubt(location):
    sufferer = Sufferer(location, "fsync")
    sufferer.works_again()
    trace = Trace(
        [sufferer.daemon.pid],
        sufferer.log(),
        *("-e", "trace=fdatasync,ftruncate,write"),
        *("-e", "inject=fdatasync,ftruncate:error=EIO"),
        *sufferer.loops_files(),
    )
    try:
        for write in (lambda: sufferer.db.set("doubtful", 1), lambda: sufferer.db.set_many(LARGE)):
            with pytest.raises(Unavailable, match="could not be undone") as raised:
                write()
            assert not raised.value.outcome_known
            sufferer.serves_reads()
            wait_until(lambda: not sufferer.db.info()["writes_refused"], "a new journal")
        # Once a save has succeeded it is certain
        sufferer.serves_reads()
        _, content = sufferer.killed_now()
        assert list(content.items()) == list(sufferer.truth.items())
    finally:
        trace.end()
    sufferer.end()


@needs_strace
def test_a_record_that_was_written_in_part_and_cannot_be_cut_is_no_damage(location):
    sufferer = Sufferer(location, "journal")
    sufferer.works_again()
    journal = f"{location}.journal.{sufferer.journals()[-1]}"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    trace = Trace(
        [sufferer.daemon.pid],
        sufferer.log(),
        *("-e", "trace=ftruncate", "-e", "inject=ftruncate:error=EIO"),
        *sufferer.loops_files(),
    )
    try:
        limit = os.stat(journal).st_size + 500
        resource.prlimit(sufferer.daemon.pid, resource.RLIMIT_FSIZE, (limit, limits[1]))
        with pytest.raises(Unavailable, match="File too large"):
            sufferer.db.set("large", "x" * 1000)
        assert os.stat(journal).st_size == limit
        sufferer.serves_reads()
        _, content = sufferer.killed_now(whole=False)
        assert list(content.items()) == list(sufferer.truth.items())
    finally:
        resource.prlimit(sufferer.daemon.pid, resource.RLIMIT_FSIZE, limits)
        trace.end()
    sufferer.end()


# A limit, and a disk that is full


@pytest.mark.parametrize("mode", MODES)
def test_a_limit_of_the_files_size_is_borne_until_it_is_raised(location, mode):
    sufferer = Sufferer(location, mode)
    sufferer.works_again()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.prlimit(sufferer.daemon.pid, resource.RLIMIT_FSIZE, (2**16, limits[1]))

    def refused():
        try:
            sufferer.write("x" * 1000)
        except WritesRefused as error:
            assert "File too large" in str(error)  # noqa: PT017 - most succeed
            return True
        return mode == "save" and len(sufferer.truth) > 100

    wait_until(refused, "the journal to be too large")
    with pytest.raises(SaveFailed, match="File too large"):
        sufferer.save()
    sufferer.serves_reads()
    assert sufferer.db.info()["last_save_status"] == "failed"
    sufferer.loses_nothing()
    sufferer.quiet()
    sufferer.tidy()
    resource.prlimit(sufferer.daemon.pid, resource.RLIMIT_FSIZE, limits)
    sufferer.works_again()
    sufferer.end()


@pytest.mark.parametrize("mode", MODES)
def test_a_full_disk_is_borne_until_there_is_room(location, mode):
    disk = location.with_name("disk")

    def work():
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(40 * 1024))
        daemon = Daemon(disk / "my.db", "--durability", mode)
        truth = {}
        with contextlib.closing(daemon.client()) as db:
            refused = False
            try:
                for number in range(100):
                    db.set(f"key {number}", "x" * 1000)
                    truth[f"key {number}"] = "x" * 1000
            except WritesRefused as error:
                refused = "No space left" in str(error)
            assert refused == (mode != "save")
            for write in (db.purge, lambda: db.remove("key 0")) if refused else ():
                with pytest.raises(WritesRefused):
                    write()
            with pytest.raises(SaveFailed, match="No space left"):
                db.save()
            assert list(db.db.items()) == list(truth.items())
            assert db.info()["last_save_status"] == "failed"
            assert not list(disk.glob("*.tmp-*"))
            ballast.unlink()
            while mode == "save" and len(truth) > 10:
                del truth[db.popitem()[0]]

            def accepted():
                with contextlib.suppress(WritesRefused, SaveFailed):
                    return db.set("last", 1) and db.save()

            wait_until(accepted, "writes to be accepted")
            truth["last"] = 1
            daemon.kill()
        daemon = Daemon(disk / "my.db", "--durability", mode)
        with contextlib.closing(daemon.client()) as db:
            assert list(db.db.items()) == list(truth.items())
        daemon.check_and_stop()

    on_a_small_disk(disk, "64k", work)


def test_a_start_on_a_full_or_read_only_disk_says_one_line_or_serves(location):
    disk = location.with_name("disk")

    def work():
        path = disk / "my.db"
        path.write_bytes(b'{"a": 1}')
        filler = (disk / "filler").open("wb", buffering=0)
        with contextlib.suppress(OSError):
            while True:
                filler.write(bytes(1024))
        is_told(Daemon(path, wait=False), "No space left on device")
        # Room for the lock file, and for nothing else
        filler.truncate(os.fstat(filler.fileno()).st_size - 4096)
        daemon = Daemon(path)
        with contextlib.closing(daemon.client()) as db:
            assert db.db == {"a": 1}
            with pytest.raises(WritesRefused, match="No space left"):
                db.set("b", 2)
            filler.truncate(0)

            def accepted():
                with contextlib.suppress(WritesRefused):
                    return db.set("b", 2)

            wait_until(accepted, "writes to be accepted")
        daemon.check_and_stop()
        filler.close()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        is_told(Daemon(path, wait=False), "Read-only file system")
        assert json.loads(path.read_bytes()) == {"a": 1, "b": 2}

    def is_told(daemon, why):
        status, err = daemon.end()
        assert (status, len(err.splitlines())) == (1, 1), err
        assert err.startswith("pickledbd: cannot ")
        assert why in err

    on_a_small_disk(disk, "64k", work)


# Starts


class Start:
    """Starts of a daemon on copies of one place, where a killed one has left much to do."""

    def __init__(self, location):
        self.source = location.parent / "left"
        self.source.mkdir()
        self.path = location.parent / "start" / "my.db"
        daemon = Daemon(self.source / "my.db")
        with contextlib.closing(daemon.client()) as db:
            db.update({f"key {n}": n for n in range(10)})
            db.save()
            db.remove("key 3")
            db.set("key 11", 11)
            self.truth = dict(db.db)
        daemon.kill()
        # A leftover of each kind: a record that was torn, a journal that is not needed, a save
        [journal] = self.source.glob("*.journal.*")
        shutil.copy(journal, self.source / "my.db.journal.1")
        with journal.open("ab") as file:
            file.write(b"000000")
        (self.source / "my.db.tmp-01234567").touch()

    def traced(self, log, *options):
        """A daemon that is traced from its first moment."""
        shutil.rmtree(self.path.parent, ignore_errors=True)
        shutil.copytree(self.source, self.path.parent)
        beside = ["", ".lock", *(f".journal.{n}" for n in range(1, 6)), ".tmp-01234567"]
        paths = [self.path.parent, *(f"{self.path}{end}" for end in beside)]
        command = ["strace", "-f", "-y", "-o", log, *options]
        command += [f"--trace-path={path}" for path in paths]

        def be_traced():
            if os.fork() == 0:
                nothing = os.open(os.devnull, os.O_RDWR)
                for standard in (0, 1, 2):
                    os.dup2(nothing, standard)
                os.execvp("strace", [*map(str, command), f"--attach={os.getppid()}"])
            while "TracerPid:\t0\n" in Path("/proc/self/status").read_text():
                os.sched_yield()

        return Daemon(self.path, wait=False, preexec_fn=be_traced)

    def steps(self, log):
        """The calls on its files, each with its number among those of its name."""
        daemon = self.traced(log, "-e", "trace=%file,%desc")
        daemon.wait_ready()
        counts = {}
        found = []
        for call in re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE):
            counts[call] = counts.get(call, 0) + 1
            found.append((call, counts[call]))
        daemon.kill()
        return found

    def suffer(self, call, when, error, log):
        inject = f"inject={call}:error={error}:when={when}"
        daemon = self.traced(log, "-e", f"trace={call}", "-e", inject)
        assert select.select([daemon.process.stdout], [], [], PATIENCE)[0]
        ready = daemon.process.stdout.readline()
        if ready:
            endpoint = ready.rpartition(" at ")[2].strip()
            with contextlib.closing(PickleDB(endpoint, timeout=PATIENCE)) as db:
                assert list(db.db.items()) == list(self.truth.items())
                with contextlib.suppress(WritesRefused):
                    db.set("key 12", 12)
                    self.truth["key 12"] = 12
                assert list(db.db.items()) == list(self.truth.items())
            daemon.kill()
        else:
            status, err = daemon.end()
            assert status == 1
            assert err.splitlines()[-1].startswith("pickledbd: ")
            assert os.strerror(getattr(errno, error)) in err
            assert "Traceback" not in err
        assert "(INJECTED)" in log.read_text()
        found = recover(DataFile(self.path)).table.view()
        content = {}
        for keys, values in found:
            content.update(zip(keys, map(json.loads, values), strict=True))
        assert list(content.items()) == list(self.truth.items())
        self.truth.pop("key 12", None)


def a_start_suffers(location, every):
    start = Start(location)
    steps = start.steps(location.parent / "recorded")
    assert {call for call, _ in steps} >= {"openat", "read", "ftruncate", "pwrite64", "unlink"}
    cases = [
        (call, f"{nth}{last}", error)
        for call, nth in steps
        for last in ("", "+")
        for error in ERRORS
    ]
    for number, case in enumerate(cases[::every]):
        try:
            start.suffer(*case, location.parent / f"strace-{number}")
        except AssertionError as fault:
            raise AssertionError(f"{case}: {fault}") from fault


@needs_strace
def test_a_start_tells_each_failing_syscall_or_serves_all_there_is(location):
    a_start_suffers(location, every=29)


@needs_strace
@pytest.mark.long
def test_a_start_tells_each_failing_syscall_of_all_or_serves_all_there_is(location):
    a_start_suffers(location, every=1)
