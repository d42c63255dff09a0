"""Mixed clients for a long time: nothing goes wrong, and nothing grows."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

import soaking
from support import PATIENCE, Daemon, wait_until

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux")

KINDS = ["threads"] * 6 + ["tasks"] * 2
"""Processes of two clients each."""

PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


def memory_kib(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_KIB


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def start(kind, number, location):
    process = subprocess.Popen(
        [sys.executable, soaking.__file__, kind, str(number), str(location)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def flat(samples, slack):
    """Whether the last quarter is no more than the second, but for some slack."""
    quarter = len(samples) // 4
    second, last = samples[quarter : 2 * quarter], samples[3 * quarter :]
    return statistics.median(last) <= statistics.median(second) + slack


@pytest.mark.parametrize("seconds", [60, pytest.param(600, marks=pytest.mark.long)])
def test_memory_and_descriptors_stay_flat_and_nothing_goes_wrong(location, seconds):
    daemon = Daemon(location)
    running = [start(kind, number, location) for number, kind in enumerate(KINDS)]
    try:
        watched = [daemon.pid, *(process.pid for process in running)]
        memory = {pid: [] for pid in watched}
        files = {pid: [] for pid in watched}
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            for pid in watched:
                memory[pid].append(memory_kib(pid))
                files[pid].append(descriptors(pid))
            time.sleep(0.5)  # a sample's distance
        told = []
        for process in running:
            out, _ = process.communicate("", timeout=PATIENCE)
            assert process.returncode == 0
            told.append(json.loads(out))
    finally:
        for process in running:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
    assert [error for each in told for error in each["errors"]] == []
    assert min(each["done"] for each in told) > 10 * seconds  # at ease, but they worked
    for pid in watched:
        grown = {pid: f"{memory[pid][0]} .. {memory[pid][-1]} KiB" for pid in watched}
        assert flat(memory[pid], 4096 + memory[pid][0] // 10), grown
        assert flat(files[pid], 2), files[pid]
    with closing(daemon.client()) as db:
        wait_until(lambda: db.info()["clients"] <= 2, "the others to be gone")
        assert (db.info()["locks"], db.info()["waiting"]) == (0, 0)
        wait_until(lambda: not db.all(glob="*:session"), "the last keys to expire")
    daemon.check_and_stop()


HOLD = """
import sys
from pickledbd_client import PickleDB
clients = [PickleDB(sys.argv[1], autostart=False) for _ in range(int(sys.argv[2]))]
for client in clients:
    client.set("a", 1)
    assert client.get("a") == 1
print("ready", flush=True)
sys.stdin.readline()
"""


def cpu_seconds(pid):
    """How long all its threads have run so far, by the scheduler's own account."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def wakes(pid):
    """How often its threads have slept so far."""
    told = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int(each.split("\nvoluntary_ctxt_switches:")[1].split()[0]) for each in told)


def test_an_idle_daemon_hardly_uses_the_processor_and_wakes_no_client(location):
    if not Path("/proc/self/schedstat").exists():
        pytest.skip("this kernel does not tell how long threads have run")
    seconds, clients = 8.0, 50
    daemon = Daemon(location)
    idle = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(location), str(clients)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert idle.stdout.readline() == "ready\n"
        with closing(daemon.client()) as db:
            assert db.info()["clients"] == clients + 1
            db.save()
        used, woken = cpu_seconds(daemon.pid), wakes(idle.pid)
        time.sleep(seconds)  # nothing happens in it, that is what it is about
        assert wakes(idle.pid) == woken
        assert cpu_seconds(daemon.pid) - used < 0.005 * seconds
    finally:
        idle.communicate("\n", timeout=PATIENCE)
    daemon.check_and_stop()
