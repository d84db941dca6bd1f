"""P2: compute a prefix while several tiers load the rest at once; a chunk may lie in several of them, in other sizes.

    T(k) = max(compute chunks 0..k-1, the busiest tier, what chunks k..n-1 need of a link that all tiers share)

For given k this is makespan on unrelated machines (`makespan.py`); over k the first term rises and the others fall. So: walk down from the
last chunk, give each to the tier where it is done first, until loading takes as long as computing what is left; then improve.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from kvstore.core.errors import InvalidInputError
from kvstore.planners.makespan import Option, Placing, by_price, largest_first

COMPUTED = -1
_FEW = 16  # chunks, of which a second start is tried
_MOST_TRIES = 400  # exchanges weighed: enough for a local optimum of 12 chunks, a fraction of a millisecond for any number


class TierSplit(NamedTuple):
    """`tiers[i]` is where chunk i is loaded from, COMPUTED before `first_loaded`; `seconds` is when all is done."""

    first_loaded: int
    tiers: tuple[int, ...]
    seconds: float


def split_over_tiers(
    compute_s: Sequence[float], options: Sequence[Sequence[Option]], n_tiers: int, shared_s: Sequence[float] = ()
) -> TierSplit:
    """Return a split and an assignment of what is loaded to tiers.

    Parameters
    ----------
    options : sequence of sequences of Option
        Where each chunk can be loaded from. A chunk with none is computed, and all before it with it.
    n_tiers : int
        Lanes of the options, at least 1.
    shared_s : sequence of float
        Seconds that loading each chunk needs of what all tiers share (a link, a decoder); empty where they share nothing.

    Lists of different length raise InvalidInputError. Never slower than computing all.
    """
    if len(compute_s) != len(options) or len(shared_s) not in (0, len(options)):
        raise InvalidInputError(f"{len(compute_s)} costs and {len(shared_s)} shares for {len(options)} chunks; give one per chunk")
    computed = list(accumulate(compute_s, initial=0.0))
    shared = list(accumulate(reversed(shared_s), initial=0.0)) if shared_s else [0.0] * len(computed)  # of the last 0, 1, 2, ... chunks
    k, placing = _walk_down(computed, shared, options, n_tiers)
    best = TierSplit(len(options), (COMPUTED,) * len(options), computed[-1])
    while True:
        load_s = max(placing.seconds, shared[len(options) - k])
        if max(load_s, computed[k]) < best.seconds:
            tiers = (placing.chosen[i].lane for i in range(k, len(options)))
            best = TierSplit(k, (COMPUTED,) * k + tuple(tiers), max(load_s, computed[k]))
        if load_s >= computed[k] or k == 0 or not options[k - 1]:
            return best
        k -= 1
        placing.place_first_done(k, options[k])
        placing.improve()
        if len(placing.chosen) <= _FEW:
            other = largest_first(options, range(k, len(options)), n_tiers, _MOST_TRIES)
            placing = min(placing, other, key=lambda found: found.seconds)


def _walk_down(
    computed: Sequence[float], shared: Sequence[float], options: Sequence[Sequence[Option]], n_tiers: int
) -> tuple[int, Placing]:
    """Give chunks to tiers from the last one on, as long as loading takes less than computing the others; return where, and what was given.

    Never below the best k, because better assignments let loading reach further.
    """
    busy, chosen, k = [0.0] * n_tiers, {}, len(options)
    for chunk, option in by_price(options, range(len(options) - 1, -1, -1), n_tiers):
        busy[option.lane] += option.seconds
        if max(*busy, shared[len(options) - chunk]) >= computed[chunk]:
            break
        chosen[chunk], k = option, chunk
    return k, Placing(options, n_tiers, _MOST_TRIES, chosen)
