"""Ask every question of a context in every way, and sum up what came of it."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from kvworker.codec.pipeline import Pipeline
from kvworker.engine.engine import Engine
from kvworker.quality.context import Context
from kvworker.quality.fidelity import agrees, divergence, overlap
from kvworker.quality.probe import Answered, Probe, Stored
from kvworker.quality.variants import FULL, ReadAs, Variant


@dataclass
class Tally:
    """What one variant scored: right answers by kind, and per question how close its first token is to full prefill's."""

    right: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    same: list[bool] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    retained: list[float] = field(default_factory=list)
    rows: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, kind: str, is_right: bool, full: Answered, answered: Answered) -> None:
        """Take in one answer beside full prefill's."""
        self.right[kind].append(is_right)
        self.same.append(agrees(full.logits, answered.logits))
        self.kl.append(divergence(full.logits, answered.logits))
        self.retained.append(overlap(full.logits, answered.logits))
        self.rows.append(answered.rows)
        self.work.append(answered.work)
        self.seconds.append(answered.seconds)

    def accuracy(self, kind: str) -> float:
        """Return the share of right answers to one kind of question, of which there is at least one."""
        return statistics.mean(map(float, self.right[kind]))


Tallies = dict[Variant, Tally]


def compare(
    probe: Probe, contexts: Iterable[Context], variants: Sequence[Variant], advance: Callable[[int], None] = lambda _: None
) -> Tallies:
    """Ask every question of every context in full and by every variant; an answer is right if its first token is the expected one's."""
    tallies: Tallies = {variant: Tally() for variant in variants}
    for context in contexts:
        add_context(probe, context, tallies)
        advance(1)
    return tallies


def add_context(probe: Probe, context: Context, tallies: Tallies, codec: Pipeline | None = None) -> None:
    """Ask the questions of one context by every variant of `tallies`, over passages as `codec` gives them back."""
    readings: set[ReadAs] = {variant.reading for variant in tallies if variant.policy}
    stored = {reading: _stored(probe, context, reading, codec) for reading in sorted(readings)}
    for ask in context.asks:
        expected = expected_tokens(probe.engine, ask.answer)
        full = probe.ask(context, ask.text)
        for variant, tally in tallies.items():
            answered = full if variant == FULL else probe.ask(context, ask.text, stored[variant.reading], variant.policy)
            tally.add(ask.kind, int(answered.logits.argmax()) in expected, full, answered)


def expected_tokens(engine: Engine, answer: str) -> frozenset[int]:
    """Return the tokens that a right answer may start with: tokenizers differ in whether a word owns the space before it."""
    return frozenset(engine.encode(text)[0] for text in (answer, " " + answer))


def _stored(probe: Probe, context: Context, reading: ReadAs, codec: Pipeline | None) -> Stored:
    """Return the context's passages as they are read and, where a codec is given, stored."""
    stored = probe.read(context, reading)
    return probe.recode(stored, codec) if codec else stored
