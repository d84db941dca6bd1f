"""P4 against every choice of levels, and against a fixed level on links that change."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.core.errors import InvalidInputError
from kvstore.planners.levels import Level, LevelPlan, least_loss, least_time
from kvstore.planners.parallel_tiers import COMPUTED
from kvworker.bench.planner_cases import make_levels
from kvworker.bench.planner_oracles import all_level_plans

seconds = st.floats(1e-3, 10.0)
levels = st.lists(st.builds(Level, seconds, st.floats(0, 1)), min_size=1, max_size=4)
cases = st.lists(st.tuples(seconds, levels), max_size=6)


def check(plan: LevelPlan, compute_s: list[float], offered: list[list[Level]]) -> None:
    """Assert that a plan's numbers are those of its levels."""
    loaded = [offered[i][e] for i, e in enumerate(plan.levels) if e != COMPUTED]
    assert plan.levels.count(COMPUTED) == plan.first_loaded
    assert plan.seconds == pytest.approx(max(sum(compute_s[: plan.first_loaded]), sum(level.load_s for level in loaded)), rel=1e-9)
    assert plan.loss == pytest.approx(sum(level.loss for level in loaded), rel=1e-9)


@settings(max_examples=150, deadline=None)
@given(case=cases, deadline_s=st.floats(0, 40))
def test_the_least_loss_keeps_to_its_deadline_or_says_that_it_is_late(case: list[tuple[float, list[Level]]], deadline_s: float) -> None:
    """And its numbers are those of its levels."""
    compute_s, offered = [c for c, _ in case], [found for _, found in case]
    plan = least_loss(compute_s, offered, deadline_s)
    check(plan, compute_s, offered)
    assert plan.is_late == (plan.seconds > deadline_s * (1 + 2e-9))


@settings(max_examples=80, deadline=None)
@given(case=cases, most_loss=st.floats(0, 3))
def test_the_least_time_keeps_to_its_budget(case: list[tuple[float, list[Level]]], most_loss: float) -> None:
    """Computing everything loses nothing, so there is always a plan, and never a slower one than that."""
    compute_s, offered = [c for c, _ in case], [found for _, found in case]
    plan = least_time(compute_s, offered, most_loss)
    check(plan, compute_s, offered)
    assert plan.loss <= most_loss
    assert plan.seconds <= sum(compute_s) * (1 + 1e-9)


def test_quality_by_a_deadline_is_95_percent_of_the_best_on_average() -> None:
    """5 chunks, 4 levels, 60 seeds, deadlines anywhere between the quickest plan and computing all; the average was 0.998."""
    shares = []
    for seed in range(60):
        compute_s, offered = make_levels(seed, 5)
        plans = all_level_plans(compute_s, offered)
        soonest = min(s for s, _ in plans)
        deadline_s = soonest + random.Random(seed).random() * (sum(compute_s) - soonest)
        worst = sum(max(level.loss for level in found) for found in offered)
        best = min(loss for s, loss in plans if s <= deadline_s)
        shares.append((worst - least_loss(compute_s, offered, deadline_s).loss) / (worst - best))
    assert statistics.mean(shares) >= 0.99
    assert sum(share >= 0.95 for share in shares) >= 0.95 * len(shares)


def test_time_within_a_budget_is_within_two_percent_of_the_best_on_average() -> None:
    """The same seeds, four budgets in turn."""
    ratios = []
    for seed in range(60):
        compute_s, offered = make_levels(seed, 5)
        most_loss = (0.0, 0.1, 0.3, 1.0)[seed % 4]
        best = min(s for s, loss in all_level_plans(compute_s, offered) if loss <= most_loss + 1e-12)
        ratios.append(least_time(compute_s, offered, most_loss).seconds / best)
    assert statistics.mean(ratios) <= 1.02


def test_time_to_spare_is_spent_on_quality() -> None:
    """All at the best level is in time, and computing is not."""
    offered = [[Level(1.0, 0.0), Level(0.2, 0.5)]] * 3
    assert least_loss([10.0] * 3, offered, 3.0).levels == (0, 0, 0)


def test_a_deadline_that_nothing_keeps_gets_the_quickest_plan() -> None:
    """The answer comes anyway."""
    plan = least_loss([10.0] * 3, [[Level(1.0, 0.0), Level(0.2, 0.5)]] * 3, 0.1)
    assert (plan.is_late, plan.levels) == (True, (1, 1, 1))


def stream(seed: int, level: int | None) -> tuple[bool, float]:
    """Send 6 chunks over a link whose speed wanders; return whether it was late, and the loss.

    `level` is fixed, or None to ask again before each chunk with the remaining time, and the speed of the last chunk as far as it is off.
    """
    rng, n, deadline_s, error = random.Random(seed), 6, 4.0, 0.3
    shares = ((1.0, 0.0), (0.6, 0.02), (0.35, 0.1), (0.2, 0.4))
    now_s, loss, pace = 0.0, 0.0, 10 ** rng.uniform(-0.5, 0.5)
    for sent in range(n):
        offered = [[Level(pace * (1 + error) * share, lost) for share, lost in shares] for _ in range(n - sent)]
        chosen = level if level is not None else least_loss([math.inf] * (n - sent), offered, deadline_s - now_s).levels[0]
        pace *= 10 ** rng.uniform(-0.15, 0.15)
        now_s += pace * shares[chosen][0]
        loss += shares[chosen][1]
    return now_s > deadline_s, loss


def test_asking_again_beats_every_fixed_level_in_time_or_in_quality() -> None:
    """300 seeded links (CacheGen's check): late less often than every level but the smallest, which loses several times as much."""
    adaptive = [stream(seed, None) for seed in range(300)]
    late, loss = sum(is_late for is_late, _ in adaptive), sum(lost for _, lost in adaptive)
    fixed = [[stream(seed, level) for seed in range(300)] for level in range(4)]
    fixed_late = [sum(is_late for is_late, _ in runs) for runs in fixed]
    assert all(late < others for others in fixed_late[:3])
    assert loss < 0.5 * sum(lost for _, lost in fixed[3])


@pytest.mark.parametrize("offered", [[], [[]]])
def test_a_chunk_without_levels_is_refused(offered: list[list[Level]]) -> None:
    """It could neither be loaded nor reported."""
    with pytest.raises(InvalidInputError, match="no list empty"):
        least_loss([1.0], offered, 1.0)


def test_a_negative_budget_is_refused() -> None:
    """Nothing loses less than nothing."""
    with pytest.raises(InvalidInputError, match="must not be negative"):
        least_time([], [], -1.0)
