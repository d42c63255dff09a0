"""The daemon's clock, over daemons and starts of a machine whose own clocks the test turns.

`clock` is started afresh for each daemon, as a process would, on what the machine tells then.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from types import SimpleNamespace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from machines import run_machine
from pickledbd import clock

MS = 1_000_000
SECOND = 1000 * MS
START = 1_700_000_000 * SECOND


class Machine:
    """What a machine tells: the time, for how long it has been on, and since which start."""

    def __init__(self, directory):
        self.system_ns = START
        self.boots = 0
        self.boot_id = directory / "boot_id"
        self.boot()

    def boot(self):
        self.boots += 1
        self.on_ns = 5 * SECOND
        self.boot_id.write_text(f"boot-{self.boots}\n")

    def goes_on(self, ns):
        self.system_ns += ns
        self.on_ns += ns

    def start(self):
        """The clock of a new daemon."""

        def elapsed(which):
            assert which == clock._COUNTER
            return self.on_ns

        told = {name: getattr(time, name) for name in dir(time) if name.startswith("CLOCK_")}
        theirs = SimpleNamespace(time_ns=lambda: self.system_ns, clock_gettime_ns=elapsed, **told)
        spec = importlib.util.spec_from_file_location("a_clock", clock.__file__)
        module = importlib.util.module_from_spec(spec)
        before, sys.modules["time"] = sys.modules["time"], theirs
        try:
            spec.loader.exec_module(module)
        finally:
            sys.modules["time"] = before
        module._BOOT_ID = self.boot_id
        return module


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def over_a_file(told):
    return json.loads(json.dumps(told))


spans = st.sampled_from([1, MS - 1, MS, 3 * SECOND, 86_400 * SECOND, 10**7 * SECOND])
steps = st.one_of(spans, spans.map(lambda ns: -ns))


class Daemons(RuleBasedStateMachine):
    """One daemon after the other; each finds what those before have on record.

    `right_ns` is what the clock has to show, reckoned by one rule: it counts on, whatever daemon
    there is, but after a boot it is the system's, if that is not earlier than what is on record.
    """

    machine: Machine

    def __init__(self):
        super().__init__()
        self.machine.__init__(self.machine.boot_id.parent)
        self.clock = self.machine.start()
        self.clock.go_on(None)
        self.right_ns = START
        self.told = None
        self.newest = 0  # of writes
        self.seen = 0
        self.told_in = 0  # which boot

    @rule(ns=spans)
    def time_goes_by(self, ns):
        self.machine.goes_on(ns)
        self.right_ns += ns

    @rule(ns=steps)
    def somebody_sets_the_clock_of_the_system(self, ns):
        self.machine.system_ns += ns

    @rule()
    def the_clock_is_put_on_record(self):
        """As in the head of a journal; it is not told at each moment."""
        self.told = over_a_file(self.clock.told())
        self.told_in = self.machine.boots

    @precondition(lambda self: self.told is not None)
    @rule()
    def a_write_is_put_on_record(self):
        self.newest = self.clock.now_ms()

    @precondition(lambda self: self.told is not None)
    @rule(ns=spans)
    def it_is_killed_and_another_started(self, ns):
        self.machine.goes_on(ns)
        self.right_ns += ns
        self.begin()

    @precondition(lambda self: self.told is not None)
    @rule(ns=spans, step=steps)
    def the_machine_is_started_anew(self, ns, step):
        self.machine.goes_on(ns)
        self.machine.system_ns += step
        self.machine.boot()
        self.begin()

    def begin(self):
        if self.told_in != self.machine.boots:
            self.seen = max(self.newest, self.told["now"])
            self.right_ns = self.machine.system_ns
            self.right_ns += max(0, self.seen - self.right_ns // MS) * MS
        self.clock = self.machine.start()
        self.clock.go_on(self.told, self.newest)
        self.the_clock_is_put_on_record()  # the first that a daemon does

    @invariant()
    def it_shows_what_it_has_to(self):
        now = self.clock.now_ms()
        assert now == self.right_ns // MS

    @invariant()
    def it_is_never_earlier_than_what_is_on_record(self):
        now = self.clock.now_ms()
        assert now >= self.seen
        assert now >= self.newest
        self.seen = now


@pytest.mark.parametrize("examples", [150, pytest.param(5000, marks=pytest.mark.long)])
def test_it_counts_on_over_daemons_and_is_never_earlier_over_boots(machine, examples):
    run_machine(Daemons, examples, machine=machine)


def test_without_a_name_of_the_boot_it_is_as_after_another(machine):
    """Also where no system tells: a counter says nothing without its beginning."""
    machine.boot_id.unlink()
    first = machine.start()
    told = over_a_file(first.told())
    assert told["boot"] == ""
    machine.goes_on(SECOND)
    machine.system_ns -= 3600 * SECOND
    second = machine.start()
    second.go_on(told)
    assert second.now_ms() == told["now"], "not the hour that it was set back, nor a second more"
    machine.goes_on(SECOND)
    assert second.now_ms() == told["now"] + 1000


def test_what_is_told_of_this_boot_and_cannot_be_true_is_taken_for_another_boots(machine):
    """As of a copy of the machine, whose counter is not where it was: it never goes back."""
    machine.goes_on(1000 * SECOND)
    told = over_a_file(machine.start().told())
    machine.on_ns -= 500 * SECOND
    machine.system_ns += 7 * SECOND
    again = machine.start()
    again.go_on(told)
    assert again.now_ms() == machine.system_ns // MS
    machine.system_ns -= 3600 * SECOND
    again = machine.start()
    again.go_on(told)
    assert again.now_ms() == told["now"]


@pytest.mark.parametrize("same_boot", [True, False])
def test_writes_that_are_newer_than_the_clock_on_record_count_too(machine, same_boot):
    """The record may be of a daemon long before, or of a file that was put back."""
    told = over_a_file(machine.start().told())
    if not same_boot:
        machine.boot()
    again = machine.start()
    again.go_on(told, told["now"] + 60_000)
    assert again.now_ms() == told["now"] + 60_000
    machine.goes_on(SECOND)
    assert again.now_ms() == told["now"] + 61_000
    alone = machine.start()
    alone.go_on(None, told["now"] + 90_000)
    assert alone.now_ms() == told["now"] + 90_000


def test_within_a_command_no_time_passes(machine):
    running = machine.start()
    running.hold()
    held = running.now_ms()
    machine.goes_on(5 * SECOND)
    assert running.now_ms() == held
    running.let_go()
    running.hold()
    assert running.now_ms() == held + 5000, "each command has a moment of its own"
    machine.goes_on(5 * SECOND)
    running.let_go()
    assert running.now_ms() == held + 10_000


def test_it_counts_as_the_machine_does():
    """The real one: between two looks at the system's own, and it goes on."""
    counter = clock._COUNTER
    before, began = clock.now_ms(), time.clock_gettime_ns(counter)
    while time.clock_gettime_ns(counter) - began < 5 * MS:
        pass
    after, ended = clock.now_ms(), time.clock_gettime_ns(counter)
    assert 5 <= after - before <= (ended - began) // MS + 2
    told = clock.told()
    assert told["now"] >= after
    if sys.platform == "linux":
        assert len(told["boot"]) == 36
        assert counter == time.CLOCK_BOOTTIME
