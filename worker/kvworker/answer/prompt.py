"""One question's prompt: passages, what the store has of their readings, and the plan's segments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

from kvstore.core.api import Hit, Status
from kvstore.core.identity import KVLayout
from kvstore.core.key import ChunkKey
from kvstore.core.stages import PipelineSpec
from kvstore.planners.plan import Hits, Offer, PassageAsk, Request
from kvworker.answer.policy import RecomputePolicy
from kvworker.chunk import KVChunk
from kvworker.engine.engine import ChunkSource, Segment, spans_of
from kvworker.ingest.passages import ALONE, Passage, Reading
from kvworker.quality.variants import ReadAs

DEVICE = "device"
DECODED = "decoded"


class _Promised:
    """Stands for a source while rows are only counted."""

    def group(self, index: int) -> KVChunk:
        """Never called."""
        raise NotImplementedError(index)


@dataclass(frozen=True)
class Stored:
    """What the store says about one reading of a passage."""

    reading: Reading
    hit: Hit


def forms(reading: Reading, hits: Sequence[Hit]) -> list[Stored]:
    """Return what the store has of a reading, in whatever codec, or else what it says of the first."""
    return [Stored(reading, hit) for hit in hits if hit.status is not Status.ABSENT] or [Stored(reading, hits[0])]


@dataclass(frozen=True)
class Asked:
    """A passage as it was named, and all readings of it that may be used, the best first; none where it has to be computed.

    A reading that is stored in several codecs is there several times.
    """

    passage: Passage
    stored: tuple[Stored, ...]

    def best(self, device_nbytes: Mapping[ChunkKey, int]) -> Stored | None:
        """Return the best reading that can be loaded, else the best one, which the store lacks."""
        usable = (s for s in self.stored if s.hit.status is Status.READY or s.hit.key in device_nbytes)
        return next(usable, self.stored[0] if self.stored else None)

    def form(self, offer: Offer) -> Stored:
        """Return what is stored of the reading and in the codec of an offer."""
        return next(s for s in self.stored if (s.reading.read_as, s.hit.key.variant) == (offer.read_as, offer.variant))

    def lacking(self) -> Iterator[Stored]:
        """Yield the readings that are absent and better than any that is stored or on its way."""
        return takewhile(lambda s: s.hit.status is Status.ABSENT, self.stored)


@dataclass(frozen=True)
class Prompt:
    """Passages in the caller's order, each as it is read, then the question's tokens."""

    passages: tuple[Passage, ...]
    question_ids: tuple[int, ...]

    def read_in(self, readings: Sequence[Stored | None]) -> Prompt:
        """Return the prompt with each passage in the reading given for it."""
        passages = (s.reading.passage if s else p for p, s in zip(self.passages, readings, strict=True))
        return Prompt(tuple(passages), self.question_ids)

    @property
    def n_tokens(self) -> int:
        """Tokens of passages and question, without links."""
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

    def request(self, policy: RecomputePolicy, layout: KVLayout) -> Request:
        """Return what a planner is asked: places, lengths and the rows that the policy computes of a loaded passage and its links."""
        segments = policy.arrange(self.segments({i: _Promised() for i in range(len(self.passages))}))
        *spans, question = spans_of(segments)
        work = policy.work(segments, layout.n_layers)
        asks = [PassageAsk(i, span.stop - span.start, span.start, work[i]) for i, span in enumerate(spans)]
        return Request(tuple(asks), question.stop - question.start)


def read_as(prompt: Prompt, best: Sequence[Stored | None]) -> ReadAs:
    """Return how the passages that may be loaded were read: alone if any was, unless all of them are an exact prefix of the prompt."""
    n_exact = prompt.read_in(best).n_exact
    others = {stored.reading.read_as for stored in best[n_exact:] if stored}
    return "alone" if ALONE in others else "document" if others else "prefix"


def offers(asked: Sequence[Asked], codecs: Mapping[bytes, PipelineSpec], device_nbytes: Mapping[ChunkKey, int]) -> Hits:
    """Return what can be loaded, the best readings first: decoded copies in device memory, then what the store has READY.

    `codecs` are those that chunks may be stored in, by variant.
    """
    found: dict[int, list[Offer]] = {}
    for index, passage in enumerate(asked):
        for stored in passage.stored:
            hit, read_as, rank = stored.hit, stored.reading.read_as, stored.reading.rank
            if hit.key in device_nbytes:
                copy = Offer(DEVICE, device_nbytes[hit.key], hit.key.variant, DECODED, read_as, rank)
                found.setdefault(index, []).append(copy)
            if hit.status is Status.READY:
                label = codecs[hit.key.variant].label
                found.setdefault(index, []).append(Offer(hit.tier, hit.nbytes, hit.key.variant, label, read_as, rank))
    return found
