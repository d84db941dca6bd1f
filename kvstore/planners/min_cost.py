"""Load the passages that bring the first token soonest by the cost model, and compute the others beside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from kvstore.planners.cost import CostModel
from kvstore.planners.makespan import Option
from kvstore.planners.parallel_tiers import split_over_tiers
from kvstore.planners.plan import Hits, Plan, Request, format_s
from kvstore.planners.samples import PREFILL, Manner
from kvstore.planners.share_out import Timeline, share_out
from kvstore.planners.weigh import Form, Scale, make_plan, quickest, weigh

_HALVINGS = 12  # of the price of loss, on a scale of logarithms
_MOST_VISITED = 500  # passages of timelines in the search for better forms
_PRICES = (1e-4, 1e4)  # times computing everything, in seconds per unit of loss: nothing, and all that counts


class Choice(NamedTuple):
    """A form of each passage, which of them are loaded, when that is done, and what it loses."""

    chosen: list[Form | None]
    is_loaded: Sequence[bool]
    timeline: Timeline
    loss: float


@dataclass(frozen=True)
class MinCost:
    """Minimise the predicted time to the first token.

    Which tier brings which passage is P2 (`parallel_tiers.py`); which passages are loaded at all is decided on the timeline of computing
    from the front beside loading (`share_out.py`), with computing all in one pass as an alternative: it is never predicted to be slower
    than that, or than loading all that is stored and saves computing. Exact forms rule out others of the same passage.

    A budget of loss or a deadline makes quality count (P4): a unit of loss gets a price in seconds, the least that keeps to the budget, or
    the highest that keeps to the deadline even when the prediction is off by its error. What is still too much loss is computed.
    """

    name: ClassVar[str] = "min_cost"
    is_binding: ClassVar[bool] = False

    def plan(self, request: Request, hits: Hits, costs: CostModel) -> Plan:
        """Return the plan with the least predicted time; equal times go to the one that loads for less long."""
        scale = weigh(request, hits, costs)
        best = _choose(scale)
        all_stored = [form is not None for form in best.chosen]
        all_loaded = scale.timeline(scale.work(best.chosen), all_stored).seconds if PREFILL in costs.costs else math.inf
        computed_s = scale.all_computed_s if PREFILL in costs.costs else None
        loaded_s = all_loaded if all_loaded < math.inf else None
        note = f"{format_s(computed_s)} computing all, {format_s(loaded_s)} loading the {sum(all_stored)} stored"
        return make_plan(scale, best.chosen, best.is_loaded, lambda i: _reason(scale, best.chosen[i], i), note)


def _choose(scale: Scale) -> Choice:
    """Return the best choice within the request's deadline and budget of loss."""
    request, free = scale.request, _at_price(scale, 0.0)
    if request.deadline_s == math.inf and free.loss <= request.most_loss:
        return free
    kept = free
    low, high = (math.log(price * max(scale.all_computed_s, 1e-9)) for price in _PRICES)
    for _ in range(_HALVINGS):
        price = (low + high) / 2
        choice = _at_price(scale, math.exp(price))
        if request.deadline_s < math.inf:
            is_dear_enough = not _is_in_time(scale, choice)
            kept = kept if is_dear_enough else choice
        else:
            is_dear_enough = choice.loss <= request.most_loss
            kept = choice
        low, high = (low, price) if is_dear_enough else (price, high)
    return _within_budget(scale, kept if request.deadline_s < math.inf else _at_price(scale, math.exp(high)))


def _is_in_time(scale: Scale, choice: Choice) -> bool:
    """Tell whether a choice keeps to the deadline even when it is late by its error."""
    tiers = {form.offer.tier for form, loads in zip(choice.chosen, choice.is_loaded, strict=True) if form and loads}
    manner = Manner.RACED if any(choice.is_loaded) else Manner.COMPUTED
    predicted = scale.costs.predict(manner, *choice.timeline, tiers)
    return predicted.seconds + predicted.error_s <= scale.request.deadline_s


