"""How soon something comes as a rule, and from when on it is late."""

from __future__ import annotations

import math
import threading

LEAST_S = 1.0
_LATE = 2.0  # times what nearly all are done in: asking somebody else costs an answer's work
_DEVIATIONS = 4.0
_MEAN_WEIGHT, _DEVIATION_WEIGHT = 1 / 8, 1 / 4


class Usual:
    """Mean and deviation of what was seen lately, kept as TCP keeps them of its round trips (RFC 6298, section 2). Thread-safe.

    Parameters
    ----------
    least_s : float
        Nothing is late before that.
    first_s : float
        From when on one is late before any was seen.
    """

    def __init__(self, least_s: float = LEAST_S, first_s: float = math.inf) -> None:
        self._least_s, self._first_s = least_s, first_s
        self._mean_s = self._deviation_s = math.inf
        self._lock = threading.Lock()

    def saw(self, took_s: float) -> None:
        """Take in how long one took."""
        with self._lock:
            if self._mean_s == math.inf:
                self._mean_s, self._deviation_s = took_s, took_s / 2
                return
            self._deviation_s += _DEVIATION_WEIGHT * (abs(took_s - self._mean_s) - self._deviation_s)
            self._mean_s += _MEAN_WEIGHT * (took_s - self._mean_s)

    @property
    def late_s(self) -> float:
        """From when on one is late."""
        with self._lock:
            if self._mean_s == math.inf:
                return self._first_s
            return max(self._least_s, _LATE * (self._mean_s + _DEVIATIONS * self._deviation_s))
