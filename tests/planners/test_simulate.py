"""Speeds that change, and a world that runs down."""

from __future__ import annotations

import math

import pytest

from kvstore.core.errors import InvalidInputError
from kvstore.planners.race import Race
from kvstore.planners.share_out import NOWHERE, Work
from kvstore.planners.simulate import Speed, World, simulate


@pytest.mark.parametrize(
    ("start_s", "work_s", "end_s"), [(0.0, 0.5, 0.5), (0.0, 1.0, 1.0), (0.0, 3.0, 2.0), (0.5, 2.5, 2.0), (5.0, 4.0, 7.0), (0.0, 0.0, 0.0)]
)
def test_work_ends_when_all_of_it_is_done_at_the_speed_of_each_moment(start_s: float, work_s: float, end_s: float) -> None:
    """One per second up to 1 s, two per second from then on."""
    assert Speed(((0.0, 1.0), (1.0, 2.0))).end(start_s, work_s) == end_s


def test_work_on_a_lane_that_stands_still_ends_when_it_moves_again() -> None:
    """1 s done, a second of rest, 1 s left."""
    assert Speed(((0.0, 1.0), (1.0, 0.0), (2.0, 1.0))).end(0.0, 2.0) == 3.0


def test_work_on_a_lane_that_stands_still_for_ever_never_ends() -> None:
    """A stalled connection."""
    assert Speed(((0.0, 0.0),)).end(0.0, 1.0) == math.inf


@pytest.mark.parametrize("changes", [(), ((1.0, 1.0),), ((0.0, 1.0), (0.0, 2.0)), ((0.0, -1.0),), ((0.0, 1.0), (2.0, 1.0), (1.0, 1.0))])
def test_speeds_without_a_beginning_or_an_order_are_refused(changes: tuple[tuple[float, float], ...]) -> None:
    """No moment may have two speeds or none."""
    with pytest.raises(InvalidInputError, match="ascending moments"):
        Speed(changes)


def test_a_world_that_stands_still_is_an_error() -> None:
    """Instead of a simulation without end."""
    race = Race(Work([1.0], [NOWHERE], [0.0], [0.0]), [[]], [1], [])
    with pytest.raises(InvalidInputError, match="nothing more happens"):
        simulate(race, World([1.0], [], [], device=Speed(((0.0, 0.0),))))
