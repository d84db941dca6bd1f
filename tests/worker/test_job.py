"""Which requests are raced: those whose loads take longer than they are waited for, besides those that a race makes quicker."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from kvworker.answer.job import _outlasts, _StraightPlan

PATIENCE_S = 0.25


@pytest.mark.parametrize(
    ("planned_s", "load_s", "is_raced"),
    [(1.0, 0.5, True), (1.0, 0.2, False), (1.0, math.inf, False), (None, 0.5, False)],
    ids=["outlasting", "in time", "unknown load", "unknown plan"],
)
def test_loads_that_outlast_the_patience_are_raced(planned_s: float | None, load_s: float, is_raced: bool) -> None:
    """Computing would begin beside them anyway, and not know which chunks to leave to loading."""
    straight = _StraightPlan({}, load_s, 0.1, load_s + 0.1)
    assert _outlasts(SimpleNamespace(planned_s=planned_s), straight, PATIENCE_S) is is_raced
