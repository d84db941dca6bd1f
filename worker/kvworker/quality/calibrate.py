"""Measure how many right answers a model loses under every reading, codec and policy, within a bounded time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from kvworker.codec.pipeline import Pipeline
from kvworker.engine.engine import Engine
from kvworker.quality import notes
from kvworker.quality.calibration import LOSSLESS, Calibration, Measured, codec_id
from kvworker.quality.context import Ask, Context
from kvworker.quality.fidelity import agrees, divergence
from kvworker.quality.measure import expected_tokens
from kvworker.quality.probe import Answered, Probe, Stored
from kvworker.quality.variants import ReadAs, Variant, fixed_policies, policies_at

Key = tuple[ReadAs, str, str]
"""ReadAs, `codec_id` and policy of one combination."""

_SEED = 50_000
_NOTHING, _EXACT = "none", ("all", "exact")


@dataclass(frozen=True)
class Extent:
    """How much is measured: shares of rows, questions at most, passages of a context, and seconds after which it ends anyway."""

    ratios: tuple[float, ...] = (0.05, 0.15, 0.3)
    n_questions: int = 400
    n_passages: int = 8
    per_kind: int = 2
    seconds: float = 300.0


QUICK = Extent(ratios=(0.15,), n_questions=80, seconds=40.0)
_FEWEST_RIGHT = 16
_FEWEST_QUESTIONS = 8


@dataclass
class _Outcomes:
    """One combination's answers, question by question: whether full prefill was right, this one was, and both agreed."""

    full_right: list[bool] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    same: list[bool] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)

    def add(self, expected: frozenset[int], full: Answered, answered: Answered) -> None:
        self.full_right.append(int(full.logits.argmax()) in expected)
        self.right.append(int(answered.logits.argmax()) in expected)
        self.same.append(agrees(full.logits, answered.logits))
        self.kl.append(divergence(full.logits, answered.logits))
        self.cost.append(answered.seconds / full.seconds)

    def measured(self, key: Key, basis: str) -> Measured:
        kept = [right for was, right in zip(self.full_right, self.right, strict=True) if was] if basis == "right" else self.same
        return Measured(*key, len(kept), kept.count(False), statistics.median(self.cost), statistics.mean(self.kl))


def calibrate_quality(
    engine: Engine, codecs: Sequence[Pipeline], template: str, extent: Extent, advance: Callable[[int], None] = lambda _: None
) -> Calibration:
    """Return what every combination loses, over contexts of the reference model's notes.

    Ends after `extent.seconds` at the first whole question behind the eighth, so that all combinations answered the same ones. A loss is
    the share of full prefill's right answers that came out wrong; for a model that gives fewer than 16 right ones it is the share of first
    tokens that changed.
    """
    probe, ends = Probe(engine), time.monotonic() + extent.seconds
    outcomes: dict[Key, _Outcomes] = {}
    for n_asked, (context, ask, stored) in enumerate(_questions(probe, codecs, extent), 1):
        _ask(probe, context, ask, stored, template, extent, outcomes)
        advance(1)
        if n_asked >= extent.n_questions or (n_asked >= _FEWEST_QUESTIONS and time.monotonic() > ends):
            break
    n_right = min(sum(outcome.full_right) for outcome in outcomes.values())
    basis = "right" if n_right >= _FEWEST_RIGHT else "all"
    rows = tuple(outcome.measured(key, basis) for key, outcome in outcomes.items())
    return Calibration(engine.identity.namespace.hex(), engine.device, basis, datetime.now(UTC).strftime("%Y-%m-%d"), rows)


Read = Mapping[tuple[ReadAs, str], Stored]


def _questions(probe: Probe, codecs: Sequence[Pipeline], extent: Extent) -> Iterator[tuple[Context, Ask, Read]]:
    """Yield questions without end, each with its context's passages in every reading and codec."""
    unique = {codec_id(codec): codec for codec in codecs}
    seed = _SEED
    while True:
        context = notes.in_prompt(seed, extent.n_passages, extent.per_kind)
        plain: dict[ReadAs, Stored] = {reading: probe.read(context, reading) for reading in ("alone", "document", "prefix")}
        read = {
            (reading, name): stored if name == LOSSLESS else probe.recode(stored, codec)
            for reading, stored in plain.items()
            for name, codec in unique.items()
        }
        yield from ((context, ask, read) for ask in context.asks)
        seed += 1


def _ask(probe: Probe, context: Context, ask: Ask, read: Read, template: str, extent: Extent, outcomes: dict[Key, _Outcomes]) -> None:
    """Answer one question in full and in every combination."""
    text, expected = template.replace("{question}", ask.text), expected_tokens(probe.engine, ask.answer)
    full = probe.ask(context, text)
    n_tokens = len(probe.tokens(context.texts[0]))
    for (reading, codec), stored in read.items():
        for variant in _variants(reading, codec, extent.ratios, n_tokens):
            if variant.policy:
                key = (reading, codec, variant.policy.spec)
                outcomes.setdefault(key, _Outcomes()).add(expected, full, probe.ask(context, text, stored, variant.policy))


def _variants(reading: ReadAs, codec: str, ratios: Sequence[float], passage_tokens: int) -> Iterator[Variant]:
    """Yield what is worth measuring of one reading and codec: an exact prefix needs no policy, and no measurement if nothing is lost."""
    for policy in fixed_policies():
        if policy.name in _EXACT or (reading == "prefix" and (policy.name != _NOTHING or codec == LOSSLESS)):
            continue
        yield Variant(policy.name, 0.0, reading, policy)
    for ratio in ratios if reading != "prefix" else ():
        yield from (Variant(policy.name, ratio, reading, policy) for policy in policies_at(ratio, passage_tokens))
