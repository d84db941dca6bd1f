"""What a model runtime does for Larder: export the KV of passages, and answer a prompt made of stored and new pieces.

Nothing here knows a model library; `engine_hf.py` implements `Engine` over Hugging Face models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch

from kvstore.core.errors import InvalidInputError, TierUnavailableError
from kvstore.core.identity import ModelIdentity
from kvworker.chunk import ChunkSpec, KVChunk, PassageKV
from kvworker.engine.sampling import Sampler, Sampling


class LoadFailed(TierUnavailableError):  # noqa: N818 (an outcome that callers plan for: they compute the passage instead)
    """A source cannot deliver its chunk; the prompt has to be prefilled again without it."""


class CodedKV(Protocol):
    """A chunk of one layer group that is decoded where it is written: on a GPU, in one pass over memory."""

    @property
    def spec(self) -> ChunkSpec:
        """Its shape once decoded, with its layers."""

    @property
    def need(self) -> torch.Tensor | None:
        """See `KVChunk.need`."""

    def write(
        self, turn: tuple[torch.Tensor, torch.Tensor], rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> None:  # fmt: skip
        """Write K, turned by float32 cos and sin (T, R), and V of the group's last layers to `rows` of keys and values (L, H, N, D).

        `rows` (T,) int64 holds the place of each token, -1 for those that are not written.
        """


class ChunkSource(Protocol):
    """Where the stored KV of one segment comes from."""

    def group(self, index: int) -> KVChunk | CodedKV:
        """Return the chunk of layer group `index` on the engine's device once it has arrived; raise LoadFailed if it can't be had."""


@dataclass(frozen=True)
class Apart:
    """How a segment stands whose rows see only each other: as it was read alone, wherever it is. Later segments see it."""


@dataclass(frozen=True)
class Parallel(Apart):
    """How a segment stands that also shares its positions with the others of its kind, so that their order does not matter.

    Later rows divide their scores of it by `temperature`, and the log of their sum is multiplied by `scale` times `temperature`: both 1
    weigh it like anything else.
    """

    temperature: float
    scale: float

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.scale <= 0:
            raise InvalidInputError(f"temperature and scale must be above 0, got {self.temperature} and {self.scale}")


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt: a passage with its own BOS as first token, or text whose rows are all computed (source None).

    `is_exact` says that the source holds what a prefill of this very prompt would compute, so that no row needs repair. `apart` says how
    it stands among the others where it does not see those before it; what is computed of it then equals what is loaded. `links` are tokens
    right behind it that are computed for this prompt in any case, and see everything before them.
    """

    token_ids: tuple[int, ...]
    source: ChunkSource | None = None
    is_exact: bool = False
    apart: Apart | None = None
    links: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise InvalidInputError("a segment needs at least 1 token; leave empty segments out")


class Span(NamedTuple):
    """Where a segment with its links lies in its prompt: rows start to stop - 1."""

    start: int
    stop: int
    is_sourced: bool
    is_exact: bool


def spans_of(segments: Sequence[Segment]) -> list[Span]:
    """Return the rows that each segment takes, in order."""
    spans, start = [], 0
    for segment in segments:
        spans.append(Span(start, start + len(segment.token_ids) + len(segment.links), segment.source is not None, segment.is_exact))
        start = spans[-1].stop
    return spans


def laid_out(segments: Iterable[Segment]) -> list[Segment]:
    """Return a prompt's segments with all links as segments of their own."""
    pairs = ((replace(s, links=()), Segment(s.links)) if s.links else (s,) for s in segments)
    return [segment for pair in pairs for segment in pair]


def unsourced(segments: Sequence[Segment]) -> list[int]:
    """Return the rows of links and of segments without a source, ascending."""
    return [row for span in spans_of(laid_out(segments)) if not span.is_sourced for row in range(span.start, span.stop)]


def always_computed(segments: Sequence[Segment]) -> list[int]:
    """Return the rows that no source can give, ascending: those of segments without a source, and the last row, whose logits answer."""
    if not segments:
        raise InvalidInputError("a prompt needs at least one segment")
    rows, last = unsourced(segments), spans_of(segments)[-1].stop - 1
    return rows if rows and rows[-1] == last else [*rows, last]


def check_rows(segments: Sequence[Segment], rows: Sequence[int], needed: Collection[int]) -> None:
    """Raise InvalidInputError unless `rows` ascend, lie within the prompt and hold all rows of `needed`, which no source can give."""
    missing = set(needed).difference(rows)
    if missing:
        raise InvalidInputError(f"{len(missing)} rows have no source and are not computed, the first is {min(missing)}; add them to rows")
    n_tokens = sum(len(segment.token_ids) for segment in segments)
    if not rows or rows[0] < 0 or rows[-1] >= n_tokens or any(a >= b for a, b in pairwise(rows)):
        raise InvalidInputError(f"rows must be at least one and ascend without repeats within 0 and {n_tokens - 1}")


@dataclass(frozen=True)
class Change:
    """K after RoPE and V of some stored rows in one layer, (H, S, D) each: as this prompt makes them, and as they were stored."""

    rows: tuple[int, ...]
    fresh: tuple[torch.Tensor, torch.Tensor]
    stored: tuple[torch.Tensor, torch.Tensor]


class Narrowing(Protocol):
    """Takes rows out of a pass on its way up the layers; what is taken out keeps its stored K and V from that layer on."""

    @property
    def layers(self) -> Collection[int]:
        """The layers before which it is asked."""

    def keep(self, layer: int, rows: Sequence[int], look: Callable[[], Change]) -> Collection[int]:
        """Return which of `rows`, the rows under way that have a source, go on through `layer`.

        `look` asks the sources for the layer's group and returns how the rows change in it; the cache then keeps their fresh K and V in
        this one layer, also of rows that do not go on. Without a look nothing is asked for that no dropped row needs.
        """


