"""A running estimate of how wrong the plan is."""

from __future__ import annotations

import pytest

from kvstore.planners.pace import Pace


def test_a_lasting_change_is_followed() -> None:
    """Four observations of fourfold: 4 ** (1 - 0.5 ** 4) = 3.67, which plans use to within 10 %."""
    pace = Pace()
    for _ in range(4):
        pace = pace.observe(1.0, 4.0)
    assert pace.estimate == pytest.approx(4 ** (15 / 16))
    assert pace.used == pytest.approx(pace.estimate, rel=0.11)


def test_small_changes_leave_plans_alone() -> None:
    """Within 10 % nothing is planned anew."""
    assert Pace().observe(1.0, 1.1).used == 1.0


def test_a_change_that_adds_up_is_followed_in_the_end() -> None:
    """The estimate goes on behind the pace in use."""
    pace = Pace()
    for _ in range(10):
        pace = pace.observe(1.0, 1.15)
    assert pace.used > 1.1


def test_one_stall_counts_no_more_than_sixteenfold() -> None:
    """A read that hung for a minute says little about the next."""
    assert Pace().observe(1e-3, 60.0).estimate == 4.0


def test_work_of_no_length_tells_nothing() -> None:
    """There is no ratio to it."""
    assert Pace().observe(0.0, 1.0) == Pace()
