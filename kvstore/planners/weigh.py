"""What every planner shares: the cost of computing and of loading each passage, and the plan that a choice amounts to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from kvstore.core.errors import InvalidInputError
from kvstore.planners.cost import CostModel, LoadRates
from kvstore.planners.plan import Compute, Hits, Load, Offer, PassageAsk, Plan, Request, format_s
from kvstore.planners.samples import PREFILL


class Weighed(NamedTuple):
    """One passage with its quickest offer of the best rank.

    Seconds of computing it, of computing what is patched when it is loaded, and of loading it: `load_s` is infinite without an offer,
    or where it was never measured; `saved_s` is compute_s - patch_s.
    """

    ask: PassageAsk
    offer: Offer | None
    compute_s: float
    patch_s: float
    load_s: float
    saved_s: float


class Prediction(NamedTuple):
    """Seconds to the first token, and of computing and loading before they overlap; None where they were never measured."""

    ttft_s: float | None
    compute_s: float | None
    load_s: float | None


@dataclass(frozen=True)
class Scale:
    """All passages weighed, and the seconds of computing that no plan can avoid.

    Computing counts as free while it was never measured, so that nothing looks worth loading.
    """

    passages: tuple[Weighed, ...]
    unavoidable_s: float
    costs: CostModel

    def compute_s(self, loaded: Set[int]) -> float:
        """Return the seconds of computing when the passages at these places are loaded."""
        return self.unavoidable_s + sum(w.patch_s if i in loaded else w.compute_s for i, w in enumerate(self.passages))

    def load_s(self, loaded: Set[int]) -> float:
        """Return the seconds of loading the passages at these places, one after the other."""
        return sum(self.passages[i].load_s for i in sorted(loaded))

    def predict(self, loaded: Set[int]) -> Prediction:
        """Return the seconds of loading the passages at these places and computing the others, as far as they are known."""
        compute_s = self.compute_s(loaded) if PREFILL in self.costs.costs else None
        load_s = self.load_s(loaded)
        if compute_s is None or math.isinf(load_s):
            return Prediction(None, compute_s, None if math.isinf(load_s) else load_s)
        return Prediction(self.costs.ttft(compute_s, load_s), compute_s, load_s)


def weigh(request: Request, hits: Hits, costs: CostModel) -> Scale:
    """Return the costs of every passage. Offers for a passage that the request lacks raise InvalidInputError."""
    if strange := set(hits) - {ask.index for ask in request.passages}:
        raise InvalidInputError(f"hits hold offers for passages {sorted(strange)}, which the request does not have")
    prefill = costs.costs.get(PREFILL)
    pass_s, row_s, pair_s = prefill.coefficients if prefill else (0.0, 0.0, 0.0)
    rates: dict[tuple[str, str], LoadRates | None] = {}
    weighed = []
    for ask in request.passages:
        one_row_s = row_s + pair_s * (ask.start + (ask.n_tokens + 1) / 2)  # a row sees the keys up to its own
        offer, load_s = _quickest(hits.get(ask.index, ()), ask.n_tokens, costs, rates)
        compute_s, patch_s = ask.n_tokens * one_row_s, ask.patch_rows * one_row_s
        weighed.append(Weighed(ask, offer, compute_s, patch_s, load_s, compute_s - patch_s))
    question_context = request.n_tokens - (request.question_tokens - 1) / 2
    return Scale(tuple(weighed), pass_s + request.question_tokens * (row_s + pair_s * question_context), costs)


def _quickest(
    offers: Sequence[Offer], n_tokens: int, costs: CostModel, rates: dict[tuple[str, str], LoadRates | None]
) -> tuple[Offer | None, float]:
    """Return the offer of the best rank that loads soonest, and its seconds.

    Unmeasured ones come last, the smallest first; among equals the first. `rates` remembers what was looked up.
    """
    best, best_s = None, math.inf
    best_rank = min((offer.rank for offer in offers), default=0)
    for offer in offers:
        if offer.rank != best_rank:
            continue
        way = (offer.tier, offer.codec)
        if way not in rates:
            rates[way] = costs.load_rates(*way)
        rate = rates[way]
        load_s = rate.fixed_s + rate.byte_s * offer.nbytes + rate.token_s * n_tokens if rate else math.inf
        if best is None or load_s < best_s or (load_s == best_s == math.inf and offer.nbytes < best.nbytes):
            best, best_s = offer, load_s
    return best, best_s


def make_plan(scale: Scale, loaded: Set[int], reason: Callable[[Weighed], str], note: str) -> Plan:
    """Return the plan that loads the passages at the places `loaded` and computes the others, each for its `reason`."""
    items = tuple(_load(w) if i in loaded else _compute(w, reason(w)) for i, w in enumerate(scale.passages))
    ttft_s, compute_s, load_s = scale.predict(loaded)
    why = f"loads {len(loaded)} of {len(items)} passages, first token predicted after {format_s(ttft_s)}; {note}"
    return Plan(items, ttft_s, compute_s, load_s, why)


def _load(weighed: Weighed) -> Load:
    """Return the item that loads the passage; it must have an offer."""
    assert weighed.offer is not None
    return Load(weighed.ask.index, weighed.offer, weighed.ask.patch_rows, weighed.load_s, weighed.saved_s)


def _compute(weighed: Weighed, reason: str) -> Compute:
    """Return the item that computes the passage."""
    because = reason if weighed.offer else "nothing of it is stored"
    return Compute(weighed.ask.index, weighed.ask.n_tokens, weighed.compute_s, because, weighed.offer, weighed.load_s)
