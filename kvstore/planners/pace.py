"""How much slower than planned a lane or the device turns out to be: a running estimate that ignores small changes."""

from __future__ import annotations

import math
from dataclasses import dataclass

_WEIGHT = 0.5  # of one observation: a lasting fourfold change is followed to 10 % after 4 of them
_HYSTERESIS = 0.1  # plans keep to a pace until the estimate has left it by more than this
_MOST_RATIO = 16.0  # one stall moves the estimate no further than this would


@dataclass(frozen=True)
class Pace:
    """`used` is the ratio of taken to planned seconds that plans count with; `estimate` averages logarithms of what was seen."""

    used: float = 1.0
    estimate: float = 1.0

    def observe(self, planned_s: float, taken_s: float) -> Pace:
        """Return the pace after work that was planned to take `planned_s` took `taken_s`; work of no length tells nothing."""
        if planned_s <= 0:
            return self
        ratio = min(max(taken_s / planned_s, self.estimate / _MOST_RATIO), self.estimate * _MOST_RATIO)
        estimate = self.estimate * (ratio / self.estimate) ** _WEIGHT
        is_near = abs(math.log(estimate / self.used)) <= _HYSTERESIS
        return Pace(self.used if is_near else estimate, estimate)
