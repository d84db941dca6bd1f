"""Seconds that grow linearly with sizes: fitted from samples, then corrected by what is observed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from kvstore.core.errors import FormatError, InvalidInputError

_LEAST_WEIGHT = 0.2  # of one observation against all before it: a lasting change is followed to within 10 % after about 12
_MOST_RATIO = 16.0  # one stalled or impossibly fast observation moves a cost no further than this would


@dataclass(frozen=True)
class LinearCost:
    """Seconds = sum of coefficient * feature; the first feature is 1 and the second the size of the work (bytes or rows).

    Parameters
    ----------
    coefficients : tuple of float
        Seconds per unit of each feature, none negative.
    relative_error : float
        Root mean square by which predictions missed, as a share of the prediction; 1.0 while no sample could contradict them.
    n_samples : int
        Samples seen so far.
    """

    coefficients: tuple[float, ...]
    relative_error: float = 1.0
    n_samples: int = 0

    def predict(self, features: Sequence[float]) -> float:
        """Return the predicted seconds."""
        return sum(coefficient * feature for coefficient, feature in zip(self.coefficients, features, strict=True))

    def observe(self, features: Sequence[float], seconds: float) -> LinearCost:
        """Return the cost with every coefficient scaled towards one more measurement.

        Scaling keeps the shape that calibration found, whatever sizes happen to be observed. It averages logarithms of ratios, so twice
        as slow and twice as fast cancel out.
        """
        predicted = self.predict(features)
        if predicted <= 0:
            return first_guess(features, seconds)
        ratio = min(max(seconds / predicted, 1 / _MOST_RATIO), _MOST_RATIO)
        weight = max(_LEAST_WEIGHT, 1 / (self.n_samples + 1))
        error = math.sqrt((1 - weight) * self.relative_error**2 + weight * math.log(ratio) ** 2)
        return LinearCost(tuple(c * ratio**weight for c in self.coefficients), error, self.n_samples + 1)

    def to_json(self) -> dict[str, Any]:
        """Return the cost as a JSON object."""
        return {**vars(self), "coefficients": list(self.coefficients)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], n_coefficients: int) -> LinearCost:
        """Check and read `to_json`; anything else raises FormatError."""
        try:
            cost = cls(tuple(float(c) for c in value["coefficients"]), float(value["relative_error"]), int(value["n_samples"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise FormatError(f"not a cost: {error!r}") from error
        numbers = (*cost.coefficients, cost.relative_error, cost.n_samples)
        if len(cost.coefficients) != n_coefficients or not all(math.isfinite(n) and n >= 0 for n in numbers):
            raise FormatError(f"a cost has {n_coefficients} coefficients, an error and a count, all finite and not negative: {cost}")
        return cost


def first_guess(features: Sequence[float], seconds: float) -> LinearCost:
    """Return the cost that explains one measurement by the size of the work alone."""
    return LinearCost(tuple(seconds / features[1] if i == 1 else 0.0 for i in range(len(features))), n_samples=1)


def fit(features: Sequence[Sequence[float]], seconds: Sequence[float]) -> LinearCost:
    """Return the non-negative coefficients with the least squared relative error.

    Exact: every subset of coefficients is tried with the others at zero (at most 7 of them for 3). Fewer different samples than
    coefficients raise InvalidInputError, because they would fit many costs equally well.
    """
    n_coefficients = len(features[0]) if features else 2
    if (n_sizes := len({tuple(row) for row in features})) < n_coefficients:
        raise InvalidInputError(f"samples of {n_sizes} different sizes do not tell {n_coefficients} coefficients apart; measure more sizes")
    scales = [max(abs(row[i]) for row in features) or 1.0 for i in range(n_coefficients)]
    rows = [[x / scale / s for x, scale in zip(row, scales, strict=True)] for row, s in zip(features, seconds, strict=True)]
    subsets = [subset for size in range(1, n_coefficients + 1) for subset in combinations(range(n_coefficients), size)]
    fits = [found for subset in subsets if (found := _least_squares(rows, subset)) and min(found) >= 0]
    best = min(fits, key=lambda found: _residual(rows, found))
    spare = len(rows) - n_coefficients
    error = math.sqrt(_residual(rows, best) / spare) if spare else 1.0
    return LinearCost(tuple(c / scale for c, scale in zip(best, scales, strict=True)), error, len(rows))


def _residual(rows: Sequence[Sequence[float]], coefficients: Sequence[float]) -> float:
    """Return the sum of squared differences from 1, which is where every row should end up."""
    return sum((sum(c * x for c, x in zip(coefficients, row, strict=True)) - 1) ** 2 for row in rows)


def _least_squares(rows: Sequence[Sequence[float]], subset: Sequence[int]) -> list[float] | None:
    """Return all coefficients, those outside the subset zero, by elimination on the normal equations; None when they are singular."""
    m = [[*(sum(row[i] * row[j] for row in rows) for j in subset), sum(row[i] for row in rows)] for i in subset]
    size = len(subset)
    for column in range(size):
        pivot = max(range(column, size), key=lambda i: abs(m[i][column]))
        m[column], m[pivot] = m[pivot], m[column]
        if abs(m[column][column]) < 1e-14 * len(rows):
            return None
        for i in range(size):
            if i != column:
                factor = m[i][column] / m[column][column]
                m[i] = [a - factor * b for a, b in zip(m[i], m[column], strict=True)]
    found = [0.0] * len(rows[0])
    for position, i in enumerate(subset):
        found[i] = m[position][size] / m[position][position]
    return found
