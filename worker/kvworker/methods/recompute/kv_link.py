"""Set trained link tokens behind passages that were read alone: they are computed for each prompt and carry what passages cannot see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from kvstore.core.errors import InvalidInputError
from kvworker.answer.policy import FixedRows
from kvworker.engine.engine import Apart, Segment


@dataclass(frozen=True)
class KVLink(FixedRows):
    """Let each passage see only itself; the links behind it see everything before them, as the question does. No passage is repaired.

    For models that were fine-tuned with such tokens. Passage i, from 0, is followed by tokens first_id + i * n to first_id + i * n + n - 1,
    which have to be special tokens of the model. What the store lacks is computed under the same mask. Passages begin with the model's
    BOS, as everywhere here; the paper's own prompts have none there, and a marker before the first passage and behind the last link.

    Paper: KVLink (arXiv 2502.16002).

    Parameters
    ----------
    first_id : int
        The model's first link token, at least 0; there is no default.
    n : int
        Links behind each passage, at least 1; 5 is the paper's best.
    """

    name: ClassVar[str] = "kv_link"
    is_in_turn: ClassVar[bool] = False
    is_general: ClassVar[bool] = False
    first_id: int = -1
    n: int = 5

    def __post_init__(self) -> None:
        if self.first_id < 0 or self.n < 1:
            raise InvalidInputError(
                f"policy kv_link needs the id of the model's first link token, at least 0, and 1 or more links behind each passage; got "
                f"first_id={self.first_id}, n={self.n}. Say kv_link:first_id=ID"
            )

    def arrange(self, segments: Sequence[Segment]) -> list[Segment]:
        """Return the passages apart with their links, and the question behind them."""
        *passages, question = segments
        return [*(replace(s, apart=Apart(), links=self._links(i)) for i, s in enumerate(passages)), question]

    def own_rows(self, segments: Sequence[Segment]) -> list[int]:
        """Return no rows."""
        return []

    def work(self, segments: Sequence[Segment], n_layers: int) -> list[int]:
        """Return how many links each segment has."""
        return [len(segment.links) for segment in segments]

    def _links(self, index: int) -> tuple[int, ...]:
        """Return the tokens behind a passage."""
        first = self.first_id + index * self.n
        return tuple(range(first, first + self.n))
