"""How the transport benchmark measures: what is timed, what is not, and when it is enough."""

from __future__ import annotations

import os
import time

import pytest

from kvstore.core.errors import UnsupportedError
from kvworker.bench.transport_timing import Budget, Operation, ProcessorClock, Timing, measure


def spin(seconds: float) -> None:
    """Use a processor for so long."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.mark.parametrize(
    ("n_operations", "elapsed_s", "is_spent"), [(9, 1.5, False), (10, 0.9, False), (10, 1.0, True), (1, 2.0, True), (0, 0.0, False)]
)
def test_a_budget_is_spent_after_enough_operations_or_enough_time(n_operations: int, elapsed_s: float, is_spent: bool) -> None:
    """Slow operations may not be repeated ten times."""
    assert Budget(min_operations=10, min_s=1.0, max_s=2.0).is_spent(n_operations, elapsed_s) is is_spent


def test_what_tidies_up_is_neither_timed_nor_counted() -> None:
    """A put is followed by a delete that would cost more than a small put itself."""
    timing = measure(Operation(lambda: spin(0.001), tidy=lambda: spin(0.01)), Budget(0, 5, 0.0, 1.0))
    assert timing.n_operations == 5
    assert timing.cpu_s < 0.02  # five times 10 ms of tidying would be 0.05 s


def test_warming_up_is_not_part_of_the_measurement() -> None:
    """First operations connect and touch fresh pages."""
    calls: list[int] = []
    timing = measure(Operation(lambda: calls.append(1)), Budget(3, 4, 0.0, 1.0))
    assert (timing.n_operations, len(calls)) == (4, 7)


def test_a_timing_has_the_median_and_the_99th_percentile() -> None:
    """101 operations of 0 to 100 s."""
    timing = Timing.of([float(s) for s in range(101)], 1.0)
    assert (timing.total_s, timing.p50_s, timing.p99_s) == (5050.0, 50.0, 99.0)


def test_the_processor_time_of_another_process_is_counted() -> None:
    """This process seen as another one counts twice."""
    clock = ProcessorClock([os.getpid()])
    before = clock.read()
    spin(0.02)
    assert clock.read() - before == pytest.approx(0.04, rel=0.2)


def test_a_process_that_is_gone_is_refused() -> None:
    """Its share would be missing in silence."""
    with pytest.raises(UnsupportedError, match="process"):
        ProcessorClock([2**22 + 1])
