"""Compute everything: what a server without a store does, and the yardstick of the other planners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvstore.planners.cost import CostModel
from kvstore.planners.plan import Hits, Plan, Request
from kvstore.planners.weigh import make_plan, weigh


@dataclass(frozen=True)
class AlwaysCompute:
    """Load nothing."""

    name: ClassVar[str] = "always_compute"

    def plan(self, request: Request, hits: Hits, costs: CostModel) -> Plan:
        """Return the plan that computes every passage."""
        return make_plan(weigh(request, hits, costs), frozenset(), lambda _: "this planner never loads", self.name)
