"""Sharing bytes among blocks: as good as trying everything."""

from __future__ import annotations

import itertools

import pytest
import torch

from kvworker.calibrate.allocation import allocate

COSTS = (0, 1, 2, 4)


def error_of(errors: torch.Tensor, ways: tuple[int, ...] | list[int]) -> float:
    """Return the error of all blocks."""
    return float(sum(errors[block, way] for block, way in enumerate(ways)))


@pytest.mark.parametrize("budget", [0, 1, 3, 7, 12, 40])
def test_no_other_way_within_the_budget_has_less_error(budget: int) -> None:
    """Errors that need not fall evenly: the best next byte is not always part of the best whole."""
    errors = torch.rand(4, len(COSTS), generator=torch.Generator().manual_seed(budget), dtype=torch.float64).sort(1, descending=True).values
    ways = allocate(errors, COSTS, budget)
    fitting = (w for w in itertools.product(range(len(COSTS)), repeat=4) if sum(COSTS[way] for way in w) <= budget)
    assert sum(COSTS[way] for way in ways) <= budget
    assert error_of(errors, ways) == pytest.approx(min(error_of(errors, w) for w in fitting))


def test_bytes_that_save_nothing_are_not_spent() -> None:
    assert allocate(torch.zeros(3, len(COSTS)), COSTS, 12) == [0, 0, 0]
