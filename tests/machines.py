"""State machines of hypothesis whose rules need something of the test that runs them."""

from __future__ import annotations

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

STEPS = 30


def run_machine(machine, examples, /, **given):
    """Run `machine` so often; its rules find what is `given` as attributes of the class."""
    run_state_machine_as_test(
        type(machine.__name__, (machine,), given),
        settings=settings(
            max_examples=examples, stateful_step_count=STEPS, report_multiple_bugs=False
        ),
    )
