"""Turn a plan into a job: what is fetched, how long it is waited for, and whether computing races it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

from kvstore.planners.cost import CostModel
from kvstore.planners.plan import Load, Offer, Plan
from kvstore.planners.race_of_plan import race_of_plan
from kvstore.planners.share_out import NOWHERE
from kvworker.answer.course import Course
from kvworker.answer.execute import Job
from kvworker.answer.straight import Controller, Straight
from kvworker.engine.engine import Engine
from kvworker.engine.sampling import Sampling

_EVENT_S = 0.0005  # what the race's controller takes per chunk
_SHORT_S = 0.02  # loads that take less hide nothing behind the first layers: both would wait for the interpreter


def job_of(engine: Engine, course: Course, costs: CostModel, sampling: Sampling, patience_s: float) -> Job:
    """Return what to do for a planned request; loads that are not raced are waited for `patience_s` seconds."""
    plan, layout = course.plan, engine.identity.layout
    is_raced = not course.is_binding and is_worth_racing(plan)
    controller: Controller
    if is_raced:
        offers: list[Mapping[int, Offer]] = [*plan.terms.offers, {}]
        controller = race_of_plan(course.request, plan, costs)
    else:
        loads = _loads(course)
        lanes = {chunk: plan.terms.tiers.index(offer.tier) for chunk, offer in loads.items()}
        offers = [{lanes[i]: loads[i]} if i in loads else {} for i in range(len(plan.items) + 1)]
        rest = [i for i in range(len(plan.items)) if i not in loads]
        controller = Straight(lanes, rest, patience_s)
    begin = partial(engine.begin, sampling=sampling)
    policy = course.choice.policy
    is_pipelined = policy.is_pipelined and (plan.load_s is None or plan.load_s > _SHORT_S)
    return Job(controller, policy.arrange(course.prompt.segments({})), offers, begin, policy.finish, layout, is_pipelined, is_raced)


def _loads(course: Course) -> dict[int, Offer]:
    """Return what to load without a race: what the plan loads, and what it would only compute beside loading if loading is the quicker."""
    plan, work = course.plan, course.plan.terms.work
    loads = {i.index: i.offer for i in plan.items if isinstance(i, Load) and i.patch_rows < course.request.passages[i.index].n_tokens}
    if loads and not course.is_binding and _load_s(plan) < sum(work.compute_s):
        for i, (lane, compute_s, last_s) in enumerate(zip(work.lanes, work.compute_s, work.last_s, strict=True)):
            if lane != NOWHERE and last_s < compute_s:
                loads.setdefault(i, plan.terms.offers[i][lane])
    return loads


def _load_s(plan: Plan) -> float:
    """Return how long the busiest lane takes for everything that is stored; infinite where it was never measured."""
    lanes_s = [0.0] * len(plan.terms.tiers)
    for lane, load_s in zip(plan.terms.work.lanes, plan.terms.work.load_s, strict=True):
        if lane != NOWHERE:
            lanes_s[lane] += load_s
    return max(lanes_s, default=0.0)


def is_worth_racing(plan: Plan) -> bool:
    """Tell whether computing beside loading can win more than deciding about it costs.

    All loads at once and computing all take L and C; the best split takes L * C / (L + C) at least, so the lesser of both squared over
    L + C is what can be won. A plan that loads nothing computes in one pass.
    """
    if plan.planned_s is None or not any(isinstance(item, Load) for item in plan.items):
        return False
    load_s, compute_s = _load_s(plan), sum(plan.terms.work.compute_s)
    return math.isfinite(load_s) and min(load_s, compute_s) ** 2 > len(plan.items) * _EVENT_S * (load_s + compute_s)
