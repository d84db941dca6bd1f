"""What a model runtime does for Larder: export the KV of passages, and answer a prompt made of stored and new pieces.

Nothing here knows a model library; `engine_hf.py` implements `Engine` over Hugging Face models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch

from kvstore.core.errors import InvalidInputError, TierUnavailableError
from kvstore.core.identity import ModelIdentity
from kvworker.chunk import KVChunk, PassageKV
from kvworker.engine.sampling import Sampler, Sampling


class LoadFailed(TierUnavailableError):  # noqa: N818 (an outcome that callers plan for: they compute the passage instead)
    """A source cannot deliver its chunk; the prompt has to be prefilled again without it."""


class ChunkSource(Protocol):
    """Where the stored KV of one segment comes from."""

    def group(self, index: int) -> KVChunk:
        """Return the chunk of layer group `index` on the engine's device once it is decoded; raise LoadFailed if it can't be had."""


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt: a passage with its own BOS as first token, or text whose rows are all computed (source None).

    `is_exact` says that the source holds what a prefill of this very prompt would compute, so that no row needs repair.
    """

    token_ids: tuple[int, ...]
    source: ChunkSource | None = None
    is_exact: bool = False

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise InvalidInputError("a segment needs at least 1 token; leave empty segments out")


@dataclass(frozen=True)
class Span:
    """Where a segment lies in its prompt: rows start to stop - 1."""

    start: int
    stop: int
    is_sourced: bool
    is_exact: bool


def spans_of(segments: Sequence[Segment]) -> list[Span]:
    """Return the rows that each segment takes, in order."""
    spans, start = [], 0
    for segment in segments:
        spans.append(Span(start, start + len(segment.token_ids), segment.source is not None, segment.is_exact))
        start = spans[-1].stop
    return spans


def always_computed(segments: Sequence[Segment]) -> list[int]:
    """Return the rows that no source can give, ascending: those of segments without a source, and the last row, whose logits answer."""
    spans = spans_of(segments)
    if not spans:
        raise InvalidInputError("a prompt needs at least one segment")
    rows = [row for span in spans if not span.is_sourced for row in range(span.start, span.stop)]
    last = spans[-1].stop - 1
    return rows if rows and rows[-1] == last else [*rows, last]


def check_rows(segments: Sequence[Segment], rows: Sequence[int]) -> None:
    """Raise InvalidInputError unless `rows` ascend, lie within the prompt and hold all that must be computed."""
    n_tokens = sum(len(segment.token_ids) for segment in segments)
    missing = set(always_computed(segments)) - set(rows)
    if missing:
        raise InvalidInputError(f"{len(missing)} rows have no source and are not computed, the first is {min(missing)}; add them to rows")
    if rows[0] < 0 or rows[-1] >= n_tokens or any(a >= b for a, b in pairwise(rows)):
        raise InvalidInputError(f"rows must ascend without repeats within 0 and {n_tokens - 1}")


class Generation:
    """The answer to one prompt: the logits after its last token, and then tokens one by one.

    Iterate once, from the thread that may use the engine: every further token is a forward pass. The end-of-sequence token is not
    yielded. `rows_computed` counts the rows of the prompt that went through the model.
    """

    def __init__(
        self,
        first_logits: torch.Tensor,
        rows_computed: int,
        step: Callable[[int], torch.Tensor],
        eos_ids: frozenset[int],
        sampling: Sampling,
    ) -> None:
        self.first_logits = first_logits
        self.rows_computed = rows_computed
        self._step, self._eos_ids, self._sampling = step, eos_ids, sampling

    def __iter__(self) -> Iterator[int]:
        """Yield token ids until end of sequence, `max_new_tokens` or the end of the model's context."""
        sampler = Sampler(self._sampling)
        logits = self.first_logits
        for n_yielded in range(1, self._sampling.max_new_tokens + 1):
            token = sampler.choose(logits)
            if token in self._eos_ids:
                return
            yield token
            if n_yielded < self._sampling.max_new_tokens:
                logits = self._step(token)


class Engine(Protocol):
    """One loaded model. Not thread-safe: callers make sure that one call or one step of a generation runs at a time."""

    @property
    def identity(self) -> ModelIdentity:
        """What the model's KV is stored under; its layout names the layer groups of every chunk."""

    @property
    def device(self) -> str:
        """Where it computes: "cpu" or "cuda:0"."""

    @property
    def max_context_tokens(self) -> int:
        """Tokens of prompt and answer together."""

    @property
    def bos_id(self) -> int | None:
        """The token that starts a passage, or None where the family has none."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a generation."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""

    def export(self, passages: Sequence[Sequence[int]]) -> list[PassageKV]:
        """Prefill the concatenation of passages once and cut its KV at their borders, keys before RoPE.

        Each passage sees those before it (late chunking; or consecutive chunks of a prompt's prefix); one passage is read alone. More
        tokens than the context holds raise InvalidInputError.
        """

    def prefill(self, segments: Sequence[Segment], rows: Sequence[int], sampling: Sampling = ...) -> Generation:
        """Run the prompt made of `segments`: compute `rows`, take every other row from its segment's source.

        Parameters
        ----------
        rows : sequence of int
            Absolute, ascending; they hold every row of segments without a source and the last row of the prompt.

        A source is asked for a layer group right before the group's first layer runs, and not at all when all its rows are computed.
        Computed rows stay in the request's own cache. Raises InvalidInputError for other rows or token ids and beyond the
        context, and whatever a source raises (LoadFailed), after which the engine is ready for the next call.
        """
