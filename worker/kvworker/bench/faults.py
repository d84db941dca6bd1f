"""Stores that die, stall or lie in the middle of a request: whether the answer is the computed one, and how late its first token comes.

A random model of 100 million parameters answers over a document in its own order, whose chunks come over a link; every request meets one
fault at a byte that a seed chooses. `over_bound` is the time to the first token over that of computing alone, asked in between, and
`worker.load_slack_s` on top.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from kvclient.cli.output import Output
from kvclient.records import Report, Token
from kvworker.answer.answer import Question
from kvworker.bench.benchmark import Asked, show_rows
from kvworker.bench.embedded import RANDOM, Embedded, embedded
from kvworker.bench.faulty import KINDS, Fault, FaultyStore
from kvworker.bench.race import passages
from kvworker.bench.rows import Bench, Row
from kvworker.engine.sampling import Sampling
from kvworker.serve.runtime import Caller

_N_TOKENS = 4
_COMPUTED_EVERY = 5


@dataclass(frozen=True)
class FaultsBench:
    """`larder bench faults`; its sizes are bandwidths in bytes per second. Fast links are waited for, slow ones raced."""

    name: ClassVar[str] = "faults"
    sizes: tuple[int, ...] = (200_000_000, 5_000_000_000)
    faults: int = 100
    passages: int = 8
    passage_tokens: int = 64

    @classmethod
    def quick(cls) -> FaultsBench:
        """Return the benchmark at a size that ends within a minute on two cores."""
        return cls(sizes=(5_000_000_000,), faults=40)

    def run(self, asked: Asked) -> Iterator[Row]:
        """Yield rows, bandwidth by bandwidth and kind by kind."""
        for bandwidth in self.sizes:
            with embedded(replace(asked, model=asked.model or RANDOM)) as place:
                yield from self._measure(place, bandwidth)

    def show(self, rows: Sequence[Row], output: Output) -> None:
        """Print one line per row."""
        show_rows(rows, output)

    def _measure(self, place: Embedded, bandwidth: float) -> Iterator[Row]:
        """Ask over one link, fault after fault, and yield what came of it."""
        store = FaultyStore(place.caller.store, bandwidth)
        caller = Caller(place.caller.tenant, store)
        texts = passages(place.worker.engine, self.passages, self.passage_tokens)
        names = tuple(done.passage.content.hex() for done in place.worker.ingest(caller, "faults", texts))
        question = Question(names, " What?", Sampling(max_new_tokens=_N_TOKENS), "none")
        alone = replace(question, planner="always_compute")
        for way in (alone, question, alone, question):  # warm up, and let the cost model learn
            expected, _ = _ask(place, caller, way)
        computed_s, ttft_s, n_equal = list[float](), {kind: list[float]() for kind in KINDS}, dict.fromkeys(KINDS, 0)
        for seed in range(self.faults):
            if seed % _COMPUTED_EVERY == 0:
                computed_s.append(_ask(place, caller, alone)[1].ttft_s)
            kind = KINDS[seed % len(KINDS)]
            answer, report = _struck(place, caller, question, _fault(seed, kind, self.passages))
            ttft_s[kind].append(report.ttft_s)
            n_equal[kind] += answer == expected
        yield from _rows(place, bandwidth, computed_s, ttft_s, n_equal)


def _rows(
    place: Embedded, bandwidth: float, computed_s: list[float], ttft_s: dict[str, list[float]], n_equal: dict[str, int]
) -> Iterator[Row]:
    """Yield the rows of one link."""
    bench = Bench("faults", "bandwidth_bytes_per_s", place.device, place.worker.engine.identity.dtype)
    bound_s = statistics.median(computed_s) + place.worker.settings.load_slack_s
    yield bench.row("compute", "ttft", "s", bandwidth, computed_s)
    for kind, seconds in ttft_s.items():
        over = [s / bound_s for s in seconds]
        yield bench.row(kind, "ttft", "s", bandwidth, seconds)
        yield bench.row(kind, "over_bound", "ratio", bandwidth, over)
        yield bench.row(kind, "over_bound_worst", "ratio", bandwidth, [max(over)])
        yield bench.row(kind, "answers_equal", "share", bandwidth, [n_equal[kind] / len(seconds)])


def _fault(seed: int, kind: str, n_passages: int) -> Fault:
    """Draw where a fault strikes."""
    draw = random.Random(seed)
    return Fault(kind, draw.randrange(n_passages), draw.random())


def _struck(place: Embedded, caller: Caller, question: Question, fault: Fault) -> tuple[list[int], Report]:
    """Ask while a fault strikes; what stalls goes on when the answer is there."""
    store = caller.store
    assert isinstance(store, FaultyStore)
    store.strike(fault)
    try:
        return _ask(place, caller, question)
    finally:
        fault.is_over.set()
        store.strike(None)


def _ask(place: Embedded, caller: Caller, question: Question) -> tuple[list[int], Report]:
    """Ask once; return the answer's tokens and the report."""
    events = list(place.worker.ask(caller, question))
    report = events[-1]
    assert isinstance(report, Report)
    return [event.id for event in events if isinstance(event, Token)], report
