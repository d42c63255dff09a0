"""Nothing lost, nothing done twice: kill -9 under many writing processes, and lost replies."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing

import pytest

import writers
from linearizable import Operation, by_key, described, unexplained
from support import PATIENCE, Daemon, wait_until
from writers import history_key, initial, seen_together

PROCESSES = 8

# kill -9 under writers


class Supervisor:
    """Keeps a daemon running at the same location and endpoints, as systemd would, and kills it."""

    def __init__(self, location, durability, seed):
        self.location = location
        self.random = random.Random(seed)
        # Below the range from which connections get their ports: who connects there again and
        # again while nobody listens may be connected to itself.
        port = self.random.randrange(20_000, 32_000)
        self.endpoints = [f"ipc://{location.parent}/s", f"tcp://127.0.0.1:{port}"]
        self.options = ["--durability", durability]
        for endpoint in self.endpoints:
            self.options += ["--bind", endpoint]
        self.kills = []
        self.met = Counter()
        self.start()
        self.await_ready()

    def start(self):
        self.daemon = Daemon(self.location, *self.options, wait=False)

    def await_ready(self):
        if not self.daemon.ready:
            self.daemon.wait_ready()

    def kill(self):
        """kill -9 at a random moment, and start another at once."""
        when = self.random.choice(["serving", "serving", "saving", "starting", "stopping"])
        if when == "starting":
            time.sleep(0.1 + 0.4 * self.random.random())
        else:
            self.await_ready()
            time.sleep(0.5 * self.random.random())
        if when == "saving":
            wait_until(self.is_saving, "a save")
            time.sleep(0.02 * self.random.random())
        elif when == "stopping":
            self.daemon.process.terminate()
            time.sleep(0.1 * self.random.random())
        saving, killed = self.is_saving(), time.monotonic()
        self.daemon.process.kill()
        out, err = self.daemon.process.communicate(timeout=PATIENCE)
        status = self.daemon.process.returncode
        self.start()
        if status == 0 and when == "stopping":
            return  # it was faster
        assert status == -9, err
        self.kills.append(killed)
        self.met["starts"] += not (out or self.daemon.ready) and when == "starting"
        self.met["stops"] += when == "stopping"
        self.met["saves"] += saving
        self.met["torn tails"] += "bytes were cut" in err

    def is_saving(self):
        return any(".tmp-" in name for name in os.listdir(self.location.parent))


class Writers:
    """The writing processes, half of which know the path and half an endpoint."""

    def __init__(self, supervisor):
        path = str(supervisor.location)
        targets = [path, supervisor.endpoints[0], path, supervisor.endpoints[1]] * 2
        self.histories = [supervisor.location.with_name(f"history.{n}") for n in range(PROCESSES)]
        self.processes = [
            subprocess.Popen(
                [sys.executable, writers.__file__, str(n), str(PROCESSES), target, str(history)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for n, (target, history) in enumerate(zip(targets, self.histories, strict=True))
        ]
        for process in self.processes:
            assert process.stdout.readline() == "ready\n"

    def all_run(self):
        return all(process.poll() is None for process in self.processes)

    def end(self):
        """Have them end, each after the answer that it waits for; whether they ended well."""
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            process.wait(timeout=2 * writers.TIMEOUT)
            process.stdout.close()
        return not any(process.returncode for process in self.processes)

    def kill(self):
        for process in self.processes:
            process.kill()
        self.end()

    def noted(self):
        """What they asked and were answered; the errors; and when saves were asked."""
        history, errors, saves = [], [], 0
        for path in self.histories:
            with path.open() as lines:
                for line in lines:
                    operation = Operation(*json.loads(line))
                    if operation.key == "error":
                        waited = operation.end - operation.start
                        errors.append(f"after {waited:.3f} s: {operation.kind} {operation.value}")
                    elif operation.key == "save":
                        saves += 1
                    else:
                        history.append(operation)
        return history, errors, saves


def killed_under_writers(location, durability, kills, seed):
    """Run it, and return what came of it; the assertions are the callers'."""
    began = time.monotonic()
    location.write_text(json.dumps(initial()))
    supervisor = Supervisor(location, durability, seed)
    group = Writers(supervisor)
    try:
        while len(supervisor.kills) < kills and group.all_run():
            supervisor.kill()
        supervisor.await_ready()
        ended_well = group.end()
    except BaseException:
        group.kill()
        raise
    history, errors, saves = group.noted()
    assert errors == []
    assert ended_well
    supervisor.daemon.kill()
    supervisor.start()
    supervisor.await_ready()
    with closing(supervisor.daemon.client()) as db:
        content = db.db
    supervisor.daemon.check_and_stop()
    figures = {
        "durability": durability,
        "seed": seed,
        "kills": len(supervisor.kills),
        "kills that met": dict(supervisor.met),
        "operations": len(history),
        "acknowledged writes": sum(map(has_changed, history)),
        "saves": saves,
        "operations across a kill": across(history, supervisor.kills),
        "longest wait, s": round(max(each.end - each.start for each in history), 3),
        "duration, s": round(time.monotonic() - began, 1),
    }
    print(figures)  # noqa: T201 - what a long run came to: pytest -s or -rP shows it
    return history, content, figures


def has_changed(operation):
    if operation.kind == "setdefault":
        return operation.result == operation.value
    return operation.kind != "get" and bool(operation.result)


def across(history, kills):
    """How many operations waited for the next daemon, or may have."""
    edges = sorted([(o.start, 0) for o in history] + [(k, 1) for k in kills])
    edges += [(o.end, 2) for o in history]
    open_now = found = 0
    for _, what in sorted(edges):
        if what == 1:
            found += open_now
        else:
            open_now += 1 if what == 0 else -1
    return found


def check_linearizable(history, content):
    """Each key's history, with what it has at last, has an order that explains every answer."""
    first, groups = grouped(initial()), grouped(content)
    end = max(each.end for each in history) + 1
    for key, operations in by_key(history).items():
        operations.append(Operation(key, "get", None, groups.pop(key, None), end, end))
        impossible = unexplained(operations, first.pop(key, None))
        assert impossible is None, described(operations, impossible)
    assert groups == first, "what nobody touched"


def grouped(content):
    """Of each key that histories tell of, and of each that they do not, the value."""
    groups = {}
    for key, value in content.items():
        groups.setdefault(history_key(key), []).append(value)
    return {key: seen_together(values) for key, values in groups.items()}


def check_counted_once(history, content):
    """Every token that was set was taken by just one, or is there; every claim has one winner."""
    made = {o.key for o in history if o.kind == "set" and o.key.startswith("t:")}
    taken = Counter(o.key for o in history if o.kind == "pop" and o.result and o.key in made)
    left = Counter(key for key in content if key.startswith("t:"))
    assert taken + left == Counter(made)
    assert sum(taken.values()) > 0
    got = Counter(o.result for o in history if o.kind == "pop" and isinstance(o.result, str))
    assert [value for value, times in got.items() if times > 1 and "." in value] == []


@pytest.mark.parametrize("durability", ["journal", "fsync"])
@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.long)])
def test_every_acknowledged_write_outlives_kill_9(location, durability, kills):
    seed = random.randrange(1_000_000)
    history, content, figures = killed_under_writers(location, durability, kills, seed)
    assert figures["kills"] == kills
    assert figures["operations across a kill"] > 0
    check_counted_once(history, content)
    check_linearizable(history, content)
