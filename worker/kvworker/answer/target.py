"""Spend the time that a target for the first token leaves on careful policies, and say what the target changed: pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kvstore.planners.plan import Plan, Request, format_s
from kvworker.quality.gate import Choice


class Way(NamedTuple):
    """A policy, what a planner is asked under it, and its plan."""

    choice: Choice
    request: Request
    plan: Plan

    def keeps_to(self, target_s: float) -> bool:
        """Tell whether the first token is predicted in time even where the prediction errs as much as it does."""
        return self.plan.predicted_s is not None and self.plan.predicted_s + (self.plan.error_s or 0.0) <= target_s


def effect(target_s: float, ways: Sequence[Way]) -> str:
    """Say what a target changed, "" for none (0); `ways` are what was planned, the most careful first and the chosen one last."""
    if not target_s:
        return ""
    first, chosen = ways[0], ways[-1]
    head = f"a first token in {format_s(target_s)}"
    if not chosen.keeps_to(target_s):
        return f"{head} is not promised by any policy that may be chosen: {_predicted(chosen)}"
    if len(ways) == 1:
        return f"{head} leaves time for the most careful policy that may be chosen: {_predicted(chosen)}"
    return f"{head} took {_predicted(chosen)} instead of {_predicted(first)}"


def _predicted(way: Way) -> str:
    """Name a policy with the time to the first token that is predicted under it."""
    error = f" +- {format_s(way.plan.error_s)}" if way.plan.error_s else ""
    return f"{way.choice.policy.spec} ({format_s(way.plan.predicted_s)}{error})"
