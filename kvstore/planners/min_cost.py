"""Load the passages that bring the first token soonest by the cost model, and compute the others beside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from kvstore.core.errors import InvalidInputError
from kvstore.planners.cost import CostModel
from kvstore.planners.plan import Hits, Plan, Request, format_s
from kvstore.planners.samples import PREFILL
from kvstore.planners.weigh import Scale, Weighed, make_plan, weigh


@dataclass(frozen=True)
class MinCost:
    """Minimise the predicted time to the first token over all sets of passages to load.

    Every loaded passage adds `load_s` to loading and takes `saved_s` from computing, and the time is the larger of two weighted sums of
    both: a knapsack-like problem. Its relaxation loads passages in the order of load_s / saved_s up to a break. So: sort by that ratio,
    find the best break (all and none are among the breaks, so neither is ever better), fix the passages far from it, and try every subset
    of the `core` nearest to it. Exact for up to `core` passages; O(n log n + 2**core) for n.

    Parameters
    ----------
    core : int
        Passages around the break of which every subset is tried, within 1 and 16.
    """

    name: ClassVar[str] = "min_cost"
    core: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.core <= 16:
            raise InvalidInputError(f"core must be within 1 and 16, because 2**core sets are tried; got {self.core}")

    def plan(self, request: Request, hits: Hits, costs: CostModel) -> Plan:
        """Return the plan with the least predicted time; equal times go to the one that loads for less long."""
        scale = weigh(request, hits, costs)
        loaded = _choose(scale, self.core)
        stored = frozenset(i for i, w in enumerate(scale.passages) if w.offer)
        all_computed, all_loaded = scale.predict(frozenset()), scale.predict(stored)
        note = f"{format_s(all_computed.ttft_s)} computing all, {format_s(all_loaded.ttft_s)} loading the {len(stored)} stored"
        return make_plan(scale, loaded, lambda w: _reason(w, costs), note)


def _choose(scale: Scale, core: int) -> frozenset[int]:
    """Return the places of the passages to load."""
    worthwhile = [(w.load_s / w.saved_s, i) for i, w in enumerate(scale.passages) if w.saved_s > 0 and math.isfinite(w.load_s)]
    order = [i for _, i in sorted(worthwhile)]
    first = max(0, min(_best_break(scale, order) - core // 2, len(order) - core))
    fixed = frozenset(order[:first])
    return fixed | _best_subset(scale, fixed, order[first : first + core])


def _best_break(scale: Scale, order: list[int]) -> int:
    """Return how many passages to load when they are loaded in this order."""
    compute_s, load_s = scale.compute_s(frozenset()), 0.0
    best, best_s = 0, scale.costs.ttft(compute_s, load_s)
    for n_loaded, i in enumerate(order, start=1):
        compute_s -= scale.passages[i].saved_s
        load_s += scale.passages[i].load_s
        if (ttft_s := scale.costs.ttft(compute_s, load_s)) < best_s:
            best, best_s = n_loaded, ttft_s
    return best


def _best_subset(scale: Scale, fixed: frozenset[int], core: list[int]) -> frozenset[int]:
    """Return the subset of `core` that is best to load beside `fixed`."""
    sums = [(scale.compute_s(fixed), scale.load_s(fixed))]  # (computing, loading) of subset 0, 1, 2, ... read as bit masks
    for i in core:
        weighed = scale.passages[i]
        sums += [(compute_s - weighed.saved_s, load_s + weighed.load_s) for compute_s, load_s in sums]
    best = min(range(len(sums)), key=lambda mask: (scale.costs.ttft(*sums[mask]), sums[mask][1]))
    return frozenset(i for bit, i in enumerate(core) if best >> bit & 1)


def _reason(weighed: Weighed, costs: CostModel) -> str:
    """Say why a passage with an offer is computed."""
    if PREFILL not in costs.costs:
        return "prefill was never measured, so nothing is known to be faster"
    if not math.isfinite(weighed.load_s):
        return "this tier, this codec or splicing was never measured"
    if weighed.saved_s <= 0:
        return "the recompute policy computes all its rows again"
    return "loading it too would not bring the first token sooner"
