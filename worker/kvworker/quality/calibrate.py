"""Measure how many right answers a model loses under every reading, codec and policy, within a bounded time."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import get_args

from kvworker.answer.policy import RecomputePolicy
from kvworker.codec.pipeline import Pipeline
from kvworker.engine.engine import Engine
from kvworker.quality import notes
from kvworker.quality.calibration import LOSSLESS, Calibration, Measured, codec_id
from kvworker.quality.context import Ask, Context
from kvworker.quality.fidelity import agrees, divergence
from kvworker.quality.measure import expected_tokens
from kvworker.quality.probe import Answered, Probe, Stored
from kvworker.quality.variants import ReadAs, fixed_policies, policies_at

Key = tuple[ReadAs, str, str]
"""ReadAs, `codec_id` and policy of one combination."""

Read = Mapping[tuple[ReadAs, str], Stored]
"""A context's passages by reading and codec."""

_SEED = 50_000
_NOTHING, _EXACT = "none", ("all", "exact")


@dataclass(frozen=True)
class Extent:
    """How much is measured: shares of rows, questions at most, passages of a context, and seconds after which it ends anyway.

    Of so many questions full prefill has to answer 163 right before a combination that loses none is proven to lose less than 1 %.
    """

    ratios: tuple[float, ...] = (0.05, 0.15, 0.3)
    n_questions: int = 1500
    n_passages: int = 8
    per_kind: int = 2
    seconds: float = 300.0


QUICK = Extent(ratios=(0.15,), n_questions=80, seconds=40.0)
_FEWEST_RIGHT = 16
_FEWEST_QUESTIONS = 8
_HOPELESS = 0.2
"""A combination whose loss is above this with all confidence is asked no further: nobody's budget is that wide."""


@dataclass
class _Outcomes:
    """One combination's answers, question by question: whether full prefill was right, this one was, and both agreed."""

    full_right: list[bool] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    same: list[bool] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, expected: frozenset[int], full: Answered, answered: Answered) -> None:
        self.full_right.append(int(full.logits.argmax()) in expected)
        self.right.append(int(answered.logits.argmax()) in expected)
        self.same.append(agrees(full.logits, answered.logits))
        self.kl.append(divergence(full.logits, answered.logits))
        self.seconds.append(answered.seconds)

    def measured(self, key: Key, basis: str, full_s: float) -> Measured:
        kept = [right for was, right in zip(self.full_right, self.right, strict=True) if was] if basis == "right" else self.same
        return Measured(*key, len(kept), kept.count(False), min(self.seconds) / full_s, statistics.mean(self.kl))


class _Survey:
    """Questions under way: what every combination answered so far."""

    def __init__(self, probe: Probe, codecs: Sequence[Pipeline], template: str, extent: Extent) -> None:
        self._probe, self._template, self._extent = probe, template, extent
        self._codecs = {codec_id(codec): codec for codec in codecs}
        self._policies: dict[Key, RecomputePolicy] = {}
        self._outcomes: dict[Key, _Outcomes] = defaultdict(_Outcomes)
        self._n_right, self._full_s = 0, math.inf

    def questions(self) -> Iterator[tuple[Context, Ask, Read]]:
        """Yield questions without end, each with its context's passages in every reading and codec."""
        seed = _SEED
        while True:
            context = notes.in_prompt(seed, self._extent.n_passages, self._extent.per_kind)
            if not self._policies:
                self._policies = self._combinations(len(self._probe.tokens(context.texts[0])))
            plain: dict[ReadAs, Stored] = {reading: self._probe.read(context, reading) for reading in get_args(ReadAs)}
            read = {
                (reading, name): stored if name == LOSSLESS else self._probe.recode(stored, codec)
                for reading, stored in plain.items()
                for name, codec in self._codecs.items()
            }
            yield from ((context, ask, read) for ask in context.asks)
            seed += 1

    def ask(self, context: Context, ask: Ask, read: Read) -> None:
        """Answer one question in full and in every combination that is still worth it."""
        text, expected = self._template.replace("{question}", ask.text), expected_tokens(self._probe.engine, ask.answer)
        full = self._probe.ask(context, text)
        self._n_right += int(full.logits.argmax()) in expected
        self._full_s = min(self._full_s, full.seconds)
        worth = worth_asking(self.measured())
        for key, policy in self._policies.items():
            if key in worth or key not in self._outcomes:
                self._outcomes[key].add(expected, full, self._probe.ask(context, text, read[key[:2]], policy))

    @property
    def basis(self) -> str:
        """Which questions count by now."""
        return "right" if self._n_right >= _FEWEST_RIGHT else "all"

    def measured(self) -> list[Measured]:
        """Return what was measured so far."""
        return [outcome.measured(key, self.basis, self._full_s) for key, outcome in self._outcomes.items()]

    def _combinations(self, passage_tokens: int) -> dict[Key, RecomputePolicy]:
        """Return what is worth measuring: an exact prefix needs no policy, and no measurement if nothing is lost."""
        told = [policy for ratio in self._extent.ratios for policy in policies_at(ratio, passage_tokens)]
        policies = [policy for policy in (*fixed_policies(), *told) if policy.name not in _EXACT]
        return {
            (reading, codec, policy.spec): policy
            for reading in get_args(ReadAs)
            for codec in self._codecs
            for policy in policies
            if reading != "prefix" or (policy.name == _NOTHING and codec != LOSSLESS)
        }


def worth_asking(rows: Sequence[Measured]) -> set[tuple[str, str, str]]:
    """Return the combinations that more questions may bring into use.

    A combination is not worth it while a cheaper one of the same reading and codec has lost no larger share, which would be chosen before
    it, nor where its loss is hopeless. All are asked until enough questions count.
    """
    few = {row for row in rows if row.n_asked < _FEWEST_RIGHT}
    able = {row for row in rows if row not in few and row.loss - (row.at_most - row.loss) <= _HOPELESS}
    beaten = {row for row in able for other in able if _is_before(other, row)}
    return {(row.reading, row.codec, row.policy) for row in few | (able - beaten)}


def _is_before(other: Measured, row: Measured) -> bool:
    """Tell whether another combination of the same reading and codec is cheaper and lost no larger share."""
    return (other.reading, other.codec) == (row.reading, row.codec) and other.cost < row.cost and other.loss <= row.loss


def calibrate_quality(
    engine: Engine, codecs: Sequence[Pipeline], template: str, extent: Extent, advance: Callable[[int], None] = lambda _: None
) -> Calibration:
    """Return what every combination loses, over contexts of the reference model's notes.

    Ends after `extent.seconds` at the first whole question behind the eighth. A loss is the share of full prefill's right answers that came
    out wrong; for a model that gives fewer than 16 right ones it is the share of first tokens that changed. Combinations that would not be
    chosen whatever came are asked fewer questions than the others.
    """
    survey, ends = _Survey(Probe(engine), codecs, template, extent), time.monotonic() + extent.seconds
    for n_asked, question in enumerate(survey.questions(), 1):
        survey.ask(*question)
        advance(1)
        if n_asked >= extent.n_questions or (n_asked >= _FEWEST_QUESTIONS and time.monotonic() > ends):
            break
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return Calibration(engine.identity.namespace.hex(), engine.device, survey.basis, date, tuple(survey.measured()))