@dataclass(frozen=True)
class Work:
    """What a prompt cost: the rows computed through all layers, and how often any row went through any layer."""

    rows: tuple[int, ...]
    layer_rows: int


class Generation:
    """The answer to one prompt: the logits after its last token, and then tokens one by one.

    Iterate once, from the thread that may use the engine: every further token is a forward pass. The end-of-sequence token is not
    yielded. `work` is what went through the model before the first token, `rows_computed` how many rows of it went through all layers.
    """

    def __init__(
        self,
        first_logits: torch.Tensor,
        work: Work,
        step: Callable[[int], torch.Tensor],
        eos_ids: frozenset[int],
        sampling: Sampling,
    ) -> None:
        self.first_logits = first_logits
        self.work = work
        self.rows_computed = len(work.rows)
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


def never() -> bool:
    """Return False: the step is not to be stopped."""
    return False


class Prefill(Protocol):
    """One prompt under way with a cache of its own, which nobody else reads and nothing is written back from.

    Used by one thread at a time, the one that may use the engine. A step that raises or is stopped counts for nothing: the prompt is as it
    was before, and the next step may ask a source for the same groups again.
    """

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What the prompt is made of, links apart from what they follow."""

    @property
    def computed(self) -> Collection[int]:
        """The rows that went through all layers so far."""

    def compute(self, rows: Sequence[int], stop: Callable[[], bool] = never) -> bool:
        """Run `rows` through all layers; return False when `stop`, which is called between layers, says True.

        Earlier rows come from earlier steps or from their sources, which are asked for a layer group right before it runs; sources of
        later rows, and of segments whose rows are all computed, are not asked. Rows that are computed already are left out.
        """

    def attention(self) -> torch.Tensor:
        """Run the rows that no source gives over everything stored; return what the last segment pays attention to, (L, T) float32.

        Each layer's attention is the mean over heads and over the rows of the last segment, and sums to 1. Sources are asked for all
        groups. Nothing that it computes counts.
        """

    def finish(self, rows: Sequence[int], narrowing: Narrowing | None = None) -> Generation:
        """Run the last step and return the answer.

        Parameters
        ----------
        rows : sequence of int
            Absolute, ascending; together with `computed` they hold every row of segments without a source and the last row of the prompt.
        narrowing : Narrowing, optional
            Takes rows out between layers.
        """


N_PROBES = 32
"""Rows of a text whose queries a study keeps."""


@dataclass(frozen=True)
class Study:
    """A text of T tokens from within, per model layer: what codecs are calibrated with.

    Parameters
    ----------
    kv : PassageKV
        Its KV, read alone.
    q_square : mapping of int to tensor (H, D) float32
        Mean squares of the queries, scaled as scores are, over all rows and the query heads that read a KV head, and over both channels of
        a rotated pair: how much an error of that channel of K, before RoPE, matters.
    mass, mass_square : mapping of int to tensor (T,) float32
        The attention, mean over heads, that each token gets from all rows: its sum, and the sum of its squares.
    probes : mapping of int to tensor (Q, S, D) float32
        Queries of the last rows, at most N_PROBES, before RoPE and scaled: what asks for K and V when an error is judged.
    grams : mapping of int to tensors (C, C) float32
        Products of the channels, h * D + d, of the weights that make K and of those that make V: W @ W.T with a row per channel.
    """

    kv: PassageKV
    q_square: Mapping[int, torch.Tensor]
    mass: Mapping[int, torch.Tensor]
    mass_square: Mapping[int, torch.Tensor]
    probes: Mapping[int, torch.Tensor] = field(default_factory=dict)
    grams: Mapping[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


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
    def max_reading_tokens(self) -> int:
        """Tokens that `export` takes at once; less than the context where angles depend on the whole (dynamic NTK scaling)."""

    @property
    def needs_fine_keys(self) -> bool:
        """Whether errors of its keys matter more than in others: six query heads or more share a KV head, or keys have a bias."""

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

    def export(self, passages: Sequence[Sequence[int]], sources: Mapping[int, ChunkSource] = ..., n_observed: int = 0) -> list[PassageKV]:
        """Prefill the concatenation of passages once and cut its KV at their borders, keys before RoPE.

        Each passage sees those before it (late chunking; or consecutive chunks of a prompt's prefix); one passage is read alone. Those in
        `sources`, by index, are loaded instead of computed and are not among the results; they must have been read behind the same
        passages. `KVChunk.asked` is told of the last `n_observed` rows of each passage, where there are any. More tokens than the context
        holds raise InvalidInputError, a source that fails raises LoadFailed.
        """

    def dependence(self, passages: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Prefill the concatenation of passages; return how much each row of each needs those before it: `KVChunk.need`."""

    def study(self, token_ids: Sequence[int]) -> Study:
        """Read a text alone; return its KV with what its rows ask for and attend to. Raises what `export` raises."""

    def begin(self, segments: Sequence[Segment], sampling: Sampling = ...) -> Prefill:
        """Start the prompt made of `segments`.

        Token ids out of range, links that are no special tokens of the model and more tokens than the context holds raise
        InvalidInputError.
        """

    def prefill(self, segments: Sequence[Segment], rows: Sequence[int], sampling: Sampling = ...) -> Generation:
        """Run a prompt in one step: `begin`, then `finish` with these rows."""
