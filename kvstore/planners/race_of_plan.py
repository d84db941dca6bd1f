"""Begin the race that a plan foresees."""

from __future__ import annotations

from kvstore.planners.cost import CostModel
from kvstore.planners.plan import Plan, Request
from kvstore.planners.race import Race
from kvstore.planners.samples import tier_subject
from kvstore.planners.weigh import STEP_ROWS


def race_of_plan(request: Request, plan: Plan, costs: CostModel) -> Race:
    """Return the race over a request's passages: chunk i of it is passage i in the order of the prompt, lane j is `plan.terms.tiers[j]`.

    What to fetch for `Fetch(chunk, lane)` is `plan.terms.offers[chunk][lane]`. A plan that loads nothing needs no race: one pass computes
    all of it sooner than steps do.
    """
    terms = plan.terms
    errors = [costs.error(tier_subject(tier)) for tier in terms.tiers]
    rows = [ask.n_tokens for ask in request.passages]
    return Race(terms.work, terms.options, rows, errors, terms.ready_s, STEP_ROWS)
