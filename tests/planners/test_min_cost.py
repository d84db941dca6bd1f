"""MinCost against an oracle that tries everything, and at the limits."""

from __future__ import annotations

import math
import random
from itertools import product

import pytest

from kvstore.core.errors import InvalidInputError
from kvstore.planners.always_compute import AlwaysCompute
from kvstore.planners.always_load import AlwaysLoad
from kvstore.planners.cost import CostModel
from kvstore.planners.linear import LinearCost
from kvstore.planners.min_cost import MinCost
from kvstore.planners.plan import Compute, Hits, Load, Offer, PassageAsk, Request

TIERS, CODECS = ("memory", "disk", "redis", "remote"), ("raw", "kivi")
Case = tuple[Request, dict[int, list[Offer]], CostModel]


def make_case(seed: int, n_passages: int, most_offers: int = 2, byte_s: float | None = None) -> Case:
    """Return a random request, one or more offers per passage, and costs spread over several orders of magnitude.

    With `byte_s` every step of a load costs nothing but that many seconds per byte read.
    """
    rng = random.Random(seed)
    asks, start = [], 0
    for index in range(n_passages):
        n_tokens = rng.randint(2, 600)
        asks.append(PassageAsk(index, n_tokens, start, rng.randint(0, min(n_tokens - 1, 16))))
        start += n_tokens
    hits = {
        ask.index: [
            Offer(rng.choice(TIERS), ask.n_tokens * rng.choice((512, 2048)), bytes([i]), rng.choice(CODECS))
            for i in range(rng.randint(1, most_offers))
        ]
        for ask in asks
    }
    costs = {"prefill": LinearCost((1e-3, 10 ** rng.uniform(-6, -3), 10 ** rng.uniform(-10, -7)))}
    for subject, unit_s in ([f"tier {t}" for t in TIERS], 1e-9), ([f"codec {c}" for c in CODECS], 1e-10), (["splice"], 1e-7):
        for name in subject:
            costs[name] = LinearCost((10 ** rng.uniform(-5, -3), unit_s * 10 ** rng.uniform(-1, 2)))
            if byte_s is not None:
                costs[name] = LinearCost((0.0, byte_s if name.startswith("tier") else 0.0))
    return Request(tuple(asks), rng.randint(1, 50)), hits, CostModel(costs, rng.choice((0.0, 0.5, 1.0, rng.random())))


def known(seconds: float | None) -> float:
    """Return a prediction that must not be missing."""
    assert seconds is not None
    return seconds


def predict(request: Request, offers: tuple[Offer | None, ...], costs: CostModel) -> float:
    """Return the time to the first token when each passage is loaded by its offer or, for None, computed; counted row by row."""
    rows, load_s = list(range(request.n_tokens - request.question_tokens, request.n_tokens)), 0.0
    pairs = float(sum(row + 1 for row in rows))
    n_rows = len(rows)
    for ask, offer in zip(request.passages, offers, strict=True):
        n_computed = ask.patch_rows if offer else ask.n_tokens
        n_rows += n_computed
        # patched rows are taken to lie evenly over the passage
        pairs += n_computed / ask.n_tokens * sum(row + 1 for row in range(ask.start, ask.start + ask.n_tokens))
        load_s += known(costs.predict_load(offer.tier, offer.nbytes, offer.codec, ask.n_tokens)) if offer else 0.0
    return costs.ttft(known(costs.predict_prefill(n_rows, pairs / n_rows)), load_s)


def oracle(request: Request, hits: Hits, costs: CostModel) -> float:
    """Return the least time over every choice of computing or of any offer, for every passage."""
    choices = [(None, *hits[ask.index]) for ask in request.passages]
    return min(predict(request, offers, costs) for offers in product(*choices))


@pytest.mark.parametrize("seed", range(60))
def test_up_to_eight_passages_the_plan_is_optimal(seed: int) -> None:
    """The oracle tries every form of every passage, up to 3 ** 5 or 2 ** 8 choices."""
    request, hits, costs = make_case(seed, 8, 1) if seed % 2 else make_case(seed, 5, 2)
    plan = MinCost().plan(request, hits, costs)
    assert plan.predicted_s == pytest.approx(oracle(request, hits, costs), rel=1e-9)


@pytest.mark.parametrize("seed", range(60))
def test_the_prediction_is_that_of_the_items(seed: int) -> None:
    """Counted row by row from what the plan says it will do."""
    request, hits, costs = make_case(seed, 20)
    plan = MinCost().plan(request, hits, costs)
    offers = tuple(item.offer if isinstance(item, Load) else None for item in plan.items)
    assert plan.predicted_s == pytest.approx(predict(request, offers, costs), rel=1e-9)


def test_beyond_the_core_the_plan_stays_within_two_percent_of_the_best() -> None:
    """12 passages, 200 seeded cases; the worst was 1.3 % above the optimum, the mean 0.01 %."""
    ratios = []
    for seed in range(200):
        request, hits, costs = make_case(seed, 12)
        ratios.append(
            known(MinCost().plan(request, hits, costs).predicted_s) / known(MinCost(core=12).plan(request, hits, costs).predicted_s)
        )
    assert max(ratios) <= 1.02
    assert sum(ratios) / len(ratios) <= 1.001


