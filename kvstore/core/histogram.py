"""Histograms with fixed bounds: what took how long, cheap enough to be asked on every call."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

# 50 us to 50 s in steps of about two and a half.
SECONDS = (50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0)


class Histogram:
    """Counts values by the first of `bounds` that they do not exceed, and adds them up. Thread-safe.

    Parameters
    ----------
    bounds : sequence of float
        Rising; values above the last are counted too.
    """

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self._lock = threading.Lock()
        self._counts = [0] * (len(self.bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        place = bisect_left(self.bounds, value)
        with self._lock:
            self._counts[place] += 1
            self._total += value

    def snapshot(self) -> tuple[list[int], float]:
        """Return how many values were at most each bound, all of them last, and their sum."""
        with self._lock:
            return list(accumulate(self._counts)), self._total

    def quantile(self, share: float) -> float:
        """Return the bound that a share of all values did not exceed; 0 without values, the last bound for those above it."""
        counts, _ = self.snapshot()
        if not counts[-1]:
            return 0.0
        place = bisect_left(counts, share * counts[-1])
        return self.bounds[min(place, len(self.bounds) - 1)]
