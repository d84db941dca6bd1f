"""Compute both ends of each stored passage again: where it begins, and where it hands over to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvworker.answer.policy import FixedRows, check_ratio, portion, repairable
from kvworker.engine.engine import Segment


@dataclass(frozen=True)
class AttnLink(FixedRows):
    """Compute an initial and a final share of the rows of every stored segment that needs repair.

    Needs no scores, so loading and computing can overlap from the first layer on.

    Paper: EPIC: Efficient Position-Independent Caching (arXiv 2410.15332), AttnLink of its first version.

    Parameters
    ----------
    initial, final : float
        Shares of each segment's rows, together at most 1. On the reference model, whose passages refer back in their first sentences, rows
        at the end win back nothing: 0.12 and 0.03 won back 50 % of the loss, as the first 0.15 do.
    """

    name: ClassVar[str] = "attn_link"
    initial: float = 0.12
    final: float = 0.03

    def __post_init__(self) -> None:
        check_ratio(self.name, "initial", self.initial)
        check_ratio(self.name, "final", self.final)
        check_ratio(self.name, "initial + final", self.initial + self.final)

    def own_rows(self, segments: Sequence[Segment]) -> list[int]:
        """Return the first and the last rows of each segment."""
        return [row for rows in repairable(segments) for row in {*rows[: self._first(rows)], *rows[len(rows) - self._last(rows) :]}]

    def _first(self, rows: range) -> int:
        return portion(self.initial, len(rows))

    def _last(self, rows: range) -> int:
        return portion(self.final, len(rows))
