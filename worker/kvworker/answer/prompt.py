"""One question's prompt: passages, what the store has of them, and the plan's segments."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from kvstore.core.api import Hit, Status
from kvstore.planners.plan import Hits, Offer, PassageAsk, Request
from kvworker.answer.policy import RecomputePolicy
from kvworker.chunk import KVChunk
from kvworker.engine.engine import ChunkSource, Segment
from kvworker.ingest.passages import Passage

DEVICE = "device"
DECODED = "decoded"


class _Promised:
    """Stands for a source while rows are only counted."""

    def group(self, index: int) -> KVChunk:
        """Never called."""
        raise NotImplementedError(index)


@dataclass(frozen=True)
class Prompt:
    """Passages in the caller's order, then the question's tokens."""

    passages: tuple[Passage, ...]
    question_ids: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        """Rows of the whole prompt."""
        return sum(len(p.token_ids) for p in self.passages) + len(self.question_ids)

    @cached_property
    def n_exact(self) -> int:
        """How many leading passages were read exactly as they stand here: each behind the one before it, the first alone.

        Their chunks are an exact prefix of the prompt.
        """
        before: bytes | None = None
        for n, passage in enumerate(self.passages):
            if passage.parent != before:
                return n
            before = passage.content
        return len(self.passages)

    def segments(self, sources: Mapping[int, ChunkSource]) -> list[Segment]:
        """Return the prompt's pieces; passage i has `sources[i]`, or is computed where there is none."""
        pieces = [Segment(p.token_ids, sources.get(i), i < self.n_exact) for i, p in enumerate(self.passages)]
        return [*pieces, Segment(self.question_ids)]

    def request(self, policy: RecomputePolicy) -> Request:
        """Return what a planner is asked: places, lengths and the rows that the policy repairs in a loaded passage."""
        starts = list(accumulate((len(p.token_ids) for p in self.passages), initial=0))
        rows = sorted(policy.own_rows(self.segments({i: _Promised() for i in range(len(self.passages))})))
        asks = [
            PassageAsk(i, len(p.token_ids), starts[i], bisect_left(rows, starts[i + 1]) - bisect_left(rows, starts[i]))
            for i, p in enumerate(self.passages)
        ]
        return Request(tuple(asks), len(self.question_ids))


def offers(hits: Sequence[Hit], codec: str, device_nbytes: Mapping[int, int]) -> Hits:
    """Return what can be loaded: decoded copies in device memory (their sizes by passage) first, then what the store has READY."""
    found: dict[int, list[Offer]] = {}
    for index, hit in enumerate(hits):
        if index in device_nbytes:
            found.setdefault(index, []).append(Offer(DEVICE, device_nbytes[index], hit.key.variant, DECODED))
        if hit.status is Status.READY:
            found.setdefault(index, []).append(Offer(hit.tier, hit.nbytes, hit.key.variant, codec))
    return found
