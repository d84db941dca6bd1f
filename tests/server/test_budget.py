"""Bytes that transfers share."""

from __future__ import annotations

import pytest

from kvstore.core.errors import CapacityError
from kvstore.server.budget import ByteBudget


def test_loans_up_to_the_capacity_are_granted_and_come_back() -> None:
    """Exactly the capacity fits."""
    budget = ByteBudget(10, lambda: None)
    with budget.lend(4), budget.lend(6):
        assert budget.lent_bytes == 10
    assert budget.lent_bytes == 0


def test_a_loan_beyond_the_capacity_is_refused_with_the_numbers() -> None:
    """And asks for relief."""
    asked: list[bool] = []
    budget = ByteBudget(10, lambda: asked.append(True))
    with budget.lend(4), pytest.raises(CapacityError, match=r"7 B .* 6 B"), budget.lend(7):
        pass
    assert asked == [True]


def test_a_loan_comes_back_when_its_holder_fails() -> None:
    """A broken transfer holds nothing."""
    budget = ByteBudget(10, lambda: None)
    with pytest.raises(KeyError), budget.lend(4):
        raise KeyError("broken")
    assert budget.lent_bytes == 0
