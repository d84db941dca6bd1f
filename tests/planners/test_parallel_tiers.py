"""P2 against every prefix with every assignment, and its promises."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.core.errors import InvalidInputError
from kvstore.planners.makespan import Option
from kvstore.planners.parallel_tiers import COMPUTED, split_over_tiers
from kvworker.bench.planner_cases import make_case
from kvworker.bench.planner_oracles import best_over_tiers

seconds = st.floats(1e-3, 10.0)
ways = st.lists(st.builds(Option, st.integers(0, 2), seconds, st.just(0.0)), max_size=3, unique_by=lambda o: o.lane)
cases = st.lists(st.tuples(seconds, ways), max_size=6)


def test_the_plan_is_within_one_percent_of_the_best_on_average() -> None:
    """7 chunks, 3 tiers, 100 seeds; published greedy with local search has 1.005 on its own cases."""
    ratios = []
    for seed in range(100):
        case = make_case(seed, 7, 3)
        plan_s = split_over_tiers(case.compute_s, case.options, 3).seconds
        ratios.append(plan_s / best_over_tiers(case.compute_s, case.options, 3))
    assert statistics.mean(ratios) <= 1.01
    assert min(ratios) >= 1 - 1e-9


@settings(max_examples=150)
@given(case=cases)
def test_it_is_never_later_than_computing_all(case: list[tuple[float, list[Option]]]) -> None:
    """The device needs nobody."""
    plan = split_over_tiers([c for c, _ in case], [o for _, o in case], 3)
    assert plan.seconds <= sum(c for c, _ in case) * (1 + 1e-9)


@settings(max_examples=150)
@given(case=cases)
def test_its_time_is_that_of_its_assignment(case: list[tuple[float, list[Option]]]) -> None:
    """The busiest tier, or the device."""
    plan = split_over_tiers([c for c, _ in case], [o for _, o in case], 3)
    busy = [0.0] * 3
    for tier, (_, found) in zip(plan.tiers, case, strict=True):
        if tier != COMPUTED:
            busy[tier] += next(o.seconds for o in found if o.lane == tier)
    assert plan.seconds == pytest.approx(max(sum(c for c, _ in case[: plan.first_loaded]), *busy), rel=1e-9)


@settings(max_examples=100)
@given(case=cases)
def test_a_prefix_is_computed_and_nothing_else(case: list[tuple[float, list[Option]]]) -> None:
    """Every chunk behind the first loaded one has a tier."""
    plan = split_over_tiers([c for c, _ in case], [o for _, o in case], 3)
    assert [tier == COMPUTED for tier in plan.tiers] == [i < plan.first_loaded for i in range(len(case))]


def test_tiers_share_the_work() -> None:
    """Ten equal chunks over two equal tiers, computing ruled out: five each."""
    options = [[Option(0, 1.0), Option(1, 1.0)]] * 10
    assert split_over_tiers([100.0] * 10, options, 2).seconds == 5.0


def test_a_link_that_all_tiers_share_is_no_faster_for_being_two() -> None:
    """Two tiers behind one link of 1 s per chunk: ten chunks take 10 s, so half are better computed."""
    options = [[Option(0, 1.0), Option(1, 1.0)]] * 10
    assert split_over_tiers([1.0] * 10, options, 2, [1.0] * 10).seconds == 5.0


def test_512_chunks_over_four_tiers_end_near_the_bound_of_equal_shares() -> None:
    """Equal chunks on four equal tiers beside a device as fast as one of them: a fifth each, and one chunk more at most."""
    n = 512
    options = [[Option(tier, 1.0) for tier in range(4)] for _ in range(n)]
    assert split_over_tiers([1.0] * n, options, 4).seconds <= n / 5 + 1


@pytest.mark.parametrize(("n_options", "n_shared"), [(1, 0), (2, 1)])
def test_costs_for_different_numbers_of_chunks_are_refused(n_options: int, n_shared: int) -> None:
    """One of the lists is wrong."""
    with pytest.raises(InvalidInputError, match="give one per chunk"):
        split_over_tiers([1.0, 1.0], [[Option(0, 1.0)]] * n_options, 1, [1.0] * n_shared)
