"""Ask an engine over passages that were read in one way or another, without a store: logits, rows and seconds of the first token."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from kvstore.core.blob import BufferedBlob
from kvstore.core.key import Kind, content_key
from kvworker.answer.load import DeviceSource
from kvworker.answer.policy import RecomputePolicy, find_policy
from kvworker.chunk import PassageKV
from kvworker.codec.decode import decode_chunk
from kvworker.codec.pipeline import Pipeline
from kvworker.engine.engine import N_PROBES, Engine, Segment, Work, spans_of
from kvworker.engine.sampling import Sampling
from kvworker.ingest.windows import document_windows
from kvworker.quality.context import Context, Spot
from kvworker.quality.variants import ReadAs


@dataclass(frozen=True)
class Answered:
    """The logits (V,) behind a prompt, what was computed of its passages, and the seconds that it took.

    `rows` is the share of the passages' rows that ran through all layers; `work` counts every layer that a row ran through. `token_ids` are
    what was generated.
    """

    logits: torch.Tensor
    rows: float
    work: float
    seconds: float
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """The passages of a prompt as they were read before, in its order, and how many leading ones are an exact prefix of it."""

    passages: tuple[PassageKV, ...]
    n_exact: int


class Probe:
    """Reads the passages of contexts and asks over them. Not thread-safe, as its engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._bos = () if engine.bos_id is None else (engine.bos_id,)

    def tokens(self, text: str) -> tuple[int, ...]:
        """Return a passage's tokens behind a BOS of its own."""
        return (*self._bos, *self.engine.encode(text))

    def read(self, context: Context, reading: ReadAs) -> Stored:
        """Prefill what the prompt needs: each passage alone, each document at once, or the prompt's passages as they stand."""
        if reading == "prefix":
            return Stored(
                tuple(self.engine.export([self.tokens(text) for text in context.texts], n_observed=N_PROBES)), len(context.prompt)
            )
        cut: dict[Spot, PassageKV] = {}
        for document in sorted({spot[0] for spot in context.prompt}):
            passages = [self.tokens(text) for text in context.documents[document]]
            cut.update(self._read_alone(document, passages) if reading == "alone" else self._read_document(document, passages))
        return Stored(tuple(cut[spot] for spot in context.prompt), 1 if reading == "alone" else _n_exact(context.prompt))

    def _read_alone(self, document: int, passages: Sequence[tuple[int, ...]]) -> Mapping[Spot, PassageKV]:
        """Read each passage by itself, and note as ingesting does how much it needs its document."""
        cut: dict[Spot, PassageKV] = {}
        for window in document_windows([len(ids) for ids in passages], self.engine.max_reading_tokens):
            needs = self.engine.dependence(passages[window.start : window.stop])
            for i in range(window.first_new, window.stop):
                first, *others = self.engine.export([passages[i]], n_observed=N_PROBES)[0]
                cut[document, i] = (replace(first, need=needs[i - window.start]), *others)
        return cut

    def _read_document(self, document: int, passages: Sequence[tuple[int, ...]]) -> Mapping[Spot, PassageKV]:
        """Read a document as ingesting does: at once, or in overlapping windows where it is longer than the model's context."""
        cut: dict[Spot, PassageKV] = {}
        for window in document_windows([len(ids) for ids in passages], self.engine.max_reading_tokens):
            exported = self.engine.export(passages[window.start : window.stop], n_observed=N_PROBES)
            cut.update({(document, i): exported[i - window.start] for i in range(window.first_new, window.stop)})
        return cut

    def recode(self, stored: Stored, codec: Pipeline) -> Stored:
        """Return passages as a codec gives them back."""
        return Stored(tuple(self._through(kv, codec) for kv in stored.passages), stored.n_exact)

    def _through(self, kv: PassageKV, codec: Pipeline) -> PassageKV:
        content = content_key(self.engine.identity.namespace, Kind.ALONE, (0,))  # nobody looks this blob up
        reader = BufferedBlob(codec.encode(kv, self.engine.identity, Kind.ALONE, content), "")
        return decode_chunk(reader.manifest, map(reader.part, range(len(kv))), codec, self.engine.device)

    def ask(
        self,
        context: Context,
        question: str,
        stored: Stored | None = None,
        policy: RecomputePolicy | None = None,
        max_new_tokens: int = 1,
    ) -> Answered:
        """Answer a question from what is stored, repaired by a policy; without either, compute the whole prompt.

        What stands before the question in its text, as in a conversation, is computed with it.
        """
        kvs = stored.passages if stored else (None,) * len(context.prompt)
        pieces = [
            Segment(self.tokens(text), DeviceSource(kv) if kv else None, stored is not None and i < stored.n_exact)
            for i, (text, kv) in enumerate(zip(context.texts, kvs, strict=True))
        ]
        policy = policy or find_policy("all")
        segments = policy.arrange([*pieces, Segment(tuple(self.engine.encode(question)))])
        started = time.perf_counter()
        generation = policy.finish(self.engine.begin(segments, Sampling(max_new_tokens=max_new_tokens)))
        seconds = time.perf_counter() - started
        return Answered(generation.first_logits, *self._shares(segments, generation.work), seconds, tuple(generation))

    def _shares(self, segments: Sequence[Segment], work: Work) -> tuple[float, float]:
        """Return the shares of the rows before the question that ran through all layers, and of their rows in any layer."""
        n_stored, n_layers = spans_of(segments)[-1].start, self.engine.identity.layout.n_layers
        n_rows = sum(row < n_stored for row in work.rows)
        n_others = len(work.rows) - n_rows
        return n_rows / n_stored, (work.layer_rows / n_layers - n_others) / n_stored


def _n_exact(prompt: Sequence[Spot]) -> int:
    """Return how many leading passages stand as in their document, from its beginning on."""
    return next((n for n, spot in enumerate(prompt) if spot != (prompt[0][0], n)), len(prompt))
