"""P1 against every split, at its limits, and on the example of Cake's paper."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.core.errors import InvalidInputError
from kvstore.planners.prefix_split import split_prefix
from kvstore.planners.share_out import NOWHERE, Work
from kvworker.bench.planner_cases import A100_LOAD_S, A100_S
from kvworker.bench.planner_oracles import best_prefix, best_shares

seconds = st.floats(1e-6, 10.0)
chunks = st.lists(st.tuples(seconds, seconds), max_size=20)


@settings(max_examples=200)
@given(costs=chunks)
def test_no_split_is_sooner(costs: list[tuple[float, float]]) -> None:
    """Whatever the single costs are: one term rises with k, the other falls."""
    compute_s, load_s = [c for c, _ in costs], [s for _, s in costs]
    assert split_prefix(compute_s, load_s).seconds == pytest.approx(best_prefix(compute_s, load_s), rel=1e-9)


@settings(max_examples=100)
@given(costs=chunks)
def test_the_split_takes_as_long_as_its_longer_half(costs: list[tuple[float, float]]) -> None:
    """What it reports is what it chose."""
    compute_s, load_s = [c for c, _ in costs], [s for _, s in costs]
    k = (split := split_prefix(compute_s, load_s)).first_loaded
    assert split.seconds == pytest.approx(max(sum(compute_s[:k]), sum(load_s[k:])), rel=1e-9)


@settings(max_examples=100)
@given(costs=st.lists(st.tuples(seconds, seconds, st.booleans()), min_size=1, max_size=8))
def test_chunks_that_nobody_stored_are_computed_where_they_stand(costs: list[tuple[float, float, bool]]) -> None:
    """Never better than any set of chunks on the timeline, never worse than computing all or loading what is stored."""
    compute_s = [c for c, _, _ in costs]
    load_s = [s if stored else math.inf for _, s, stored in costs]
    lanes = [0 if stored else NOWHERE for _, _, stored in costs]
    work = Work(compute_s, lanes, [s if s < math.inf else 0.0 for s in load_s], [0.0] * len(costs))
    found_s = split_prefix(compute_s, load_s).seconds
    assert best_shares(work, [0.0]) * (1 - 1e-9) <= found_s <= sum(compute_s) * (1 + 1e-9)


@pytest.mark.parametrize("n", [1, 7, 512])
def test_an_infinitely_fast_link_loads_everything(n: int) -> None:
    """B to infinity: k = 0."""
    assert split_prefix([1.0] * n, [0.0] * n).first_loaded == 0


@pytest.mark.parametrize("n", [1, 7, 512])
def test_a_dead_link_computes_everything(n: int) -> None:
    """B to 0: k = n."""
    assert split_prefix([1.0] * n, [1e9] * n).first_loaded == n


def test_the_example_of_the_paper_comes_out() -> None:
    """Cake's A100 curve, 64 chunks: computing 4825.6 ms, loading 3993.6 ms, both 1934.4 ms."""
    split = split_prefix(A100_S, [A100_LOAD_S] * len(A100_S))
    assert (split.first_loaded, round(split.seconds * 1e3, 1)) == (33, 1934.4)


def test_no_chunks_take_no_time() -> None:
    """A prompt without passages."""
    assert split_prefix([], []) == (0, 0.0, 0.0, 0.0)


def test_costs_for_different_numbers_of_chunks_are_refused() -> None:
    """One of the lists is wrong."""
    with pytest.raises(InvalidInputError, match="2 chunks to compute and 1 to load"):
        split_prefix([1.0, 1.0], [1.0])
