"""What a target for the first token changed, in words, and which plans keep to one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from kvstore.planners.cost import CostModel
from kvstore.planners.plan import Request
from kvstore.planners.planner import find_planner
from kvworker.answer.policy import parse_policy
from kvworker.answer.target import Way, effect
from kvworker.quality.gate import Choice

REQUEST = Request((), 1)


def way(spec: str, predicted_s: float | None) -> Way:
    """Return a policy whose plan is predicted to take so long, give or take 200 ms."""
    plan = find_planner("min_cost").plan(REQUEST, {}, CostModel())
    return Way(Choice(parse_policy(spec), ""), REQUEST, replace(plan, predicted_s=predicted_s, error_s=0.2))


@pytest.mark.parametrize(("predicted_s", "keeps"), [(0.8, True), (0.81, False), (None, False)])
def test_a_plan_keeps_to_a_target_with_its_error(predicted_s: float | None, keeps: bool) -> None:
    """And where something was never measured nobody knows."""
    assert way("none", predicted_s).keeps_to(1.0) is keeps


@pytest.mark.parametrize(
    ("ways", "words"),
    [
        ([way("exact", 0.5)], "leaves time for the most careful policy that may be chosen: exact (500 ms +- 200 ms)"),
        ([way("exact", 0.9), way("none", 0.5)], "took none (500 ms +- 200 ms) instead of exact (900 ms +- 200 ms)"),
        ([way("exact", 3.0), way("none", 2.0)], "is not promised by any policy that may be chosen: none (2 s +- 200 ms)"),
        ([way("exact", None)], "is not promised by any policy that may be chosen: exact (unknown +- 200 ms)"),
    ],
)
def test_the_effect_names_what_was_chosen_and_what_it_stands_for(ways: Sequence[Way], words: str) -> None:
    """With what was predicted of each."""
    assert effect(1.0, ways) == f"a first token in 1 s {words}"


def test_no_target_has_no_effect() -> None:
    """0 stands for none."""
    assert effect(0.0, [way("none", 0.5)]) == ""
