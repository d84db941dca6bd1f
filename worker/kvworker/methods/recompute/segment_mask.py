"""Leave passages apart from each other, as models are trained to read them: nothing is repaired, because nothing is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from kvworker.answer.policy import FixedRows
from kvworker.engine.engine import Apart, Segment


@dataclass(frozen=True)
class SegmentMask(FixedRows):
    """Let each passage see only itself, and the question everything; positions go on from passage to passage.

    For models that were fine-tuned for this mask, whose passages are to be read alone. What the store lacks is computed under the same
    mask, so that an answer does not depend on what was stored. Any other model loses by it what it loses by the policy `none`.

    Papers: Block-Attention (arXiv 2409.15355), TurboRAG (arXiv 2410.07590).
    """

    name: ClassVar[str] = "segment_mask"
    is_in_turn: ClassVar[bool] = False

    def arrange(self, segments: Sequence[Segment]) -> list[Segment]:
        """Return the passages apart, and the question behind them."""
        *passages, question = segments
        return [*(replace(segment, apart=Apart()) for segment in passages), question]

    def own_rows(self, segments: Sequence[Segment]) -> list[int]:
        """Return no rows."""
        return []
