"""What every planner owes its caller, whatever is stored and however fast anything is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.core.discovery import known_names
from kvstore.core.errors import InvalidInputError
from kvstore.planners.cost import CostModel
from kvstore.planners.linear import LinearCost
from kvstore.planners.plan import Compute, Hits, Load, Offer, PassageAsk, Plan, Request
from kvstore.planners.planner import find_planner

PLANNERS = known_names("kvstore.planners")  # a new planner file joins by itself
TIERS, CODECS = ("memory", "disk", "redis", "unmeasured"), ("raw", "int8", "unmeasured")
SECONDS = st.floats(1e-12, 1e-2)

offers = st.builds(
    Offer,
    tier=st.sampled_from(TIERS),
    nbytes=st.integers(1, 1 << 24),
    variant=st.binary(min_size=1, max_size=2),
    codec=st.sampled_from(CODECS),
)


@st.composite
def requests(draw: st.DrawFn, most_passages: int = 12) -> Request:
    """Passages with gaps between them, numbered in an arbitrary order."""
    indices = draw(st.permutations(range(draw(st.integers(0, most_passages)))))
    asks, start = [], 0
    for index in indices:
        start += draw(st.integers(0, 3))
        n_tokens = draw(st.integers(1, 600))
        asks.append(PassageAsk(index, n_tokens, start, draw(st.integers(0, n_tokens))))
        start += n_tokens
    return Request(tuple(asks), draw(st.integers(1, 40)))


@st.composite
def cost_models(draw: st.DrawFn) -> CostModel:
    """Prefill may or may not have been measured; one tier and one codec never were."""
    subjects = [f"tier {tier}" for tier in TIERS[:-1]] + [f"codec {codec}" for codec in CODECS[:-1]] + ["splice"]
    costs = {subject: LinearCost((draw(SECONDS), draw(SECONDS) / 1e4)) for subject in subjects}
    if draw(st.booleans()):
        costs["prefill"] = LinearCost((draw(SECONDS), draw(SECONDS), draw(SECONDS) / 1e3))
    return CostModel(costs, draw(st.sampled_from([0.0, 0.5, 1.0])))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Request, Hits, CostModel]:
    """A request, none to three offers for each of its passages, and costs."""
    request = draw(requests())
    hits = {ask.index: draw(st.lists(offers, max_size=3)) for ask in request.passages if draw(st.booleans())}
    return request, hits, draw(cost_models())


def loaded(plan: Plan) -> list[Load]:
    """Return what the plan loads."""
    return [item for item in plan.items if isinstance(item, Load)]


def test_an_unknown_planner_is_refused_with_the_known_ones() -> None:
    """The name comes from a configuration that a person wrote."""
    with pytest.raises(InvalidInputError, match=r"no planner 'fastest'; known: always_compute, always_load, min_cost"):
        find_planner("fastest")


@pytest.mark.parametrize("name", PLANNERS)
class TestEveryPlanner:
    """The contract."""

    @settings(max_examples=60)
    @given(case=cases())
    def test_every_passage_is_decided_exactly_once_and_in_order(self, name: str, case: tuple[Request, Hits, CostModel]) -> None:
        """The executor walks the items beside the prompt."""
        request, hits, costs = case
        plan = find_planner(name).plan(request, hits, costs)
        assert [item.index for item in plan.items] == [ask.index for ask in request.passages]

    @settings(max_examples=60)
    @given(case=cases())
    def test_only_what_is_offered_is_loaded(self, name: str, case: tuple[Request, Hits, CostModel]) -> None:
        """So what is absent is computed."""
        request, hits, costs = case
        plan = find_planner(name).plan(request, hits, costs)
        assert all(item.offer in hits.get(item.index, ()) for item in loaded(plan))

    @settings(max_examples=60)
    @given(case=cases())
    def test_rows_are_those_of_the_request(self, name: str, case: tuple[Request, Hits, CostModel]) -> None:
        """A computed passage is computed whole, a loaded one patched as the policy said."""
        request, hits, costs = case
        plan = find_planner(name).plan(request, hits, costs)
        rows = [item.patch_rows if isinstance(item, Load) else item.rows for item in plan.items]
        wanted = [
            ask.patch_rows if isinstance(item, Load) else ask.n_tokens for ask, item in zip(request.passages, plan.items, strict=True)
        ]
        assert rows == wanted

    @settings(max_examples=60)
    @given(case=cases())
    def test_equal_input_gives_an_equal_plan(self, name: str, case: tuple[Request, Hits, CostModel]) -> None:
        """Whatever order the hits were put into their mapping."""
        request, hits, costs = case
        backwards = dict(reversed(list(hits.items())))
        assert find_planner(name).plan(request, backwards, replace(costs)) == find_planner(name).plan(request, hits, costs)

    @settings(max_examples=60)
    @given(case=cases())
    def test_the_prediction_is_finite_or_says_that_it_is_unknown(self, name: str, case: tuple[Request, Hits, CostModel]) -> None:
        """It is unknown exactly when prefill, or a step of something loaded, was never measured."""
        request, hits, costs = case
        plan = find_planner(name).plan(request, hits, costs)
        is_known = "prefill" in costs.costs and all(math.isfinite(item.load_s) for item in loaded(plan))
        assert (plan.predicted_s is not None) == is_known
        assert plan.predicted_s is None or (math.isfinite(plan.predicted_s) and plan.predicted_s > 0)

    @settings(max_examples=30)
    @given(case=cases())
    def test_every_decision_and_the_plan_say_why(self, name: str, case: tuple[Request, Hits, CostModel]) -> None:
        """Reports show these lines; no infinite or undefined number may stand in them."""
        request, hits, costs = case
        plan = find_planner(name).plan(request, hits, costs)
        for line in (plan.why, *(item.why for item in plan.items)):
            assert line
            assert not {"inf", "nan", "None"} & set(line.replace(",", " ").split())

    def test_an_empty_prompt_gives_a_plan_with_no_items(self, name: str) -> None:
        """A question without passages is still answered."""
        plan = find_planner(name).plan(Request((), 3), {}, CostModel({"prefill": LinearCost((0.5, 0.0, 0.0))}))
        assert (plan.items, plan.predicted_s) == ((), 0.5)

    def test_nothing_known_at_all_still_gives_a_plan(self, name: str) -> None:
        """The first request may come before any calibration."""
        plan = find_planner(name).plan(Request((PassageAsk(0, 8, 0),), 1), {}, CostModel())
        assert [type(item) for item in plan.items] == [Compute]

    def test_offers_for_a_passage_that_is_not_asked_for_are_an_error(self, name: str) -> None:
        """They would mean that passages were counted in two ways."""
        with pytest.raises(InvalidInputError, match=r"passages \[1\]"):
            find_planner(name).plan(Request((PassageAsk(0, 8, 0),), 1), {1: []}, CostModel())
