"""P4: quality as a variable. Each chunk is stored at several levels (bits, eviction ratio, rows repaired): how much to lose, and where?

Two questions with one answer: the least loss by a deadline (CacheGen, 2310.07240, with the remaining time in place of an equal share per
chunk), and the least time within a budget of loss, which is the earliest deadline whose least loss fits. A computed chunk loses nothing, so
as many chunks as the deadline allows are computed, from the front. The rest is a knapsack with one choice per chunk: begin with the
quickest levels, then spend the time that is left where a second buys the most quality.

For a stream whose speed changes, ask again after every chunk: `least_loss` of those that remain, with their seconds as the last chunk
showed them and the remaining time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvstore.core.errors import InvalidInputError
from kvstore.planners.parallel_tiers import COMPUTED

_ROUNDING = 1e-9
_HALVINGS = 12  # of the time between the quickest plan and computing all
_MOST_CHANGES = 512  # of single levels behind the knapsack, in all chunks together

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


class LevelPlan(NamedTuple):
    """`levels[i]` is the index of chunk i's level, COMPUTED for those before `first_loaded`; `is_late` when no choice was in time."""

    first_loaded: int
    levels: tuple[int, ...]
    seconds: float
    loss: float
    is_late: bool = False


class Levels:
    """Chunks with several stored forms each, prepared for questions about deadlines and budgets.

    Parameters
    ----------
    compute_s : sequence of float
        Seconds of computing each of n chunks behind all chunks before it.
    load_s, loss : array (n, E) of float
        Seconds of loading each chunk at each of E levels, infinite for a level that it lacks, and what that loses, in any unit that adds
        up over chunks. Every chunk has a level, else InvalidInputError.
    """

    def __init__(self, compute_s: Sequence[float], load_s: npt.ArrayLike, loss: npt.ArrayLike) -> None:
        self._computed: Floats = np.concatenate(([0.0], np.cumsum(np.asarray(compute_s, np.float64))))
        self._n = len(compute_s)
        self._load_s: Floats = np.asarray(load_s, np.float64).reshape(self._n, -1 if self._n else 1)
        self._loss: Floats = np.asarray(loss, np.float64).reshape(self._n, -1 if self._n else 1)
        shapes = self._load_s.shape, self._loss.shape
        if shapes[0] != shapes[1] or not np.isfinite(self._load_s).any(axis=1).all():
            raise InvalidInputError(f"{self._n} chunks need a finite level each, got {shapes[0]} loads and {shapes[1]} losses")
        self._rows: Ints = np.arange(self._n)
        self._quickest: Ints = self._load_s.argmin(axis=1)
        self._load_from = _sums_from(self._load_s[self._rows, self._quickest])
        self._prepare_steps()

    def least_loss(self, deadline_s: float) -> LevelPlan:
        """Return the plan that loses least of those done by the deadline; if none is, the quickest plan, marked as late."""
        return self._plan(*self._choose(deadline_s), deadline_s)

    def least_time(self, most_loss: float) -> LevelPlan:
        """Return the quickest plan whose losses add up to no more than `most_loss`; a negative one raises InvalidInputError."""
        if not most_loss >= 0:
            raise InvalidInputError(f"the budget of loss must not be negative, got {most_loss}; computing everything loses nothing")
        too_early_s, late_s = float(np.maximum(self._computed, self._load_from).min()), float(self._computed[-1])
        best, best_s = (self._n, self._quickest), late_s
        for _ in range(_HALVINGS):
            deadline_s = (too_early_s + late_s) / 2
            choice = self._choose(deadline_s)
            seconds, loss = self._cost(*choice)
            if loss <= most_loss and seconds < best_s:
                best, best_s = choice, seconds
            fits = loss <= most_loss and seconds <= deadline_s * (1 + 2 * _ROUNDING)
            too_early_s, late_s = (too_early_s, deadline_s) if fits else (deadline_s, late_s)
        return self._plan(*best, best_s)

    def _choose(self, deadline_s: float) -> tuple[int, Ints]:
        """Return how many chunks to compute and the levels of the others, by a deadline or, where that can't be, as soon as can be."""
        first = self._first_loaded(deadline_s)
        if first >= 0 and self._load_from[first] <= deadline_s * (1 + _ROUNDING):
            return first, self._spend(first, deadline_s)
        return int(np.maximum(self._computed, self._load_from).argmin()), self._quickest

    def _cost(self, first: int, chosen: Ints) -> tuple[float, float]:
        """Return the seconds and the loss of a choice."""
        rows, levels = self._rows[first:], chosen[first:]
        return max(float(self._computed[first]), float(self._load_s[rows, levels].sum())), float(self._loss[rows, levels].sum())

    def _prepare_steps(self) -> None:
        """Find the steps from every chunk's quickest level to better ones along their convex hull, the most loss per second first."""
        at, found = self._quickest, []
        for _ in range(self._load_s.shape[1] - 1 if self._n else 0):
            longer_s = self._load_s - self._load_s[self._rows, at][:, None]
            less = self._loss[self._rows, at][:, None] - self._loss
            gains = np.where((less > 0) & np.isfinite(longer_s), less / np.maximum(longer_s, 1e-300), 0.0)
            best = gains.argmax(axis=1)
            gain = gains[self._rows, best]
            rows = self._rows[gain > 0]
            found.append((rows, best[rows], longer_s[rows, best[rows]], gain[rows]))
            at = np.where(gain > 0, best, at)
        empty = (np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0), np.zeros(0))
        rows, levels, longest_s, gain = (np.concatenate(parts) for parts in zip(*found, empty, strict=True))
        order = np.argsort(-gain, kind="stable")  # steps of one chunk stay in their order
        self._step_rows, self._step_levels, self._step_s = rows[order], levels[order], longest_s[order]

    def _first_loaded(self, deadline_s: float) -> int:
        """Return how many chunks can be computed by the deadline; -1 for a deadline in the past."""
        return int(np.searchsorted(self._computed, deadline_s, "right")) - 1

    def _spend(self, first: int, deadline_s: float) -> Ints:
        """Return the levels after spending the time that the quickest ones leave.

        First along the hulls; then on whatever single change saves most and still fits, which is much for few chunks and nothing for many.
        """
        is_loaded = self._step_rows >= first
        spent_s = np.cumsum(self._step_s * is_loaded)
        left_s = deadline_s * (1 + _ROUNDING) - self._load_from[first]
        n_steps = int(np.searchsorted(spent_s, left_s, "right"))
        left_s -= float(spent_s[n_steps - 1]) if n_steps else 0.0
        chosen, taken = self._quickest.copy(), is_loaded[:n_steps]
        chosen[self._step_rows[:n_steps][taken]] = self._step_levels[:n_steps][taken]  # of a chunk's steps, the last counts
        for _ in range(_MOST_CHANGES // max(self._n, 1)):
            longer_s = self._load_s - self._load_s[self._rows, chosen][:, None]
            less = np.where(longer_s <= left_s, self._loss[self._rows, chosen][:, None] - self._loss, 0.0)
            less[:first] = 0.0
            row, level = divmod(int(less.argmax()), less.shape[1]) if less.size else (0, 0)
            if not less.size or less[row, level] <= 0:
                break
            left_s -= float(longer_s[row, level])
            chosen[row] = level
        return chosen

    def _plan(self, first: int, chosen: Ints, deadline_s: float) -> LevelPlan:
        """Return the plan that loads chunks from `first` on at the chosen levels."""
        seconds, loss = self._cost(first, chosen)
        marks = (COMPUTED,) * first + tuple(chosen[first:].tolist())
        return LevelPlan(first, marks, seconds, loss, seconds > deadline_s * (1 + 2 * _ROUNDING))


def _sums_from(values: Floats) -> Floats:
    """Return the sums of values from 0, 1, ..., n on."""
    return np.concatenate((np.cumsum(values[::-1])[::-1], [0.0]))
