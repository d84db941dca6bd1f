"""Levels for single values: the best ones on a line, by dynamic programming."""

from __future__ import annotations

import torch

_BINS = 512


def fit_levels(y: torch.Tensor, weights: torch.Tensor, n_levels: int) -> torch.Tensor:
    """Return the `n_levels` ascending levels float32 with the least weighted squared error for values y, weights being of their shape.

    Values are counted in 512 bins between -1 and 1, those beyond at the ends. A level is the mean of the bins from one to another, and
    which those are is exact: the squared error of a run of bins follows from three sums. Where fewer bins have values, levels repeat.
    """
    y, weights = y.flatten().clamp(-1, 1).double(), weights.flatten().double()
    at = ((y + 1) * ((_BINS - 1) / 2)).round().long()
    mass, pull = (torch.bincount(at, w, _BINS).cumsum(0) for w in (weights, weights * y))
    mass, pull = (torch.nn.functional.pad(x, (1, 0)) for x in (mass, pull))
    run_mass, run_pull = (x - x[:, None] for x in (mass, pull))  # [s, e]: of bins s to e - 1
    gain = torch.where(run_mass > 0, run_pull.square() / run_mass.clamp(min=1e-300), 0.0)  # what a level there spares
    gain += torch.full_like(gain, -torch.inf).tril(-1)
    most, begins = gain[0], []
    for _ in range(n_levels - 1):
        most, begin = (most[:, None] + gain).max(0)
        begins.append(begin)
    end, levels = _BINS, []
    for begin in reversed([torch.zeros_like(begins[0]), *begins]):
        start = int(begin[end])
        levels.append(run_pull[start, end] / run_mass[start, end] if run_mass[start, end] > 0 else torch.tensor(torch.nan))
        end = start
    return _filled(torch.stack(levels[::-1])).float()


def _filled(levels: torch.Tensor) -> torch.Tensor:
    """Return levels where those without values are like the nearest before them that has some, or the first that has."""
    number = torch.where(levels.isnan(), -1, torch.arange(len(levels))).cummax(0).values
    return levels[number.clamp(min=int((~levels.isnan()).nonzero()[0]))]
