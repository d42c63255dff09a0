"""What the rooms of the tests share: real daemons, and waiting for events."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import ClassVar

import pytest
import zmq

from pickledbd import clock
from pickledbd.checking import check
from pickledbd.expiry import without
from pickledbd.locks import Locks
from pickledbd.snapshot import texts
from pickledbd_client import PickleDB, RequestTimeout

PROGRAM = (sys.executable, "-m", "pickledbd")

PATIENCE = 60.0
"""Seconds that any wait may take before the test fails; the machine may be busy."""


def wait_until(condition, what, patience=PATIENCE):
    """Wait until `condition()` is true, for what has no event to wait for, and return its value."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {patience} s for {what}"
        time.sleep(0.01)
    return value


def seeded():
    """Chance that can be had again: a test that fails shows what was printed here."""
    seed = random.randrange(2**32)
    print(f"random.Random({seed})", file=sys.stderr)  # noqa: T201
    return random.Random(seed)


class Daemon:
    """A `pickledbd` process of a test's own, serving once it is made."""

    running: ClassVar[list[Daemon]] = []  # ended by a fixture where a test has failed

    def __init__(self, location, *options, wait=True, program=PROGRAM, **popen):
        self.location = Path(location)
        self.process = subprocess.Popen(
            [*program, str(location), *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **popen,
        )
        self.running.append(self)
        self.ready = ""
        if wait:
            self.wait_ready()

    def wait_ready(self):
        assert select.select([self.process.stdout], [], [], PATIENCE)[0], "no ready line"
        self.ready = self.process.stdout.readline()
        assert self.ready.startswith("pickledbd: serving"), self.ready + self.end()[1]
        self.endpoint = self.ready.split(" at ")[-1].split(" and ")[0].strip()

    @property
    def pid(self):
        return self.process.pid

    def client(self, **options):
        return PickleDB(self.location, **{"autostart": False, "timeout": PATIENCE, **options})

    def end(self):
        """Wait for its end; the exit status and what it wrote to stderr."""
        _, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, err

    def stop(self, number=signal.SIGTERM):
        """Stop it as systemd does; what it wrote to stderr. It must have ended well."""
        self.process.send_signal(number)
        status, err = self.end()
        assert status == 0, err
        return err

    def kill(self):
        self.process.kill()
        self.end()

    def check_and_stop(self):
        """Stop it, and check that the file then holds just what the daemon held."""
        with contextlib.closing(self.client()) as db:
            # What others asked and did not wait for is read by and by, while this one is answered
            for _ in range(40):
                db.ping()
            held = db._link.request(raw_dump())
        self.stop()
        on_disk = json.loads(self.location.read_bytes() or b"{}") if self.location.exists() else {}
        assert on_disk == held
        assert list(on_disk) == list(held)
        left = [path.name for path in self.location.parent.glob(self.location.name + ".*")]
        left = [name for name in left if name.endswith(".lock") or ".tmp-" in name]
        assert left == []
        # a journal may be left, for a client that may still repeat a write, but with nothing new
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            status = check(self.location.resolve())
        assert status == 0, said.getvalue()
        assert ", 0 changes that the file does not hold" in said.getvalue()


def run(*args, **options):
    """Run `pickledbd` to its end; status, stdout, stderr."""
    ended = subprocess.run(
        [sys.executable, "-m", "pickledbd", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **options,
    )
    return ended.returncode, ended.stdout, ended.stderr


def left_by(location):
    """The files of a database that has no daemon, without the journals that may stay."""
    journal = re.compile(re.escape(location.name) + r"\.journal\.[1-9][0-9]*")
    return sorted(name for name in os.listdir(location.parent) if not journal.fullmatch(name))


def raw_dump():
    """A dump whose values are left as they are on the wire."""
    from pickledbd_client.calls import Call  # noqa: PLC0415 - only this needs it

    return Call("dump", b"{}", lambda reply: reply.result["items"])


def save_content(file, content):
    """Replace a DataFile by chunks of keys and values, in the steps in which the saver does it."""
    writing = file.write()
    try:
        writing.create()
        for text, _ in texts(without(content)):
            writing.write(text)
        writing.sync(Locks().told(), clock.told())
        writing.publish()
    except BaseException:
        writing.give_up()
        raise


def written(path):
    """What tells whether a file was written or replaced; reading it changes none of this."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode


def owner_pid(location):
    """The pid in the lock file of `location`, or None if nobody holds its lock."""
    with contextlib.suppress(OSError, ValueError), open(f"{location}.lock", "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return json.load(lock).get("pid")
    return None


@contextlib.contextmanager
def answering(endpoint, number, answer):
    """A peer that is no daemon: it greets, and gives others of `number` requests answer(id).

    These are the bodies of messages.
    """
    greeting = {"location": "x", "limits": {"request_bytes": 1000}, "features": [], "now": 10**12}

    def work(router):
        for _ in range(number):
            assert router.poll(PATIENCE * 1000)
            peer, body = router.recv_multipart()
            asked = json.loads(body)
            greets = asked["op"] == "hello"
            reply = json.dumps({"id": asked["id"], "result": greeting})
            for message in [reply] if greets else answer(asked["id"]):
                router.send_multipart([peer, message.encode()])

    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.bind(endpoint)
        thread = threading.Thread(target=work, args=(router,))
        thread.start()
        yield
        thread.join(PATIENCE)


def in_fork(work):
    """Run `work` in a forked child; True if it returned."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - whatever it was, the child ends here
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def on_a_small_disk(folder, size, work):
    """Do `work` where as much as `size` is mounted at `folder`, for this process alone."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    os.makedirs(folder, exist_ok=True)

    def mounted():
        libc = ctypes.CDLL(None, use_errno=True)
        new_namespace = 0x00020000
        assert libc.unshare(new_namespace) == 0, os.strerror(ctypes.get_errno())
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
        work()

    assert in_fork(mounted)


def store_pid(db, key):
    """Store this process's pid under `key` and read it back: work for a process of a pool."""
    db.set(key, os.getpid())
    return db.get(key)


def is_free(db, name="x"):
    """Whether nobody has this lock."""
    try:
        with db.lock(name, timeout=0):
            return True
    except RequestTimeout:
        return False


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # one that has ended and that nobody has waited for yet is not alive
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return not Path("/proc/self").exists()
    return stat.rpartition(")")[2].split()[0] != "Z"
