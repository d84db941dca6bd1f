"""P3: chunks that may stand anywhere have no order: compute any set of them, load the others, then link.

    T = max(compute the set, the busiest tier) + link what was loaded

Linking repairs rows of chunks that were read elsewhere (EPIC's first k rows, CacheBlend's share). Computing a chunk *exactly*, behind all
chunks before it, needs no repair and gives exact quality; computing it *independently* is cheaper for late chunks, but then it has to be
linked like a loaded one. Which of the two is the caller's choice, because it decides about quality. The device that computes is one more
lane of the makespan problem (`makespan.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from kvstore.core.errors import InvalidInputError
from kvstore.planners.makespan import Option, Placing, by_price
from kvstore.planners.parallel_tiers import COMPUTED

_FEW, _MOST_TRIES = 64, 3000  # exchanges weighed per start: a local optimum for a few dozen chunks


class Recompute(Enum):
    """How a chunk is computed: behind all before it, or alone."""

    EXACT = "exact"
    INDEPENDENT = "independent"


class IndependentSet(NamedTuple):
    """`tiers[i]` is where chunk i is loaded from, COMPUTED for the set; `seconds` is when all is linked."""

    tiers: tuple[int, ...]
    seconds: float


def ways_of(
    compute_s: Sequence[float], options: Sequence[Sequence[Option]], n_tiers: int, link_s: Sequence[float], how: Recompute
) -> list[list[Option]]:
    """Return every way to get each chunk: computing it first, on lane `n_tiers`, then loading it from where it can be had.

    `compute_s` and `link_s` are the seconds of computing each chunk in the way `how`, and of linking it. Lists of different length raise
    InvalidInputError.
    """
    if not len(compute_s) == len(options) == len(link_s):
        raise InvalidInputError(f"{len(compute_s)} costs, {len(link_s)} links and {len(options)} chunks; give one of each per chunk")
    of_computed = [0.0] * len(link_s) if how is Recompute.EXACT else link_s
    return [
        [Option(n_tiers, compute, mine), *(Option(o.lane, o.seconds, link) for o in found)]
        for compute, mine, found, link in zip(compute_s, of_computed, options, link_s, strict=True)
    ]


def choose_set(ways: Sequence[Sequence[Option]], n_tiers: int, fixed_link_s: float = 0.0) -> IndependentSet:
    """Return which chunks to compute, where the others come from, and when all is linked.

    `ways` is what `ways_of` returned, `fixed_link_s` the question's rows, which come behind everything. Never slower than computing all;
    for up to 64 chunks, nor than loading all by the same search.
    """
    n_lanes = n_tiers + 1
    largest_first = sorted(range(len(ways)), key=lambda i: -ways[i][0].seconds)
    if len(ways) <= _FEW:
        starts = [ways, [found[:1] for found in ways], [found[1:] or found for found in ways]]
        tried = [_first_done(ways, start, largest_first, n_lanes) for start in starts]
    else:
        tried = [Placing(ways, n_lanes, _MOST_TRIES // len(ways), dict(by_price(ways, largest_first, n_lanes)))]
    for placing in tried:
        placing.improve()
    best = min(tried, key=lambda placing: placing.seconds)
    all_s = sum(found[0].seconds + found[0].after_s for found in ways)
    if all_s <= best.seconds:
        return IndependentSet((COMPUTED,) * len(ways), all_s + fixed_link_s)
    lanes = [best.chosen[i].lane for i in range(len(ways))]
    return IndependentSet(tuple(COMPUTED if lane == n_tiers else lane for lane in lanes), best.seconds + fixed_link_s)


def _first_done(ways: Sequence[Sequence[Option]], start: Sequence[Sequence[Option]], order: Sequence[int], n_lanes: int) -> Placing:
    """Return every chunk where it is done first, among the ways of `start`."""
    placing = Placing(ways, n_lanes, _MOST_TRIES)
    for chunk in order:
        placing.place_first_done(chunk, start[chunk])
    return placing
