"""Timing what a busy machine disturbs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvworker.answer.stopwatch import least_seconds


class Machine:
    """A clock, and runs whose durations follow each other as given; the last one stays."""

    def __init__(self) -> None:
        self.now, self.n_runs = 0.0, 0

    def run(self, *durations: float) -> Callable[[], None]:
        """Return a run."""
        left = list(durations)

        def once() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]
            self.n_runs += 1

        return once

    def clock(self) -> float:
        """Return the time."""
        return self.now


def test_a_stall_does_not_count() -> None:
    """It hits one round of one run, and each is run at least four times."""
    machine = Machine()
    runs = [machine.run(0.09, 0.01), machine.run(0.02, 0.02, 0.5, 0.02)]
    assert least_seconds(runs, clock=machine.clock) == pytest.approx([0.01, 0.02])
    assert machine.n_runs == 8


def test_rounds_go_on_while_the_machine_becomes_quieter() -> None:
    """Five times slower at the beginning, as beside another process that is about to end."""
    machine = Machine()
    assert least_seconds([machine.run(0.05, 0.04, 0.03, 0.02, 0.015, 0.01, 0.01)], clock=machine.clock) == pytest.approx([0.01])


def test_long_runs_are_taken_three_times() -> None:
    """A start of a worker is not put off for ever."""
    machine = Machine()
    assert least_seconds([machine.run(2.0, 1.9, 1.8, 1.0)], clock=machine.clock) == pytest.approx([1.8])


def test_rounds_come_to_an_end() -> None:
    """Whatever the machine does."""
    machine = Machine()
    least_seconds([machine.run(*(0.1 * 0.9**n for n in range(100)))], 6, machine.clock)
    assert machine.n_runs == 6
