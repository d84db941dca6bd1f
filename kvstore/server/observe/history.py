"""How fast sums grew over the last hour: what a page shows that is opened only now."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

EVERY_S = 10.0
KEPT = 360  # samples: an hour


class History:
    """Keeps a sample of some sums every ten seconds; `tick` is called at least that often, by one thread."""

    def __init__(self, read: Callable[[], Mapping[str, float]], clock: Callable[[], float] = time.time) -> None:
        self._read, self._clock = read, clock
        self._samples: deque[tuple[float, Mapping[str, float]]] = deque([(clock(), read())], maxlen=KEPT + 1)

    def tick(self) -> None:
        """Take a sample if it is time to."""
        now = self._clock()
        if now - self._samples[-1][0] >= EVERY_S:
            self._samples.append((now, self._read()))

    def growth(self) -> Sequence[Mapping[str, Any]]:
        """Return what was added to each sum between samples, oldest first, and up to now: `at_s` is the end of a step of `seconds`."""
        samples = [*self._samples, (self._clock(), self._read())]
        return [_step(before, after) for before, after in pairwise(samples)]


def _step(before: tuple[float, Mapping[str, float]], after: tuple[float, Mapping[str, float]]) -> Mapping[str, Any]:
    added = {name: total - before[1].get(name, 0.0) for name, total in after[1].items()}
    return {"at_s": after[0], "seconds": after[0] - before[0], **added}
