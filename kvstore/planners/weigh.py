"""What every planner shares: a request in seconds, per passage and per form of it, and the plan that a choice amounts to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kvstore.core.errors import InvalidInputError
from kvstore.planners.cost import CostModel, LoadRates
from kvstore.planners.makespan import Option
from kvstore.planners.plan import Compute, Hits, Load, Offer, PassageAsk, Plan, Request, Terms, format_s
from kvstore.planners.samples import PREFILL, Manner, Pass
from kvstore.planners.share_out import NOWHERE, Timeline, Work, lay_out

STEP_ROWS = 512  # a step of about so many rows shares what every pass costs


class Form(NamedTuple):
    """One offer in seconds: of its lane, and of the device that lands it and computes its repaired rows.

    Both are infinite where a step of the load was never measured.
    """

    offer: Offer
    lane: int
    read_s: float
    land_s: float
    patch_rows: int


@dataclass(frozen=True)
class Scale:
    """A request in seconds.

    Computing counts as free while it was never measured, so that nothing looks worth loading.

    Parameters
    ----------
    compute_s : tuple of float
        Computing each passage, in a step of the race.
    forms : tuple of tuples of Form
        What can be loaded of each passage, in the order of the hits; only exact forms where there are any that were measured.
    tiers, ready_s : tuple of str, tuple of float
        The tier behind each lane, and when it is free.
    question_s, all_computed_s : float
        The last step with nothing to land, and one pass over the whole prompt.
    """

    request: Request
    costs: CostModel
    compute_s: tuple[float, ...]
    forms: tuple[tuple[Form, ...], ...]
    tiers: tuple[str, ...]
    ready_s: tuple[float, ...]
    question_s: float
    all_computed_s: float

    def work(self, chosen: Sequence[Form | None]) -> Work:
        """Return the request with one form, or none, to load of each passage."""
        lanes = [form.lane if form else NOWHERE for form in chosen]
        reads = [form.read_s if form else 0.0 for form in chosen]
        lands = [form.land_s if form else 0.0 for form in chosen]
        return Work(self.compute_s, lanes, reads, lands, self.question_s, self.costs.overlap)

    def timeline(self, work: Work, is_loaded: Sequence[bool]) -> Timeline:
        """Return when a choice is done; with nothing to load, one pass computes all."""
        if not any(is_loaded):
            return Timeline(self.all_computed_s, self.all_computed_s, 0.0)
        return lay_out(work, is_loaded, self.ready_s)


def weigh(request: Request, hits: Hits, costs: CostModel) -> Scale:
    """Return the costs of every passage. Offers for a passage that the request lacks raise InvalidInputError."""
    if strange := set(hits) - {ask.index for ask in request.passages}:
        raise InvalidInputError(f"hits hold offers for passages {sorted(strange)}, which the request does not have")
    pass_s, row_s, pair_s = _coefficients(costs, Pass.STEP)
    last_s, last_row_s, last_pair_s = _coefficients(costs, Pass.LAST)
    lanes = {tier: lane for lane, tier in enumerate(sorted({offer.tier for found in hits.values() for offer in found}))}
    rates: dict[tuple[str, str], LoadRates | None] = {}
    compute_s, forms = [], []
    for ask in request.passages:
        context = ask.start + (ask.n_tokens + 1) / 2  # a row sees the keys up to its own
        compute_s.append(ask.n_tokens * (row_s + pair_s * context) + pass_s * min(1.0, ask.n_tokens / STEP_ROWS))
        forms.append(_forms(hits.get(ask.index, ()), ask, last_row_s + last_pair_s * context, costs, lanes, rates))
    question_context = request.n_tokens - (request.question_tokens - 1) / 2
    question_s = last_s + request.question_tokens * (last_row_s + last_pair_s * question_context)
    all_computed_s = costs.predict_prefill(request.n_tokens, (request.n_tokens + 1) / 2) or 0.0
    ready_s = tuple(costs.waits.get(tier, 0.0) for tier in lanes)
    return Scale(request, costs, tuple(compute_s), tuple(forms), tuple(lanes), ready_s, question_s, all_computed_s)


def _coefficients(costs: CostModel, work: Pass) -> tuple[float, ...]:
    """Return the seconds per pass, row, and pair of row and key."""
    prefill = costs.prefill(work)
    return prefill.coefficients if prefill else (0.0, 0.0, 0.0)


def _forms(
    offers: Sequence[Offer],
    ask: PassageAsk,
    one_row_s: float,
    costs: CostModel,
    lanes: Mapping[str, int],
    rates: dict[tuple[str, str], LoadRates | None],
) -> tuple[Form, ...]:
    """Return a passage's offers of the best rank in seconds; `rates` remembers what was looked up. Exact forms rule out others."""
    forms = []
    best_rank = min((offer.rank for offer in offers), default=0)
    for offer in offers:
        if offer.rank != best_rank:
            continue
        way = (offer.tier, offer.codec)
        if way not in rates:
            rates[way] = costs.load_rates(*way)
        rate, patch_rows = rates[way], 0 if offer.is_exact else ask.patch_rows
        if rate is None:
            forms.append(Form(offer, lanes[offer.tier], math.inf, math.inf, patch_rows))
            continue
        land_s = rate.land_s + rate.land_byte_s * offer.nbytes + rate.land_token_s * ask.n_tokens + patch_rows * one_row_s
        forms.append(Form(offer, lanes[offer.tier], rate.read_s + rate.read_byte_s * offer.nbytes, land_s, patch_rows))
    exact = tuple(form for form in forms if form.offer.is_exact and form.read_s < math.inf)
    return exact or tuple(forms)


