"""P4 against every choice of levels, and against a fixed level on links that change."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.core.errors import InvalidInputError
from kvstore.planners.levels import LevelPlan, Levels
from kvstore.planners.parallel_tiers import COMPUTED
from kvworker.bench.planner_cases import make_levels
from kvworker.bench.planner_oracles import all_level_plans

seconds = st.floats(1e-3, 10.0)
Case = tuple[list[float], list[list[float]], list[list[float]]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Up to six chunks with up to four levels, some of which are missing."""
    n, n_levels = draw(st.integers(0, 6)), draw(st.integers(1, 4))
    rows = [[draw(st.one_of(seconds, st.just(math.inf) if level else seconds)) for level in range(n_levels)] for _ in range(n)]
    return [draw(seconds) for _ in range(n)], rows, [[draw(st.floats(0, 1)) for _ in range(n_levels)] for _ in range(n)]


def check(plan: LevelPlan, case: Case) -> None:
    """Assert that a plan's numbers are those of its levels."""
    compute_s, load_s, loss = case
    loaded = [(load_s[i][e], loss[i][e]) for i, e in enumerate(plan.levels) if e != COMPUTED]
    assert plan.levels.count(COMPUTED) == plan.first_loaded
    assert plan.seconds == pytest.approx(max(sum(compute_s[: plan.first_loaded]), sum(s for s, _ in loaded)), rel=1e-9)
    assert plan.loss == pytest.approx(sum(lost for _, lost in loaded), rel=1e-9)


@settings(max_examples=150)
@given(case=cases(), deadline_s=st.floats(0, 40))
def test_the_least_loss_keeps_to_its_deadline_or_says_that_it_is_late(case: Case, deadline_s: float) -> None:
    """And its numbers are those of its levels."""
    plan = Levels(*case).least_loss(deadline_s)
    check(plan, case)
    assert plan.is_late == (plan.seconds > deadline_s * (1 + 2e-9))


@settings(max_examples=80)
@given(case=cases(), most_loss=st.floats(0, 3))
def test_the_least_time_keeps_to_its_budget(case: Case, most_loss: float) -> None:
    """Computing everything loses nothing, so there is always a plan, and never a slower one than that."""
    plan = Levels(*case).least_time(most_loss)
    check(plan, case)
    assert plan.loss <= most_loss
    assert plan.seconds <= sum(case[0]) * (1 + 1e-9)


def test_quality_by_a_deadline_is_99_percent_of_the_best_on_average() -> None:
    """5 chunks, 4 levels, 60 seeds, deadlines anywhere between the quickest plan and computing all; nineteen in twenty reach 95 %."""
    shares = []
    for seed in range(60):
        compute_s, load_s, loss = make_levels(seed, 5)
        seconds, lost = all_level_plans(compute_s, load_s, loss)
        deadline_s = seconds.min() + random.Random(seed).random() * (sum(compute_s) - seconds.min())
        worst, best = loss.max(axis=1).sum(), lost[seconds <= deadline_s].min()
        shares.append((worst - Levels(compute_s, load_s, loss).least_loss(float(deadline_s)).loss) / (worst - best))
    assert statistics.mean(shares) >= 0.99
    assert sum(share >= 0.95 for share in shares) >= 0.95 * len(shares)


def test_time_within_a_budget_is_within_two_percent_of_the_best_on_average() -> None:
    """The same seeds, four budgets in turn."""
    ratios = []
    for seed in range(60):
        compute_s, load_s, loss = make_levels(seed, 5)
        most_loss = (0.0, 0.1, 0.3, 1.0)[seed % 4]
        seconds, lost = all_level_plans(compute_s, load_s, loss)
        ratios.append(Levels(compute_s, load_s, loss).least_time(most_loss).seconds / seconds[lost <= most_loss + 1e-12].min())
    assert statistics.mean(ratios) <= 1.02


def test_time_to_spare_is_spent_on_quality() -> None:
    """All at the best level is in time, and computing is not."""
    assert Levels([10.0] * 3, [[1.0, 0.2]] * 3, [[0.0, 0.5]] * 3).least_loss(3.0).levels == (0, 0, 0)


def test_a_deadline_that_nothing_keeps_gets_the_quickest_plan() -> None:
    """The answer comes anyway."""
    plan = Levels([10.0] * 3, [[1.0, 0.2]] * 3, [[0.0, 0.5]] * 3).least_loss(0.1)
    assert (plan.is_late, plan.levels) == (True, (1, 1, 1))


def stream(seed: int, level: int | None) -> tuple[bool, float]:
    """Send 6 chunks over a link whose speed wanders; return whether it was late, and the loss.

    `level` is fixed, or None to ask again before each chunk with the remaining time, and the speed of the last chunk as far as it is off.
    """
    rng, n, deadline_s, error = random.Random(seed), 6, 4.0, 0.3
    shares, losses = (1.0, 0.6, 0.35, 0.2), (0.0, 0.02, 0.1, 0.4)
    now_s, loss, pace = 0.0, 0.0, 10 ** rng.uniform(-0.5, 0.5)
    for left in range(n, 0, -1):
        load_s = [[pace * (1 + error) * share for share in shares]] * left
        chosen = level if level is not None else Levels([1e9] * left, load_s, [losses] * left).least_loss(deadline_s - now_s).levels[0]
        pace *= 10 ** rng.uniform(-0.15, 0.15)
        now_s += pace * shares[chosen]
        loss += losses[chosen]
    return now_s > deadline_s, loss


def test_asking_again_beats_every_fixed_level_in_time_or_in_quality() -> None:
    """200 seeded links (CacheGen's check): late less often than every level but the smallest, which loses several times as much."""
    adaptive = [stream(seed, None) for seed in range(200)]
    late, loss = sum(is_late for is_late, _ in adaptive), sum(lost for _, lost in adaptive)
    fixed = [[stream(seed, level) for seed in range(200)] for level in range(4)]
    fixed_late = [sum(is_late for is_late, _ in runs) for runs in fixed]
    assert all(late < others for others in fixed_late[:3])
    assert loss < 0.5 * sum(lost for _, lost in fixed[3])


def test_512_chunks_get_within_a_thousandth_of_the_relaxed_optimum() -> None:
    """Equal chunks, equal levels, computing ruled out: by 256 s, 128 of 512 can have the good level of 1 s beside 384 quick ones."""
    plan = Levels([1e9] * 512, [[1.0, 1 / 3]] * 512, [[0.0, 1.0]] * 512).least_loss(128 + 384 / 3)
    assert plan.loss == 384


@pytest.mark.parametrize(("load_s", "loss"), [([[math.inf]], [[0.0]]), ([[1.0, 2.0]], [[0.0]])])
def test_a_chunk_without_levels_is_refused(load_s: list[list[float]], loss: list[list[float]]) -> None:
    """It could neither be loaded nor reported."""
    with pytest.raises(InvalidInputError, match="finite level each"):
        Levels([1.0], load_s, loss)


def test_a_negative_budget_is_refused() -> None:
    """Nothing loses less than nothing."""
    with pytest.raises(InvalidInputError, match="must not be negative"):
        Levels([], [], []).least_time(-1.0)
