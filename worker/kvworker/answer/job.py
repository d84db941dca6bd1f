"""Turn a plan into a job: what is fetched, how long it is waited for, and whether computing races it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from kvstore.planners.cost import CostModel
from kvstore.planners.plan import Load, Offer, Plan
from kvstore.planners.race_of_plan import race_of_plan
from kvstore.planners.samples import Manner
from kvstore.planners.share_out import NOWHERE
from kvworker.answer.course import Course
from kvworker.answer.execute import Job
from kvworker.answer.straight import Controller, Straight
from kvworker.engine.engine import Engine
from kvworker.engine.sampling import Sampling

_EVENT_S = 0.0005  # what the race's controller takes per chunk
_WORTH_RACING = 0.75  # of the time without a race; one that was predicted to take 0.8 of it and loaded everything in the end took 1.1
_SHORT_S = 0.02  # loads that take less hide nothing behind the first layers: both would wait for the interpreter


def job_of(engine: Engine, course: Course, costs: CostModel, sampling: Sampling, patience_s: float) -> Job:
    """Return what to do for a planned request; loads that are not raced are waited for `patience_s` seconds."""
    plan, layout, policy = course.plan, engine.identity.layout, course.choice.policy
    straight = _straight(course, costs.overlap if policy.is_pipelined else 0.0)
    is_raced = not course.is_binding and (is_worth_racing(plan, straight.seconds) or _outlasts(plan, straight, patience_s))
    controller: Controller
    if is_raced:
        offers: list[Mapping[int, Offer]] = [*plan.terms.offers, {}]
        controller = race_of_plan(course.request, plan, costs)
    else:
        loads = straight.loads
        lanes = {chunk: plan.terms.tiers.index(offer.tier) for chunk, offer in loads.items()}
        offers = [{lanes[i]: loads[i]} if i in loads else {} for i in range(len(plan.items) + 1)]
        rest = [i for i in range(len(plan.items)) if i not in loads]
        controller = Straight(lanes, rest, patience_s)
        _correct(course, straight, costs)
    begin = partial(engine.begin, sampling=sampling)
    is_pipelined = policy.is_pipelined and straight.load_s > _SHORT_S
    return Job(controller, policy.arrange(course.prompt.segments({})), offers, begin, policy.finish, layout, is_pipelined, is_raced)


class _StraightPlan(NamedTuple):
    """What is loaded where nothing is raced, and when that is done: the lanes', the device's and all seconds, infinite where unknown."""

    loads: dict[int, Offer]
    load_s: float
    compute_s: float
    seconds: float


def _straight(course: Course, overlap: float) -> _StraightPlan:
    """Return what going straight comes to: batches by layer group, so that the last step runs a group behind the loads."""
    plan, work = course.plan, course.plan.terms.work
    loads = {i.index: i.offer for i in plan.items if isinstance(i, Load) and i.patch_rows < course.request.passages[i.index].n_tokens}
    if loads and not course.is_binding:  # what is only computed beside loading is loaded too, unless computing is the quicker
        worth = [lane != NOWHERE and a < c for lane, a, c in zip(work.lanes, work.last_s, work.compute_s, strict=True)]
        if sum(work.load_s) < sum(work.compute_s):
            loads |= {i: plan.terms.offers[i][work.lanes[i]] for i, is_worth in enumerate(worth) if is_worth}
    lanes_s = dict.fromkeys(plan.terms.tiers, 0.0)
    compute_s = work.question_s
    for i, (options, after_s, alone_s) in enumerate(zip(plan.terms.options, work.last_s, work.compute_s, strict=True)):
        compute_s += after_s if i in loads else alone_s
        if i in loads:
            tier = loads[i].tier
            lanes_s[tier] += next((o.seconds for o in options if plan.terms.tiers[o.lane] == tier), math.inf)
    load_s = max(lanes_s.values(), default=0.0)
    hidden_s = overlap * min(load_s, compute_s) if load_s > _SHORT_S else 0.0
    return _StraightPlan(loads, load_s, compute_s, load_s + compute_s - hidden_s)


def is_worth_racing(plan: Plan, straight_s: float) -> bool:
    """Tell whether computing beside loading wins more than a race may lose; a plan that loads nothing is one pass."""
    has_loads = any(isinstance(item, Load) for item in plan.items)
    is_known = plan.planned_s is not None and straight_s < math.inf
    return has_loads and is_known and (plan.planned_s or 0.0) + _EVENT_S * len(plan.items) < straight_s * _WORTH_RACING


def _outlasts(plan: Plan, straight: _StraightPlan, patience_s: float) -> bool:
    """Tell whether loading takes longer than it is waited for: then computing begins beside it anyway, and a race shares out the chunks."""
    return plan.planned_s is not None and patience_s < straight.load_s < math.inf


def _correct(course: Course, straight: _StraightPlan, costs: CostModel) -> None:
    """Predict what will be done instead of what was planned."""
    if not straight.loads:
        return
    course.manner = Manner.LOADED
    if course.planned_s is not None and straight.seconds < math.inf:
        course.planned_s = straight.seconds
        tiers = {offer.tier for offer in straight.loads.values()}
        course.predicted_s = costs.predict(course.manner, straight.seconds, straight.compute_s, straight.load_s, tiers).seconds
