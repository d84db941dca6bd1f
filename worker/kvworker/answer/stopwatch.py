"""Time runs on a machine that has other things to do: what disturbs them only ever adds seconds, and seldom to every round."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 10
_LONGEST_S = 1.0  # behind which no round begins but the fewest
_SETTLED = 0.97  # a round that is quicker than this share of the best before it says that those were disturbed


def least_seconds(
    runs: Sequence[Callable[[], object]], most_rounds: int = _MOST_ROUNDS, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Return the least seconds of each run, taken in turn over rounds of all of them, so that one disturbance spoils no run's every try.

    Ends with the first round behind the third in which none was notably quicker than ever before, with the last of `most_rounds`, and with
    the third when a second has passed.
    """
    best, began = [math.inf] * len(runs), clock()
    for n_rounds in range(1, most_rounds + 1):
        is_settled = True
        for i, run in enumerate(runs):
            started = clock()
            run()
            seconds = clock() - started
            is_settled &= seconds >= best[i] * _SETTLED
            best[i] = min(best[i], seconds)
        if n_rounds >= _FEWEST_ROUNDS and ((is_settled and n_rounds > _FEWEST_ROUNDS) or clock() - began > _LONGEST_S):
            break
    return best
