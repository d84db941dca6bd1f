"""Answers over KV that a codec gave back, beside answers over the same KV as it was."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kvworker.answer.load import DeviceSource
from kvworker.chunk import PassageKV
from kvworker.engine.engine import N_PROBES, Engine, Segment, always_computed
from kvworker.engine.sampling import Sampling
from kvworker.quality.context import Context
from kvworker.quality.fidelity import agrees, divergence
from kvworker.quality.measure import expected_tokens


@dataclass(frozen=True)
class Answers:
    """Shares of first tokens that are those from raw KV and that are right, and the mean divergence from raw KV's distribution in nats."""

    top1: float
    kl: float
    accuracy: float


@dataclass(frozen=True)
class _Question:
    """A question's tokens behind context number `context`, what a right answer starts with, and the logits over raw KV."""

    context: int
    token_ids: tuple[int, ...]
    expected: frozenset[int]
    logits: torch.Tensor


class Asking:
    """Questions about contexts, each context read once as one passage. Not thread-safe, as its engine."""

    def __init__(self, engine: Engine, contexts: Sequence[Context]) -> None:
        self._engine = engine
        bos = () if engine.bos_id is None else (engine.bos_id,)
        self._read = [tuple(token for text in c.texts for token in (*bos, *engine.encode(text))) for c in contexts]
        self._kv = [engine.export([ids], n_observed=N_PROBES)[0] for ids in self._read]
        self._questions = [
            _Question(n, ids, expected_tokens(engine, ask.answer), self._logits(n, ids, self._kv[n]))
            for n, context in enumerate(contexts)
            for ask in context.asks
            for ids in (tuple(engine.encode(ask.text)),)
        ]

    def ask(self, through: Callable[[PassageKV], PassageKV]) -> Answers:
        """Ask everything over what `through` makes of the contexts' KV."""
        back = [through(kv) for kv in self._kv]
        found = [(q, self._logits(q.context, q.token_ids, back[q.context])) for q in self._questions]
        return Answers(
            statistics.mean(float(agrees(q.logits, logits)) for q, logits in found),
            statistics.mean(divergence(q.logits, logits) for q, logits in found),
            statistics.mean(float(int(logits.argmax()) in q.expected) for q, logits in found),
        )

    def _logits(self, context: int, question: tuple[int, ...], kv: PassageKV) -> torch.Tensor:
        """Return the logits (V,) behind a question over a context's KV."""
        segments = [Segment(self._read[context], DeviceSource(kv), True), Segment(question)]
        return self._engine.prefill(segments, always_computed(segments), Sampling(max_new_tokens=1)).first_logits
