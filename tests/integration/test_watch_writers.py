"""A watcher behind writers at full speed: each key's history, in order and complete.

The writers are processes. Each has keys that it alone sets, to growing numbers, and there are keys
that all of them count up together. So every change tells whether one before it is missing, came
twice, or has changed places with another.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter

import pytest

from pickledbd_client import Change, Resync
from support import PATIENCE, Daemon, wait_until
from watching import KINDS, Mirror, Told

WRITERS = 4
OWN, MANY, SHARED = 5, 20, 3

WRITER = """
import select, sys, time
from pickledbd_client import PickleDB

number, location, own, many, shared = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
db = PickleDB(location, autostart=False, timeout=60)
print("ready", flush=True)
sys.stdin.readline()
n = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    n += 1
    for key in range(own):
        db.set(f"w:own:{number}:{key}", n)
    db.incr(f"w:shared:{n % shared}")
    if n % 10 == 0:
        db.set_many({f"w:many:{number}:{key}": n // 10 for key in range(many)})
    if n % 16 == 0:
        db.remove(f"w:own:{number}:0")
print(n, flush=True)
"""

IDLE = """
import asyncio, sys
from pickledbd_client import AsyncPickleDB

async def follow(db, prefix, begun):
    async with db.watch(prefix) as watch:
        begun.release()
        async for change in watch:
            print(change.key, flush=True)

async def main():
    db = AsyncPickleDB(sys.argv[1], autostart=False, timeout=60)
    begun = asyncio.Semaphore(0)
    tasks = [asyncio.create_task(follow(db, f"idle:{n}:", begun)) for n in range(200)]
    for _ in tasks:
        await begun.acquire()
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await db.close()
    await asyncio.gather(*tasks, return_exceptions=True)

asyncio.run(main())
"""


class Script:
    """A process that says when it is ready, and goes on until it is told to end."""

    def __init__(self, text, *args):
        self.process = subprocess.Popen(
            [sys.executable, "-c", text, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def tell(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self):
        """What it said since."""
        told, _ = self.process.communicate("\n", timeout=PATIENCE)
        assert self.process.returncode == 0
        return told


@contextlib.contextmanager
def writing(location, writers=WRITERS):
    """Writers at work; in the end, a list has how far each of them came."""
    sizes = OWN, MANY, SHARED
    scripts = [Script(WRITER, number, location, *sizes) for number in range(writers)]
    counts = []
    try:
        for script in scripts:
            script.tell()
        yield counts
        counts += [int(script.end()) for script in scripts]
    finally:
        for script in scripts:
            script.process.kill()
            script.process.communicate()


class Historian(Mirror):
    """Checks each change by what was told before it."""

    def __init__(self):
        super().__init__()
        self.changes = Counter()  # of each kind
        self.latest = {}  # of each key, also if it was removed, as far as that was told

    def take(self, one):
        super().take(one)
        if isinstance(one, Resync):
            self.latest = dict(one.items)
            return
        _, kind, *rest = one.key.split(":")
        self.changes[kind] += 1
        before = self.latest.get(one.key, 0)
        is_removed_at_times = kind == "own" and rest[1] == "0"
        if one.removed:
            assert is_removed_at_times
            assert before % 16 == 0
            return
        if before == 0 and self.resyncs and is_removed_at_times:
            before = one.value - one.value % 16  # it was not there at that moment
        assert one.value == before + 1, f"{one}, after {before}"
        self.latest[one.key] = one.value

    def check_halves(self):
        """Nothing that was set at once has come in part."""
        for number in range(WRITERS):
            found = {
                value for key, value in self.latest.items() if key.startswith(f"w:many:{number}:")
            }
            assert len(found) <= 1


def follow(told, historian, seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        historian.take(told.next())


def catch_up(told, historian, db):
    """Take in all that was told, up to what is set now; it is then as the database has it."""
    db.set("w:end", 0)
    for one in told.upto("w:end"):
        historian.take(one)
    historian.check_halves()
    found = dict(db.items("w:"))
    del found["w:end"]
    assert historian.content == found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seconds", [1, pytest.param(30, marks=pytest.mark.long)])
def test_a_watcher_sees_each_history_in_order_and_complete(daemon, db, kind, seconds):
    historian = Historian()
    with Told(kind, daemon.location, "w:") as told:
        with writing(daemon.location) as counts:
            follow(told, historian, seconds)
        catch_up(told, historian, db)
    assert historian.resyncs == 0
    assert historian.changes == {
        "own": sum(count * OWN + count // 16 for count in counts),
        "shared": sum(counts),
        "many": sum(count // 10 * MANY for count in counts),
    }


@pytest.mark.parametrize("seconds", [0.3, pytest.param(10, marks=pytest.mark.long)])
def test_so_it_is_after_a_resync_where_the_daemon_was_killed(location, seconds):
    daemon = Daemon(location)
    historians = [Historian(), Historian()]
    with contextlib.closing(daemon.client()) as db, contextlib.ExitStack() as stack:
        watches = [stack.enter_context(Told(kind, location, "w:")) for kind in KINDS]
        with writing(location) as counts:
            for told, historian in zip(watches, historians, strict=True):
                follow(told, historian, seconds)
            daemon.kill()
            daemon = Daemon(location)
            for told, historian in zip(watches, historians, strict=True):
                while historian.resyncs == 0:
                    historian.take(told.next())
                follow(told, historian, seconds)
        for told, historian in zip(watches, historians, strict=True):
            catch_up(told, historian, db)
            assert historian.resyncs == 1
        shared = {key: value for key, value in db.items() if key.startswith("w:shared")}
        assert sum(shared.values()) == sum(counts)
    daemon.check_and_stop()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_idle_watchers_are_not_woken_by_what_is_not_theirs(daemon, db):
    idle = Script(IDLE, daemon.location)

    def cpu_ticks():
        with open(f"/proc/{idle.process.pid}/stat") as stat:
            return sum(map(int, stat.read().rpartition(")")[2].split()[11:13]))

    def switches():
        """How often one of its threads has slept and was woken."""
        found = 0
        for task in os.listdir(f"/proc/{idle.process.pid}/task"):
            with open(f"/proc/{idle.process.pid}/task/{task}/status") as status:
                found += int(status.read().partition("nonvoluntary")[0].split()[-1])
        return found

    try:
        wait_until(lambda: db.info()["waiting"] == 200, "all to wait")
        before, slept = cpu_ticks(), switches()
        historian = Historian()
        with Told("blocking", daemon.location, "w:") as told, writing(daemon.location, 1):
            follow(told, historian, 1)
        assert sum(historian.changes.values()) > 100
        assert db.info()["waiting"] == 200
        assert cpu_ticks() - before <= 1
        assert switches() - slept < 10
        db.set("idle:7:x", 1)  # but this one is
        assert idle.process.stdout.readline() == "idle:7:x\n"
        wait_until(lambda: db.info()["waiting"] == 200, "it to wait again")
        assert idle.end() == ""
        wait_until(lambda: db.info()["waiting"] == 0, "nothing to be left")
    finally:
        idle.process.kill()
        idle.process.communicate()


def test_the_history_finds_out_what_is_missing_twice_or_in_another_order():
    """Of the tests themselves."""

    def check(*values):
        historian = Historian()
        for seq, value in enumerate(values, 1):
            historian.take(Change("w:own:0:1", value, removed=value is None, seq=seq))

    check(1, 2, 3)
    for bad in ((1, 3), (1, 2, 2), (2, 1), (1, None)):
        with pytest.raises(AssertionError):
            check(*bad)
