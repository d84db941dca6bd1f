"""Compute every row: a full prefill, the reference that other policies are measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvworker.answer.policy import FixedRows
from kvworker.engine.engine import Segment, spans_of


@dataclass(frozen=True)
class RecomputeAll(FixedRows):
    """Take nothing from the store.

    Paper: none; the exactness test of every selective method (ratio 1).
    """

    name: ClassVar[str] = "all"

    def own_rows(self, segments: Sequence[Segment]) -> range:
        """Return all rows."""
        return range(spans_of(segments)[-1].stop)
