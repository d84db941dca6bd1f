"""Compute rows again that a seeded draw chooses: what every policy that looks at something has to beat."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvworker.answer.policy import FixedRows, check_ratio, portion, repairable
from kvworker.engine.engine import Segment


@dataclass(frozen=True)
class RandomRows(FixedRows):
    """Compute a random share of the rows of stored segments that need repair.

    Paper: none; the baseline of CacheBlend (arXiv 2405.16444).

    Parameters
    ----------
    ratio : float
        Share of these rows, within 0 and 1.
    seed : int
        The same seed draws the same rows of prompts of the same shape.
    """

    name: ClassVar[str] = "random"
    ratio: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        check_ratio(self.name, "ratio", self.ratio)

    def own_rows(self, segments: Sequence[Segment]) -> list[int]:
        """Return the drawn rows."""
        rows = [row for own in repairable(segments) for row in own]
        return random.Random(self.seed).sample(rows, portion(self.ratio, len(rows)))
