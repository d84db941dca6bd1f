"""Compute nothing that is stored: the fastest answer, and the floor of quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvworker.answer.policy import FixedRows
from kvworker.engine.engine import Segment


@dataclass(frozen=True)
class RecomputeNothing(FixedRows):
    """Take every stored row as it is.

    Exact where the stored rows saw the same tokens as in this prompt (a leading passage, a prefix); elsewhere what an earlier passage
    says to a later one is lost.

    Paper: none; what prefix caching does, at any position.
    """

    name: ClassVar[str] = "none"

    def own_rows(self, segments: Sequence[Segment]) -> list[int]:
        """Return no rows."""
        return []
