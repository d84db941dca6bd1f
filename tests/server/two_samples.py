"""Whether two samples of numbers come from the same distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby


def mann_whitney_p(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the two-sided p-value of the Mann-Whitney U test, by its normal approximation with ties; for samples of 20 and more.

    Small where one sample tends to be larger. Outliers count as ranks only, so a busy machine does not decide.
    """
    n, m = len(one), len(other)
    ranked = sorted([(value, 0) for value in one] + [(value, 1) for value in other])
    rank_sum, ties, rank = 0.0, 0.0, 1
    for _, group in groupby(ranked, key=lambda pair: pair[0]):
        tied = list(group)
        count = len(tied)
        rank_sum += sum(1 for _, sample in tied if sample == 0) * (rank + (count - 1) / 2)
        ties += count**3 - count
        rank += count
    total = n + m
    u = rank_sum - n * (n + 1) / 2
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    return math.erfc(abs(u - n * m / 2) / math.sqrt(2 * variance)) if variance else 1.0
