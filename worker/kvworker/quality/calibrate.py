"""Measure how many right answers a model loses under every reading, codec and policy, until a budget's choices are certain."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import get_args

import torch

from kvworker.answer.policy import RecomputePolicy, parse_policy
from kvworker.codec.pipeline import Pipeline
from kvworker.engine.engine import Engine
from kvworker.quality import notes
from kvworker.quality.calibration import ALL, KNOWN, LOSSLESS, Calibration, Measured, codec_id
from kvworker.quality.context import Ask, Context
from kvworker.quality.fidelity import agrees, divergence
from kvworker.quality.measure import expected_tokens
from kvworker.quality.probe import Answered, Probe, Stored
from kvworker.quality.variants import ReadAs, fixed_policies, is_for, policies_at

Key = tuple[ReadAs, str, str]
"""ReadAs, `codec_id` and policy of one combination."""

_SEED = 50_000
_NOTHING, _EXACT = "none", ("all", "exact")
_FEWEST_KNOWN, _SURE = 16, 0.5
_LOOKS = 8
"""Questions that every combination is asked: their costs are compared by them."""
_ABREAST = 4
"""Combinations of one reading and codec that are asked at once, at most."""


@dataclass(frozen=True)
class Extent:
    """How much is measured: shares of rows, questions at most, passages of a context, and seconds after which it ends anyway.

    Of 22 combinations, one that loses nothing is certain to lose less than 1 % behind 765 questions that count, and behind 2,162 if six of
    them were lost.
    """

    ratios: tuple[float, ...] = (0.05, 0.15, 0.3)
    n_questions: int = 4000
    n_passages: int = 8
    per_kind: int = 2
    seconds: float = 300.0


QUICK = Extent(ratios=(0.15,), n_questions=1500, seconds=45.0)


@dataclass
class _Outcomes:
    """What one combination answered: questions, those whose answer full prefill knows, and how many of either it answers otherwise."""

    n_asked: int = 0
    n_changed: int = 0
    n_known: int = 0
    n_lost: int = 0
    kl: float = 0.0
    seconds: float = math.inf

    def add(self, expected: frozenset[int], full: Answered, answered: Answered) -> None:
        self.n_asked += 1
        self.n_changed += not agrees(full.logits, answered.logits)
        if knows(full.logits, expected):
            self.n_known += 1
            self.n_lost += int(answered.logits.argmax()) not in expected
        self.kl += divergence(full.logits, answered.logits)
        if self.n_asked <= _LOOKS:
            self.seconds = min(self.seconds, answered.seconds)

    def measured(self, key: Key, basis: str, full_s: float) -> Measured:
        counted = (self.n_known, self.n_lost) if basis == KNOWN else (self.n_asked, self.n_changed)
        return Measured(*key, *counted, self.seconds / full_s, self.kl / self.n_asked)


def knows(logits: torch.Tensor, expected: frozenset[int]) -> bool:
    """Tell whether the most likely token of logits (V,) is expected, and is as likely as all others together.

    What is less likely is guessed, and lucky guesses turn out otherwise whatever one does: of 297 questions that the reference model has no
    method for, reading in documents lost 11 of the 112 that were right, and won 8 of the others.
    """
    best = int(logits.argmax())
    return best in expected and float(torch.softmax(logits.double(), -1)[best]) >= _SURE


class _Survey:
    """Questions under way: what every combination answered so far."""

    def __init__(self, probe: Probe, codecs: Sequence[Pipeline], template: str, extent: Extent) -> None:
        self._probe, self._template, self._extent = probe, template, extent
        self._codecs = {codec_id(codec): codec for codec in codecs}
        self._policies: dict[Key, RecomputePolicy] = {}
        self._outcomes: dict[Key, _Outcomes] = defaultdict(_Outcomes)
        self._full = _Outcomes()
        self._context: Context | None = None
        self._read: dict[tuple[ReadAs, str], Stored] = {}

    def questions(self) -> Iterator[tuple[Context, Ask]]:
        """Yield questions without end."""
        seed = _SEED
        while True:
            context = notes.in_prompt(seed, self._extent.n_passages, self._extent.per_kind)
            if not self._policies:
                self._policies = self._combinations(len(self._probe.tokens(context.texts[0])))
            yield from ((context, ask) for ask in context.asks)
            seed += 1

    def wanted(self, budget: float) -> set[Key]:
        """Return the combinations to ask next: all at first, then those that `undecided` names."""
        if self._full.n_asked < _LOOKS:
            return set(self._policies)
        names = undecided(self.measured(), budget)
        return {key for key in self._policies if key in names}

    def ask(self, context: Context, ask: Ask, wanted: set[Key]) -> None:
        """Answer one question in full and in every wanted combination."""
        text, expected = self._template.replace("{question}", ask.text), expected_tokens(self._probe.engine, ask.answer)
        full = self._probe.ask(context, text)
        self._full.add(expected, full, full)
        for key in sorted(wanted):
            stored = self._stored(context, *key[:2])
            self._outcomes[key].add(expected, full, self._probe.ask(context, text, stored, self._policies[key]))

    @property
    def basis(self) -> str:
        """Which questions count by now."""
        return KNOWN if self._full.n_known >= _FEWEST_KNOWN else ALL

    def measured(self) -> list[Measured]:
        """Return what was measured so far; a combination of which no question counts yet has nothing to say."""
        rows = [outcome.measured(key, self.basis, self._full.seconds) for key, outcome in self._outcomes.items()]
        return undisturbed([row for row in rows if row.n_asked])

    def _stored(self, context: Context, reading: ReadAs, codec: str) -> Stored:
        """Return a context's passages in one reading and codec, read when they are first wanted."""
        if context is not self._context:
            self._context, self._read = context, {}
        if (reading, codec) not in self._read:
            if codec == LOSSLESS:
                self._read[reading, codec] = self._probe.read(context, reading)
            else:
                self._read[reading, codec] = self._probe.recode(self._stored(context, reading, LOSSLESS), self._codecs[codec])
        return self._read[reading, codec]

    def _combinations(self, passage_tokens: int) -> dict[Key, RecomputePolicy]:
        """Return what is worth measuring: an exact prefix needs no policy, and no measurement if nothing is lost."""
        told = [policy for ratio in self._extent.ratios for policy in policies_at(ratio, passage_tokens)]
        policies = [policy for policy in (*fixed_policies(), *told) if policy.name not in _EXACT]
        return {
            (reading, codec, policy.spec): policy
            for reading in get_args(ReadAs)
            for codec in self._codecs
            for policy in policies
            if is_for(policy, reading) and (reading != "prefix" or (policy.name == _NOTHING and codec != LOSSLESS))
        }


