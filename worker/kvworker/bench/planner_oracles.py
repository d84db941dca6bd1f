"""The least time that any plan takes, by trying all of them: what planners are measured against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, product

import numpy as np

from kvstore.planners.makespan import Option
from kvstore.planners.share_out import NOWHERE, Work, lay_out
from kvstore.planners.simulate import Speed

Options = Sequence[Sequence[Option]]


def best_prefix(compute_s: Sequence[float], load_s: Sequence[float]) -> float:
    """Return the least time over every split of a prefix: P1, and with layers for chunks P5."""
    return best_prefix_at(compute_s, load_s, Speed())


def best_prefix_at(compute_s: Sequence[float], load_s: Sequence[float], lane: Speed) -> float:
    """Return the least time over every split when it is known beforehand how the lane's speed will change."""
    computed = list(accumulate(compute_s, initial=0.0))
    loaded = list(accumulate(reversed(load_s), initial=0.0))[::-1]
    return min(max(done_s, lane.end(0.0, work_s)) for done_s, work_s in zip(computed, loaded, strict=True))


def best_makespan(options: Options, n_lanes: int) -> float:
    """Return the least time in which lanes that work at once bring all chunks; no chunks take none.

    Chunk by chunk, keeping every way in which the lanes may be busy that no other way beats on all lanes: as good as trying all.
    """
    states = {(0.0,) * n_lanes}
    for found in options:
        grown = {(*busy[: o.lane], busy[o.lane] + o.seconds, *busy[o.lane + 1 :]) for busy in states for o in found}
        states = _unbeaten(grown)
    return min(max(busy) for busy in states)


def _unbeaten(states: set[tuple[float, ...]]) -> set[tuple[float, ...]]:
    """Return the states that no other is at most equal to on every lane."""
    kept: list[tuple[float, ...]] = []
    for state in sorted(states):
        if not any(all(a <= b for a, b in zip(other, state, strict=True)) for other in kept):
            kept.append(state)
    return set(kept)


def best_over_tiers(compute_s: Sequence[float], options: Options, n_tiers: int) -> float:
    """Return the least time over every prefix and every assignment of the rest: P2."""
    computed = list(accumulate(compute_s, initial=0.0))
    return min(max(computed[k], best_makespan(options[k:], n_tiers) if k < len(options) else 0.0) for k in range(len(options) + 1))


def best_set(compute_s: Sequence[float], options: Options, n_tiers: int, links: Sequence[tuple[float, float]]) -> float:
    """Return the least time over every set to compute and every assignment of the rest: P3; `links` are those of computed and loaded."""
    ways = [
        [Option(n_tiers, c, link[0]), *(o._replace(after_s=link[1]) for o in found)]
        for c, found, link in zip(compute_s, options, links, strict=True)
    ]
    best = math.inf
    for chosen in product(*ways):
        busy, after_s = [0.0] * (n_tiers + 1), 0.0
        for option in chosen:
            busy[option.lane] += option.seconds
            after_s += option.after_s
        best = min(best, max(busy) + after_s)
    return best


def all_level_plans(compute_s: Sequence[float], load_s: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return time and loss of every prefix with every choice of levels (n, E) behind it: P4."""
    computed = list(accumulate(compute_s, initial=0.0))
    loads, losses = np.zeros(1), np.zeros(1)
    seconds, lost = [np.full(1, computed[-1])], [losses]
    for k in range(len(compute_s) - 1, -1, -1):
        loads, losses = np.add.outer(load_s[k], loads).ravel(), np.add.outer(loss[k], losses).ravel()
        seconds.append(np.maximum(loads, computed[k]))
        lost.append(losses)
    return np.concatenate(seconds), np.concatenate(lost)


def best_shares(work: Work, ready_s: Sequence[float]) -> float:
    """Return the least time over every set of chunks to load, on the timeline that serving plans by."""
    ways = [(False, True) if lane != NOWHERE else (False,) for lane in work.lanes]
    return min(lay_out(work, is_loaded, ready_s).seconds for is_loaded in product(*ways))
