"""Set passages side by side at the same positions, and let the question weigh them as one part of what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from kvworker.answer.policy import FixedRows
from kvworker.engine.engine import Parallel, Segment


@dataclass(frozen=True)
class ParallelPassages(FixedRows):
    """Let each passage see only itself, all of them at the same positions, so that their order does not matter.

    Temperature and scale bring the question's attention over many beginnings back to what one sequence would get. Passages that begin
    with the same token, their own BOS, have it once. What the store lacks is computed in the same way. Nothing is repaired.

    Paper: APE: Adaptive Parallel Encoding (arXiv 2502.05431); no training needed.

    Parameters
    ----------
    temperature, scale : float
        Above 0; the paper's 0.9 by default. Both 1 weigh passages like anything else.
    """

    name: ClassVar[str] = "parallel"
    is_in_turn: ClassVar[bool] = False
    temperature: float = 0.9
    scale: float = 0.9

    def __post_init__(self) -> None:
        Parallel(self.temperature, self.scale)  # which checks them

    def arrange(self, segments: Sequence[Segment]) -> list[Segment]:
        """Return the passages side by side, and the question behind them."""
        *passages, question = segments
        apart = Parallel(self.temperature, self.scale)
        return [*(replace(segment, apart=apart) for segment in passages), question]

    def own_rows(self, segments: Sequence[Segment]) -> list[int]:
        """Return no rows."""
        return []