def undisturbed(rows: Sequence[Measured]) -> list[Measured]:
    """Return the combinations with what repairs nothing as cheap as the cheapest of its like; else the machine was busy."""
    least: dict[tuple[str, str], float] = {}
    for row in rows:
        way = row.reading, row.codec
        least[way] = min(row.cost, least.get(way, math.inf))
    return [replace(row, cost=least[row.reading, row.codec]) if row.policy == _NOTHING else row for row in rows]


def undecided(rows: Sequence[Measured], budget: float) -> set[tuple[str, str, str]]:
    """Return the combinations that more questions may bring into use, or out of it.

    Those of one reading and codec are looked through from the cheapest on. What certainly loses more than the budget is asked no further,
    nor what costs more than one that certainly keeps to it. The others are asked up to the first that seems to keep to it and one more, for
    when it turns out not to. Those that do not read in turn compete among themselves: nobody but an operator chooses them.
    """
    groups: dict[tuple[str, str, bool], list[Measured]] = defaultdict(list)
    for row in rows:
        groups[row.reading, row.codec, parse_policy(row.policy).is_in_turn].append(row)
    return {(row.reading, row.codec, row.policy) for group in groups.values() for row in _open(group, budget)[:_ABREAST]}


def _open(rivals: Sequence[Measured], budget: float) -> list[Measured]:
    """Return which of the combinations of one reading and codec to ask next."""
    found: list[Measured] = []
    has_favourite = False
    for row in sorted(rivals, key=lambda row: row.cost):
        if row.at_most(len(rivals)) <= budget:
            break
        if row.at_least <= budget:
            found.append(row)
            if has_favourite:
                break
            has_favourite = row.loss <= budget
    return found


def calibrate_quality(
    engine: Engine,
    codecs: Sequence[Pipeline],
    template: str,
    extent: Extent,
    budget: float,
    advance: Callable[[int], None] = lambda _: None,
) -> Calibration:
    """Return what every combination loses, over contexts of the reference model's notes, as far as it decides what keeps to a budget.

    Ends when that is certain, or after `extent.seconds` at the first whole question behind the eighth. A loss is the share that came out
    wrong of the answers that full prefill knows; for a model that knows fewer than 16 it is the share of first tokens that changed.
    Combinations that would not be chosen whatever came are asked fewer questions than the others.
    """
    survey, ends = _Survey(Probe(engine), codecs, template, extent), time.monotonic() + extent.seconds
    for n_asked, question in enumerate(survey.questions(), 1):
        survey.ask(*question, survey.wanted(budget))
        advance(1)
        is_over = n_asked >= extent.n_questions or time.monotonic() > ends or not survey.wanted(budget)
        if n_asked >= _LOOKS and is_over:
            break
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return Calibration(engine.identity.namespace.hex(), engine.device, survey.basis, date, tuple(survey.measured()))
