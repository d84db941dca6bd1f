"""Load whatever is stored, however slow, also from tiers that were never measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvstore.planners.cost import CostModel
from kvstore.planners.plan import Hits, Plan, Request
from kvstore.planners.weigh import make_plan, weigh


@dataclass(frozen=True)
class AlwaysLoad:
    """Load every passage that has an offer, in its quickest form."""

    name: ClassVar[str] = "always_load"

    def plan(self, request: Request, hits: Hits, costs: CostModel) -> Plan:
        """Return the plan that computes only what nobody stored."""
        scale = weigh(request, hits, costs)
        stored = frozenset(i for i, weighed in enumerate(scale.passages) if weighed.offer)
        return make_plan(scale, stored, lambda _: "", self.name)