def test_a_core_of_twelve_is_optimal_for_twelve_passages() -> None:
    """So that the test above has a true optimum to compare with."""
    request, hits, costs = make_case(7, 12, 1)
    assert MinCost(core=12).plan(request, hits, costs).predicted_s == pytest.approx(oracle(request, hits, costs), rel=1e-9)


@pytest.mark.parametrize("n_passages", [1, 3, 9, 40, 512])
def test_it_is_never_above_computing_all_or_loading_all(n_passages: int) -> None:
    """Whatever else it does; 20 seeded cases each."""
    for seed in range(20):
        case = make_case(seed, n_passages)
        simple = min(known(planner.plan(*case).predicted_s) for planner in (AlwaysCompute(), AlwaysLoad()))
        assert known(MinCost().plan(*case).predicted_s) <= simple * (1 + 1e-12)  # sums of the same numbers in another order


@pytest.mark.parametrize("n_passages", [1, 8, 100])
def test_without_bandwidth_everything_is_computed(n_passages: int) -> None:
    """One second per byte."""
    plan = MinCost().plan(*make_case(1, n_passages, byte_s=1.0))
    assert all(isinstance(item, Compute) for item in plan.items)


@pytest.mark.parametrize("n_passages", [1, 8, 100])
def test_with_unlimited_bandwidth_everything_is_loaded(n_passages: int) -> None:
    """No time per byte, no latency."""
    plan = MinCost().plan(*make_case(1, n_passages, byte_s=0.0))
    assert all(isinstance(item, Load) for item in plan.items)


def test_with_full_overlap_loading_and_computing_share_the_work() -> None:
    """Ten equal passages, each 1 s to compute and 1 s to load: five of each take 5 s."""
    request = Request(tuple(PassageAsk(i, 100, 100 * i) for i in range(10)), 1)
    hits = {i: [Offer("memory", 1000, b"v", "raw")] for i in range(10)}
    free = LinearCost((0.0, 0.0))
    costs = {"prefill": LinearCost((0.0, 0.01, 0.0)), "tier memory": LinearCost((0.0, 1e-3)), "codec raw": free, "splice": free}
    plan = MinCost().plan(request, hits, CostModel(costs, overlap=1.0))
    assert sum(isinstance(item, Load) for item in plan.items) == 5
    assert plan.predicted_s == pytest.approx(5.01)


def test_late_passages_are_loaded_before_early_ones() -> None:
    """A late row sees more keys and costs more to compute; the same bytes cost the same to load (Cake, 2410.03065)."""
    request = Request(tuple(PassageAsk(i, 100, 100 * i) for i in range(20)), 1)
    hits = {i: [Offer("memory", 1000, b"v", "raw")] for i in range(20)}
    free = LinearCost((0.0, 0.0))
    costs = {"prefill": LinearCost((0.0, 0.0, 1e-5)), "tier memory": LinearCost((0.0, 1e-3)), "codec raw": free, "splice": free}
    kinds = [type(item) for item in MinCost().plan(request, hits, CostModel(costs, overlap=0.0)).items]
    assert kinds == [Compute] * 10 + [Load] * 10  # 100 rows that see 1000 keys on average cost the 1 s that loading does


def test_what_was_never_measured_is_computed() -> None:
    """An unknown tier is not assumed to be fast."""
    request, hits, costs = make_case(1, 3, byte_s=0.0)
    plan = MinCost().plan(request, {i: [Offer("new", 1, b"v", "raw")] for i in hits}, costs)
    assert {item.reason for item in plan.items if isinstance(item, Compute)} == {"this tier, this codec or splicing was never measured"}


def test_nothing_is_loaded_before_prefill_was_measured() -> None:
    """Computing is exact; loading has to be known to be faster."""
    request, hits, costs = make_case(1, 3, byte_s=0.0)
    blind = CostModel({subject: cost for subject, cost in costs.costs.items() if subject != "prefill"})
    plan = MinCost().plan(request, hits, blind)
    assert {type(item) for item in plan.items} == {Compute}


def test_a_passage_whose_rows_are_all_patched_is_not_loaded() -> None:
    """Loading it would save nothing."""
    _, _, costs = make_case(1, 1, byte_s=0.0)
    plan = MinCost().plan(Request((PassageAsk(0, 8, 0, patch_rows=8),), 1), {0: [Offer("memory", 8, b"v", "raw")]}, costs)
    assert isinstance(plan.items[0], Compute)


@pytest.mark.parametrize("core", [0, 17])
def test_a_core_that_cannot_be_enumerated_is_refused(core: int) -> None:
    """2 ** 17 sets take longer than what they could save."""
    with pytest.raises(InvalidInputError, match="core must be within 1 and 16"):
        MinCost(core=core)


def test_the_plan_names_its_alternatives() -> None:
    """A report shows what was gained."""
    plan = MinCost().plan(*make_case(3, 8))
    assert "computing all" in plan.why
    assert "loading the 8 stored" in plan.why
    assert math.isfinite(known(plan.predicted_s))
