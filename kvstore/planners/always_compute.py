"""Compute everything: what a server without a store does, and the yardstick of the other planners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvstore.planners.cost import CostModel
from kvstore.planners.plan import Hits, Plan, Request
from kvstore.planners.weigh import make_plan, quickest, weigh


@dataclass(frozen=True)
class AlwaysCompute:
    """Load nothing."""

    name: ClassVar[str] = "always_compute"
    is_binding: ClassVar[bool] = True

    def plan(self, request: Request, hits: Hits, costs: CostModel) -> Plan:
        """Return the plan that computes every passage."""
        scale = weigh(request, hits, costs)
        chosen = [quickest(forms) for forms in scale.forms]
        return make_plan(scale, chosen, [False] * len(chosen), lambda _: "this planner never loads", self.name)
