"""TTFT from the store against TTFT computed, and what reuse does to the answers, on the example questions.

Embedded, memory tier, decoded copies switched off, every passage loaded. Contexts are filled up to a nominal size with other passages
before and behind the question's own. Pairs are interleaved: each question is computed and answered from the store in turn.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvclient.cli.output import Output
from kvclient.records import Report, Token
from kvworker.answer.answer import Question
from kvworker.bench.benchmark import Asked, show_rows
from kvworker.bench.embedded import embedded
from kvworker.bench.rows import Bench, Row
from kvworker.demo.corpus import Example, Examples
from kvworker.engine.sampling import Sampling
from kvworker.serve.runtime import Caller, Worker

_SEED = 1
_ANSWER_TOKENS = 4
_FULL = "full"


@dataclass(frozen=True)
class _Run:
    """One answer: its text and the seconds to its first token."""

    text: str
    ttft_s: float


@dataclass(frozen=True)
class ContextBench:
    """`larder bench context`."""

    name: ClassVar[str] = "context"
    sizes: tuple[int, ...] = (512, 1024, 2048)
    policies: tuple[str, ...] = ("none", "first_k", "all")
    repeats: int = 5

    @classmethod
    def quick(cls) -> ContextBench:
        """Return the benchmark at a size that ends within a minute on two cores."""
        return cls(repeats=2)

    def run(self, asked: Asked) -> Iterator[Row]:
        """Load the model, ingest the examples and yield rows, size by size."""
        with embedded(asked) as place:
            bench = Bench(self.name, "context_tokens", place.device, place.worker.engine.identity.dtype)
            yield from self._measure(bench, place.worker, place.caller, place.examples)

    def show(self, rows: Sequence[Row], output: Output) -> None:
        """Print one line per row."""
        show_rows(rows, output)

    def _measure(self, bench: Bench, worker: Worker, caller: Caller, examples: Examples) -> Iterator[Row]:
        """Ingest the examples and yield rows."""
        lengths: dict[tuple[str, int], int] = {}
        for source, texts in examples.documents.items():
            for done in worker.ingest(caller, source, texts):
                lengths[source, done.passage.index] = len(done.passage.token_ids)
        for size in self.sizes:
            asked = [(q, filled) for q in examples.questions if (filled := fill(q, lengths, size))]
            runs = [self._ask_all(worker, caller, q, names) for q, names in asked]
            if runs:
                yield from self._rows(bench, size, [q for q, _ in asked], runs)

    def _ask_all(self, worker: Worker, caller: Caller, example: Example, names: tuple[str, ...]) -> dict[str, list[_Run]]:
        """Answer one question in full and by every policy, in turn, after one round that warms up."""
        runs: dict[str, list[_Run]] = {variant: [] for variant in (_FULL, *self.policies)}
        for repeat in range(self.repeats + 1):
            for variant, kept in runs.items():
                planner, policy = ("always_compute", "all") if variant == _FULL else ("always_load", variant)
                sampling = Sampling(max_new_tokens=_ANSWER_TOKENS)
                run = _answer(worker, caller, Question(names, example.question, sampling, policy, planner))
                if repeat:
                    kept.append(run)
        return runs

    def _rows(self, bench: Bench, size: int, asked: list[Example], runs: list[dict[str, list[_Run]]]) -> Iterator[Row]:
        """Yield ratio, agreement and accuracy of every variant at one size."""
        for variant in (_FULL, *self.policies):
            correct = [float(_says(run[variant][0].text, q.answer)) for q, run in zip(asked, runs, strict=True)]
            yield bench.row(variant, "accuracy", "share", size, [statistics.mean(correct)])
            yield bench.row(variant, "ttft", "s", size, [statistics.median(r.ttft_s for r in run[variant]) for run in runs])
            if variant == _FULL:
                continue
            same = [float(run[variant][0].text == run[_FULL][0].text) for run in runs]
            yield bench.row(variant, "agreement", "share", size, [statistics.mean(same)])
            ratios = [stored.ttft_s / full.ttft_s for run in runs for stored, full in zip(run[variant], run[_FULL], strict=True)]
            yield bench.row(variant, "ttft_ratio", "ratio", size, ratios)


def fill(example: Example, lengths: Mapping[tuple[str, int], int], size: int) -> tuple[str, ...] | None:
    """Return a context of nearly `size` tokens around the question's own, or None if its own is longer."""
    used = sum(lengths[place] for place in example.context)
    if used > size:
        return None
    draw = random.Random(f"{_SEED} {example.question} {size}")
    others = [place for place in lengths if place not in example.context]
    draw.shuffle(others)
    before: list[tuple[str, int]] = []
    behind: list[tuple[str, int]] = []
    for place in others:
        if used + lengths[place] <= size:
            used += lengths[place]
            draw.choice((before, behind)).append(place)
    return tuple(f"{source}#{index}" for source, index in [*before, *example.context, *behind])


def _answer(worker: Worker, caller: Caller, question: Question) -> _Run:
    """Ask once."""
    text, ttft_s = "", 0.0
    for event in worker.ask(caller, question):
        match event:
            case Token():
                text += event.text
            case Report():
                ttft_s = event.ttft_s
    return _Run(text, ttft_s)


def _says(text: str, answer: str) -> bool:
    """Tell whether an answer's first word is the expected one."""
    return text.replace(".", " ").split()[:1] == [answer]