def quickest(forms: Sequence[Form], loss_s: float = 0.0) -> Form | None:
    """Return the form that is there soonest, if a unit of loss counts as `loss_s` seconds; None for no forms.

    Unmeasured ones come last, the smallest first; among equals the first.
    """
    if len(forms) < 2:
        return forms[0] if forms else None
    return min(forms, key=lambda f: (f.read_s + f.land_s + loss_s * f.offer.loss, f.offer.nbytes if f.read_s == math.inf else 0))


def make_plan(scale: Scale, chosen: Sequence[Form | None], is_loaded: Sequence[bool], reason: Callable[[int], str], note: str) -> Plan:
    """Return the plan that loads the passages at the marked places in their chosen forms and computes the others, each for its `reason`."""
    asks, costs, work = scale.request.passages, scale.costs, scale.work(chosen)
    items: list[Load | Compute] = []
    for i, (ask, form, compute_s) in enumerate(zip(asks, chosen, scale.compute_s, strict=True)):
        load_s = form.read_s + form.land_s if form else math.inf
        if form and is_loaded[i]:
            items.append(Load(ask.index, form.offer, form.patch_rows, load_s, compute_s - form.land_s if load_s < math.inf else 0.0))
        else:
            why = reason(i) if form else "nothing of it is stored"
            items.append(Compute(ask.index, ask.n_tokens, compute_s, why, form.offer if form else None, load_s))
    loaded = [item.offer for item in items if isinstance(item, Load)]
    timeline = scale.timeline(work, is_loaded)
    loss = sum(offer.loss for offer in loaded)
    terms = _terms(scale, work, chosen)
    why = f"loads {len(loaded)} of {len(items)} passages, first token predicted after"
    if PREFILL not in costs.costs or timeline.seconds == math.inf:
        return Plan(tuple(items), None, None, None, None, None, loss, f"{why} {format_s(None)}; {note}", terms)
    manner = Manner.RACED if loaded else Manner.COMPUTED
    predicted = costs.predict(manner, *timeline, {offer.tier for offer in loaded})
    why = f"{why} {format_s(predicted.seconds)} give or take {format_s(predicted.error_s)}; {note}"
    return Plan(tuple(items), predicted.seconds, predicted.error_s, *timeline, loss, why, terms)


def _terms(scale: Scale, work: Work, chosen: Sequence[Form | None]) -> Terms:
    """Return what a race of a plan begins with: other lanes may stand in for the chosen one, but not at another loss."""
    offers: list[dict[int, Offer]] = []
    options = []
    for form, forms in zip(chosen, scale.forms, strict=True):
        usable = [f for f in (forms if len(forms) > 1 else ()) if form and f.offer.loss == form.offer.loss and f.read_s < math.inf]
        by_lane = {f.lane: f for f in (*usable[::-1], *([form] if form else ())) if f.read_s < math.inf}
        offers.append({lane: f.offer for lane, f in by_lane.items()})
        options.append(tuple(Option(lane, f.read_s, f.land_s) for lane, f in by_lane.items()))
    return Terms(work, scale.tiers, tuple(offers), tuple(options), scale.ready_s)
