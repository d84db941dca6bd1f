"""P1: compute a prefix while one link loads the rest (Cake, 2410.03065; "P1, contiguous prefix, one link" of our notes on planning).

The cost of computing chunk i behind all chunks before it rises with i, that of loading it does not: so early chunks are computed from the
front and late ones are loaded from the back, and the first token comes when both have met:

    T(k) = max(compute chunks 0..k-1, load chunks k..n-1)

The first term rises with k and the second falls, whatever the single costs are, so the best k lies where they cross: O(log n) on sums.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from kvstore.core.errors import InvalidInputError


class Split(NamedTuple):
    """Chunks before `first_loaded` are computed, the others loaded; `seconds` is when both are done."""

    first_loaded: int
    seconds: float
    compute_s: float
    load_s: float


def split_prefix(compute_s: Sequence[float], load_s: Sequence[float]) -> Split:
    """Return the best split; a chunk that can't be loaded has infinite `load_s`.

    Such a chunk is computed wherever it lies, as soon as all before it are there: what is loaded before it then comes in the order of the
    prompt. Of equally good splits, the one that loads more. Lists of different length raise InvalidInputError.
    """
    if len(compute_s) != len(load_s):
        raise InvalidInputError(f"{len(compute_s)} chunks to compute and {len(load_s)} to load; give both costs for every chunk")
    n = len(compute_s)
    computed = list(accumulate(compute_s, initial=0.0))
    loaded = list(accumulate((s if s < math.inf else 0.0 for s in load_s), initial=0.0))
    holes, ends = _behind_holes(compute_s, load_s, loaded) if math.inf in load_s else ([0.0] * (n + 1), [loaded[n]] * (n + 1))
    crossing = bisect_left(range(n), True, key=lambda k: computed[k] + holes[k] >= ends[k] - loaded[k])
    candidates = range(max(crossing - 1, 0), crossing + 1)
    best = min(candidates, key=lambda k: max(computed[k] + holes[k], ends[k] - loaded[k]))
    compute, load = computed[best] + holes[best], loaded[n] - loaded[best]
    return Split(best, max(compute, ends[best] - loaded[best]), compute, load)


def _behind_holes(compute_s: Sequence[float], load_s: Sequence[float], loaded: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return for every k the computing of chunks from k on that nobody stored, and when the last of all is done if loading starts at 0.

    With loads in the order of the prompt, chunk h is computed when all loads before it are done, and the others of its kind after it.
    """
    n = len(compute_s)
    holes, ends = [0.0] * (n + 1), [loaded[n]] * (n + 1)
    for k in range(n - 1, -1, -1):
        holes[k], ends[k] = holes[k + 1], ends[k + 1]
        if load_s[k] == math.inf:
            holes[k] += compute_s[k]
            ends[k] = max(ends[k], loaded[k] + holes[k])
    return holes, ends