def _within_budget(scale: Scale, choice: Choice) -> Choice:
    """Return the choice that computes what loses most, until the rest is within the budget of loss."""
    is_loaded, loss = list(choice.is_loaded), choice.loss
    losses = [form.offer.loss if form and loads else 0.0 for form, loads in zip(choice.chosen, is_loaded, strict=True)]
    for i in sorted(range(len(losses)), key=lambda i: -losses[i]):
        if loss <= scale.request.most_loss:
            break
        is_loaded[i] = False
        loss = sum(lost for lost, loads in zip(losses, is_loaded, strict=True) if loads)
    return Choice(choice.chosen, is_loaded, scale.timeline(scale.work(choice.chosen), is_loaded), loss)


def _at_price(scale: Scale, loss_s: float) -> Choice:
    """Return the quickest choice when a unit of loss counts as so many seconds."""
    chosen = _tiers(scale, loss_s)
    work = scale.work([form if form and form.read_s < math.inf else None for form in chosen])
    shares = share_out(work, scale.ready_s)
    is_loaded: Sequence[bool] = shares.is_loaded
    timeline = scale.timeline(work, is_loaded)
    if timeline.seconds >= scale.all_computed_s and scale.all_computed_s > 0:
        is_loaded = [False] * len(chosen)
        timeline = scale.timeline(work, is_loaded)
    loss = sum(form.offer.loss for form, loads in zip(chosen, is_loaded, strict=True) if form and loads)
    return _exchange_forms(scale, Choice(chosen, is_loaded, timeline, loss))


def _exchange_forms(scale: Scale, choice: Choice) -> Choice:
    """Return the choice with other forms of the same loss where they are sooner: less to read may be worth more to land, or the reverse.

    Passage by passage, for short requests only; a long one spreads over the tiers anyway.
    """
    others = [(i, form) for i, forms in enumerate(scale.forms) for form in forms if len(forms) > 1 and form.read_s < math.inf]
    if len(others) * len(scale.forms) > _MOST_VISITED:
        return choice
    for i, form in others:
        old = choice.chosen[i]
        if old is None or old is form or old.offer.loss != form.offer.loss:
            continue
        chosen = [*choice.chosen[:i], form, *choice.chosen[i + 1 :]]
        is_loaded = [*choice.is_loaded[:i], True, *choice.is_loaded[i + 1 :]]
        timeline = scale.timeline(scale.work(chosen), is_loaded)
        if timeline.seconds < choice.timeline.seconds:
            loss = choice.loss + (0.0 if choice.is_loaded[i] else form.offer.loss)
            choice = Choice(chosen, is_loaded, timeline, loss)
    return choice


def _tiers(scale: Scale, loss_s: float) -> list[Form | None]:
    """Return the form of each passage: the quickest at this price, or its like from another tier where that spreads the load better."""
    chosen = [quickest(forms, loss_s) for forms in scale.forms]
    alike = [
        [f for f in forms if f.read_s < math.inf and f.offer.loss == form.offer.loss] if form and len(forms) > 1 else [form] if form else []
        for form, forms in zip(chosen, scale.forms, strict=True)
    ]
    if all(len(found) < 2 for found in alike):
        return chosen
    options = [[Option(f.lane, f.read_s) for f in found if f.read_s < math.inf] for found in alike]
    split = split_over_tiers(scale.compute_s, options, len(scale.tiers))
    for i, lane in enumerate(split.tiers):
        if lane >= 0:
            chosen[i] = quickest([f for f in alike[i] if f.lane == lane])
    return chosen


def _reason(scale: Scale, form: Form | None, place: int) -> str:
    """Say why a passage with an offer is computed."""
    if PREFILL not in scale.costs.costs:
        return "prefill was never measured, so nothing is known to be faster"
    if form is None or form.read_s == math.inf:
        return "this tier, this codec or splicing was never measured"
    if form.patch_rows == scale.request.passages[place].n_tokens:
        return "the recompute policy computes all its rows again"
    if form.land_s >= scale.compute_s[place]:
        return "landing and repairing it takes as long as computing it"
    return "loading it too would not bring the first token sooner"
