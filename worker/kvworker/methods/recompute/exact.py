"""Compute everything that is not exact: what a worker does whose losses nobody has measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvworker.answer.policy import FixedRows
from kvworker.engine.engine import Segment, spans_of


@dataclass(frozen=True)
class RecomputeInexact(FixedRows):
    """Take from the store what a prefill of this very prompt would compute, as prefix caching does, and nothing else.

    Paper: none; prefix caching.
    """

    name: ClassVar[str] = "exact"

    def own_rows(self, segments: Sequence[Segment]) -> list[int]:
        """Return all rows of stored segments that are not an exact prefix."""
        return [row for span in spans_of(segments) if span.is_sourced and not span.is_exact for row in range(span.start, span.stop)]
