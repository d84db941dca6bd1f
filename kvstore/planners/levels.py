"""P4: quality as a variable. Each chunk is stored at several levels (bits, eviction ratio, rows repaired): how much to lose, and where?

Two questions with one answer: the least loss by a deadline (CacheGen, 2310.07240, with the remaining time in place of an equal share per
chunk), and the least time within a budget of loss, which is the earliest deadline whose least loss fits. A computed chunk loses nothing, so
as many chunks as the deadline allows are computed, from the front. The rest is a knapsack with one choice per chunk: begin with the
quickest levels, then spend the time that is left where a second buys the most quality.

For a stream whose speed changes, ask again with what is left after every chunk: `least_loss` of the remaining chunks, their seconds as the
last chunk showed them, and the remaining time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from kvstore.core.errors import InvalidInputError
from kvstore.planners.parallel_tiers import COMPUTED
from kvstore.planners.prefix_split import split_prefix

_ROUNDING = 1e-9
_HALVINGS = 40  # of the time between nothing and computing all


class Level(NamedTuple):
    """One stored form of a chunk: seconds of loading it, and what it loses, in any unit that adds up over chunks."""

    load_s: float
    loss: float


class LevelPlan(NamedTuple):
    """`levels[i]` is the index of chunk i's level, COMPUTED for those before `first_loaded`; `is_late` when no choice was in time."""

    first_loaded: int
    levels: tuple[int, ...]
    seconds: float
    loss: float
    is_late: bool = False


def least_loss(compute_s: Sequence[float], levels: Sequence[Sequence[Level]], deadline_s: float) -> LevelPlan:
    """Return the plan that loses least of those done by the deadline; if none is, the quickest plan, marked as late.

    Every chunk has at least one level, else InvalidInputError.
    """
    _check(compute_s, levels)
    computed = list(accumulate(compute_s, initial=0.0))
    first = bisect_right(computed, deadline_s) - 1
    quickest = [min(range(len(found)), key=lambda e, found=found: found[e]) for found in levels]  # type: ignore[misc]
    if first < 0 or sum(levels[i][quickest[i]].load_s for i in range(first, len(levels))) > deadline_s:
        split = split_prefix(compute_s, [found[e].load_s for found, e in zip(levels, quickest, strict=True)])
        return _plan(computed, levels, split.first_loaded, quickest, deadline_s)
    return _plan(computed, levels, first, _spend(levels, first, quickest, deadline_s), deadline_s)


def least_time(compute_s: Sequence[float], levels: Sequence[Sequence[Level]], most_loss: float) -> LevelPlan:
    """Return the quickest plan whose losses add up to no more than `most_loss`, at least 0."""
    _check(compute_s, levels)
    if not most_loss >= 0:
        raise InvalidInputError(f"the budget of loss must not be negative, got {most_loss}; computing everything loses nothing")
    too_early_s, late_s = 0.0, sum(compute_s)
    best = least_loss(compute_s, levels, late_s)  # everything is computed
    for _ in range(_HALVINGS):
        deadline_s = (too_early_s + late_s) / 2
        plan = least_loss(compute_s, levels, deadline_s)
        if plan.loss <= most_loss and plan.seconds < best.seconds:
            best = plan
        fits = plan.loss <= most_loss and not plan.is_late
        too_early_s, late_s = (too_early_s, deadline_s) if fits else (deadline_s, late_s)
    return best


def _check(compute_s: Sequence[float], levels: Sequence[Sequence[Level]]) -> None:
    """Raise InvalidInputError unless every chunk has a cost and a level."""
    if len(compute_s) != len(levels) or not all(levels):
        raise InvalidInputError(f"{len(compute_s)} costs and {len(levels)} lists of levels; give both for every chunk, no list empty")


def _plan(computed: Sequence[float], levels: Sequence[Sequence[Level]], first: int, chosen: Sequence[int], deadline_s: float) -> LevelPlan:
    """Return the plan that loads chunks from `first` on at the chosen levels."""
    loaded = [levels[i][chosen[i]] for i in range(first, len(levels))]
    seconds = max(computed[first], sum(level.load_s for level in loaded))
    marks = (COMPUTED,) * first + tuple(chosen[first:])
    return LevelPlan(first, marks, seconds, sum(level.loss for level in loaded), seconds > deadline_s * (1 + 2 * _ROUNDING))


def _spend(levels: Sequence[Sequence[Level]], first: int, quickest: Sequence[int], deadline_s: float) -> list[int]:
    """Return the levels after spending the time that the quickest leave, the step that saves most loss per second first.

    What is left over in the end, because no step of a hull fits, goes to whatever single change saves most.
    """
    chosen = list(quickest)
    left_s = deadline_s * (1 + _ROUNDING) - sum(levels[i][chosen[i]].load_s for i in range(first, len(levels)))
    steps = [(gain, i, e) for i in range(first, len(levels)) for gain, e in _hull(levels[i], chosen[i])]
    for _, i, e in sorted(steps, key=lambda step: -step[0]):
        longer_s = levels[i][e].load_s - levels[i][chosen[i]].load_s
        if longer_s <= left_s:
            left_s -= longer_s
            chosen[i] = e
    while changes := [
        (found[chosen[i]].loss - level.loss, i, e)
        for i, found in enumerate(levels)
        for e, level in enumerate(found)
        if i >= first and level.loss < found[chosen[i]].loss and level.load_s - found[chosen[i]].load_s <= left_s
    ]:
        _, i, e = max(changes)
        left_s -= levels[i][e].load_s - levels[i][chosen[i]].load_s
        chosen[i] = e
    return chosen


def _hull(levels: Sequence[Level], quickest: int) -> list[tuple[float, int]]:
    """Return the steps from the quickest level to better ones along their convex hull: loss saved per second, and the level reached."""
    steps: list[tuple[float, int]] = []
    at = quickest
    while True:
        better = [e for e, level in enumerate(levels) if level.loss < levels[at].loss]
        if not better:
            return steps
        gains = {e: (levels[at].loss - levels[e].loss) / max(levels[e].load_s - levels[at].load_s, 1e-300) for e in better}
        best = max(better, key=lambda e: (gains[e], -levels[e].loss))
        steps.append((gains[best], best))
        at = best
