"""The two planners that do not weigh."""

from __future__ import annotations

from kvstore.planners.always_compute import AlwaysCompute
from kvstore.planners.always_load import AlwaysLoad
from kvstore.planners.cost import CostModel
from kvstore.planners.linear import LinearCost
from kvstore.planners.plan import Load, Offer, PassageAsk, Request

REQUEST = Request((PassageAsk(0, 64, 0), PassageAsk(1, 64, 64)), 4)
SLOW = Offer("disk", 1000, b"s", "raw")
QUICK = Offer("memory", 2000, b"q", "raw")
COSTS = CostModel(
    {
        "prefill": LinearCost((1e-3, 1e-5, 1e-8)),
        "tier disk": LinearCost((0.0, 1e-3)),
        "tier memory": LinearCost((0.0, 1e-9)),
        "codec raw": LinearCost((0.0, 0.0)),
        "splice": LinearCost((0.0, 0.0)),
    }
)


def test_always_compute_predicts_a_plain_prefill() -> None:
    """132 rows that see 66.5 keys on average."""
    plan = AlwaysCompute().plan(REQUEST, {0: [QUICK]}, COSTS)
    assert plan.predicted_s == COSTS.predict_prefill(132, 66.5)


def test_always_load_takes_the_quickest_form() -> None:
    """The quicker one is the larger one here, from a faster tier."""
    plan = AlwaysLoad().plan(REQUEST, {0: [SLOW, QUICK]}, COSTS)
    assert [item.offer for item in plan.items if isinstance(item, Load)] == [QUICK]


def test_always_load_loads_even_where_computing_is_faster() -> None:
    """1 s from the disk against 1 ms of computing."""
    assert isinstance(AlwaysLoad().plan(REQUEST, {1: [SLOW]}, COSTS).items[1], Load)


def test_always_load_takes_the_smallest_form_when_no_speed_is_known() -> None:
    """Fewer bytes are the best guess there is."""
    plan = AlwaysLoad().plan(REQUEST, {0: [QUICK, SLOW]}, CostModel())
    assert [item.offer for item in plan.items if isinstance(item, Load)] == [SLOW]


def test_always_load_prefers_a_measured_form_over_a_smaller_unmeasured_one() -> None:
    """Unknown is not fast."""
    unknown = Offer("redis", 1, b"u", "raw")
    plan = AlwaysLoad().plan(REQUEST, {0: [unknown, SLOW]}, COSTS)
    assert [item.offer for item in plan.items if isinstance(item, Load)] == [SLOW]


def test_equally_quick_forms_keep_the_order_of_preference() -> None:
    """The caller puts the form with the better quality first."""
    twin = Offer("memory", 2000, b"t", "raw")
    plan = AlwaysLoad().plan(REQUEST, {0: [twin, QUICK]}, COSTS)
    assert [item.offer for item in plan.items if isinstance(item, Load)] == [twin]


def test_a_reading_of_worse_quality_is_not_taken_for_its_speed() -> None:
    """Speed is weighed among the offers of the best rank."""
    worse = Offer("memory", 1, b"q", "raw", "alone", 1)
    plan = AlwaysLoad().plan(REQUEST, {0: [worse, SLOW], 1: [worse]}, COSTS)
    assert [item.offer for item in plan.items if isinstance(item, Load)] == [SLOW, worse]
