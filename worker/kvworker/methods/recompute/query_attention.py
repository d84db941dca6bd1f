"""Compute those rows again that the question reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from kvstore.core.errors import InvalidInputError
from kvworker.answer.policy import RecomputePolicy, check_ratio, portion, repairable, still_stored, work_share
from kvworker.engine.engine import Generation, Prefill, Segment, always_computed

_OVER = ("sum", "max")


@dataclass(frozen=True)
class QueryAttention(RecomputePolicy):
    """Run the question over everything stored, and compute the rows again that it pays most attention to.

    Each layer's attention, mean over heads and question tokens in float32, is normalised over the rows that need repair; a passage's first
    row draws attention whatever is asked, so it is left out. Every layer has to be loaded before the first row is chosen, and the question
    is computed twice.

    Paper: ProphetKV (arXiv 2602.02579).

    Parameters
    ----------
    ratio : float
        Share of the rows of stored segments. The paper's is 0.2.
    over : str
        How the layers are put together: "sum" as in the paper, or "max", by which a row counts that a single layer reads. On the reference
        model 15 % and 30 % of rows by max won back 80 % and 95 % of the loss; with other weights 45 % and 80 %, by sum 30 % and 70 %.
    """

    name: ClassVar[str] = "query_attention"
    is_pipelined: ClassVar[bool] = False
    ratio: float = 0.2
    over: str = "max"

    def __post_init__(self) -> None:
        check_ratio(self.name, "ratio", self.ratio)
        if self.over not in _OVER:
            raise InvalidInputError(f"query_attention: over must be one of {', '.join(_OVER)}, got {self.over!r}")

    def finish(self, prefill: Prefill) -> Generation:
        """Look, choose and compute."""
        segments = still_stored(prefill)
        passages = repairable(segments)
        n_rows = portion(self.ratio, sum(len(own) for own in passages))
        chosen = self._choose(prefill.attention(), passages, n_rows) if n_rows else []
        return prefill.finish(sorted({*always_computed(segments), *chosen}))

    def work(self, segments: Sequence[Segment], n_layers: int) -> list[int]:
        """Return the share; that the question runs twice is the prompt's cost and no passage's."""
        return work_share(segments, self.ratio)

    def _choose(self, attention: torch.Tensor, passages: list[range], n_rows: int) -> list[int]:
        """Return the rows with most attention (L, T), first rows of passages last."""
        rows = [row for own in passages for row in own[1:]]
        mass = attention[:, rows]
        mass = mass / mass.sum(1, keepdim=True).clamp(min=1e-12)
        score = mass.sum(0) if self.over == "sum" else mass.amax(0)
        chosen = [rows[i] for i in score.topk(min(n_rows, len(rows))).indices.tolist()]
        return [*chosen, *(own.start for own in passages[: n_rows - len(chosen)])]
