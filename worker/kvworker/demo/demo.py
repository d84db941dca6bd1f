"""The demo: read the example documents once, then answer questions over passages in orders never seen before."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from kvclient.records import Report, Token
from kvworker.answer.answer import Question
from kvworker.demo.corpus import Example, Examples
from kvworker.engine.sampling import Sampling
from kvworker.ingest.ingest import Ingested
from kvworker.serve.runtime import Caller, Worker

_ANSWER_TOKENS = 8


@dataclass(frozen=True)
class Comparison:
    """One question answered twice: computed in full, and with what the store has."""

    example: Example
    computed: str
    stored: str
    computed_ttft_s: float
    report: Report

    @property
    def agrees(self) -> bool:
        """Whether the store's answer is that of a full prefill."""
        return self.stored == self.computed

    @property
    def is_right(self) -> bool:
        """Whether the store's answer is the expected one."""
        return self.stored.strip(" .") == self.example.answer

    @property
    def nbytes(self) -> int:
        """Bytes loaded."""
        return sum(p.nbytes for p in self.report.passages if p.action == "load")

    @property
    def tiers(self) -> str:
        """Where they came from."""
        return ", ".join(sorted({p.tier for p in self.report.passages if p.action == "load"})) or "-"


def ingest(worker: Worker, caller: Caller, examples: Examples) -> Iterator[Ingested]:
    """Read every document; yields passages as they are stored or found."""
    for source, texts in examples.documents.items():
        yield from worker.ingest(caller, source, texts)


def compare(worker: Worker, caller: Caller, examples: Examples) -> Iterator[Comparison]:
    """Ask every question: computed in full, then planned with the store; one question ahead warms the model up."""
    first = examples.questions[0]
    _ask(worker, caller, Question(first.names, first.question, Sampling(max_new_tokens=1), planner="always_compute"))
    for example in examples.questions:
        sampling = Sampling(max_new_tokens=_ANSWER_TOKENS)
        computed, full = _ask(worker, caller, Question(example.names, example.question, sampling, planner="always_compute"))
        stored, report = _ask(worker, caller, Question(example.names, example.question, sampling))
        yield Comparison(example, computed, stored, full.ttft_s, report)


def _ask(worker: Worker, caller: Caller, question: Question) -> tuple[str, Report]:
    """Return the answer and its report."""
    text = ""
    for event in worker.ask(caller, question):
        if isinstance(event, Token):
            text += event.text
        else:
            return text.strip(), event
    raise AssertionError("an answer ends with its report")


def totals(rows: list[Comparison]) -> str:
    """Return the last line: how often the answers agree and are right, and what the store saved."""
    agree, right = sum(r.agrees for r in rows), sum(r.is_right for r in rows)
    computed, stored = sum(r.computed_ttft_s for r in rows), sum(r.report.ttft_s for r in rows)
    ratio = statistics.median(r.report.ttft_s / r.computed_ttft_s for r in rows)
    return (
        f"{len(rows)} questions: {agree} answers agree with a full prefill, {right} are as expected; time to first token "
        f"{computed * 1e3:.0f} ms computed, {stored * 1e3:.0f} ms from the store (median ratio {ratio:.2f}); "
        f"{sum(r.report.tokens_loaded for r in rows)} tokens loaded, {sum(r.report.tokens_recomputed for r in rows)} computed"
    )
