"""Load whatever is stored, however slow, also from tiers that were never measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvstore.planners.cost import CostModel
from kvstore.planners.plan import Hits, Plan, Request
from kvstore.planners.weigh import make_plan, quickest, weigh


@dataclass(frozen=True)
class AlwaysLoad:
    """Load every passage that has an offer, in its quickest form."""

    name: ClassVar[str] = "always_load"
    is_binding: ClassVar[bool] = True

    def plan(self, request: Request, hits: Hits, costs: CostModel) -> Plan:
        """Return the plan that computes only what nobody stored."""
        scale = weigh(request, hits, costs)
        chosen = [quickest(forms) for forms in scale.forms]
        return make_plan(scale, chosen, [form is not None for form in chosen], lambda _: "", self.name)
