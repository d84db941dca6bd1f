"""The planner benchmark prints what it is known for, and keeps its bounds on a handful of seeds."""

from __future__ import annotations

import pytest

from kvworker.bench.benchmark import Asked
from kvworker.bench.planner import PlannerBench
from kvworker.bench.rows import Row

ROWS = list(PlannerBench(sizes=(16,), n_instances=12, n_tried=6, n_chunks=5, n_timed=2).run(Asked()))


def value(variant: str, metric: str) -> Row:
    """Return the only row of a metric."""
    (row,) = [row for row in ROWS if (row.variant, row.metric) == (variant, metric)]
    return row


@pytest.mark.parametrize("variant", ["P1", "P2", "P3", "P4", "P5"])
@pytest.mark.parametrize("metric", ["mean_over_oracle", "max_over_oracle", "max_over_better", "plan_ms"])
def test_every_problem_has_every_metric(variant: str, metric: str) -> None:
    """Programs read them by these names."""
    assert value(variant, metric).p50 > 0


def test_a_change_of_the_link_is_measured_for_races_of_prefixes() -> None:
    """Fourfold, both ways, against hindsight."""
    assert 1 - 1e-9 <= value("P1", "step_over_offline").p50 <= 1.01


@pytest.mark.parametrize("variant", ["P1", "P2", "P3", "P4", "P5"])
def test_no_race_and_no_plan_is_above_the_better_plus_a_chunk(variant: str) -> None:
    """Computing all or loading all, whichever is sooner in the world as it is."""
    assert value(variant, "max_over_better").p50 <= 1


def test_the_seeds_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever doubts a number runs its seed."""
    next(PlannerBench(sizes=(4,), n_instances=2, n_tried=1, n_chunks=2, n_timed=1).run(Asked()))
    assert capsys.readouterr().err == "seeds 0 to 1 for bounds, 0 to 0 for oracles\n"
