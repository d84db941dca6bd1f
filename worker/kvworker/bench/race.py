"""The race between computing and loading, run for real: TTFT against the better of the two alone, over links of several bandwidths.

A random model of 100 million parameters, its chunks behind a throttled link, decoded copies switched off. "prefix" is a document in its own
order, loaded as it is; "free" the same passages in another order, whose first rows are computed again. The ways are asked in turn, every
second time in reverse: what comes behind computing all finds other memory in the processor's caches. Besides the given bandwidths, the one
is measured at which computing and loading take equally long.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from kvclient.cli.output import Output
from kvclient.records import Report
from kvstore.core.errors import KVError
from kvworker.answer.answer import Question
from kvworker.bench.benchmark import Asked, show_rows
from kvworker.bench.embedded import RANDOM, Embedded, embedded
from kvworker.bench.rows import Bench, Row
from kvworker.bench.throttled import ThrottledStore
from kvworker.engine.engine import Engine
from kvworker.engine.sampling import Sampling
from kvworker.serve.runtime import Caller

_SEED = 3
_WAYS = {"compute": "always_compute", "load": "always_load", "race": "min_cost"}
_WORDS = "salt river bridge pump harbour mill copper rain wall guild orchard lamp tower ferry stone barley".split()
_SOURCE = "race"


@dataclass(frozen=True)
class RaceBench:
    """`larder bench race`; its sizes are bandwidths in bytes per second."""

    name: ClassVar[str] = "race"
    sizes: tuple[int, ...] = (50_000_000, 200_000_000, 1_000_000_000, 5_000_000_000)
    passages: int = 16
    passage_tokens: int = 64
    repeats: int = 7

    @classmethod
    def quick(cls) -> RaceBench:
        """Return the benchmark at a size that ends within a minute on two cores."""
        return cls(passages=8, repeats=2)

    def run(self, asked: Asked) -> Iterator[Row]:
        """Ingest one document and yield rows, context by context and bandwidth by bandwidth."""
        with embedded(replace(asked, model=asked.model or RANDOM)) as place:
            bench = Bench(self.name, "bandwidth_bytes_per_s", place.device, place.worker.engine.identity.dtype)
            texts = passages(place.worker.engine, self.passages, self.passage_tokens)
            names = tuple(done.passage.content.hex() for done in place.worker.ingest(place.caller, _SOURCE, texts))
            for context, order, policy in (("prefix", names, "none"), ("free", names[::-1], "first_k")):
                question = Question(order, " What?", Sampling(max_new_tokens=1), policy)
                yield from self._measure(bench, place, context, question)

    def show(self, rows: Sequence[Row], output: Output) -> None:
        """Print one line per row."""
        show_rows(rows, output)

    def _measure(self, bench: Bench, place: Embedded, context: str, question: Question) -> Iterator[Row]:
        """Yield the rows of one context."""
        computed_s: list[float] = []
        nbytes = 0
        for bandwidth in self.sizes:
            runs = self._ask(place, question, bandwidth)
            computed_s += [r.ttft_s for r in runs["compute"]]
            nbytes = sum(row.nbytes for row in runs["load"][0].passages)
            yield from _rows(bench, context, bandwidth, runs)
        quickest_s = statistics.median(r.ttft_s for r in runs["load"])  # what loading takes besides the link
        crossing = nbytes / (statistics.median(computed_s) - quickest_s)
        yield from _rows(bench, f"{context}.crossing", crossing, self._ask(place, question, crossing))

    def _ask(self, place: Embedded, question: Question, bandwidth: float) -> dict[str, list[Report]]:
        """Ask every way in turn, behind two rounds that warm up and teach the cost model."""
        caller = Caller(place.caller.tenant, ThrottledStore(place.caller.store, bandwidth))
        runs: dict[str, list[Report]] = {way: [] for way in _WAYS}
        for repeat in range(-2, self.repeats):
            for way in reversed(_WAYS) if repeat % 2 else _WAYS:
                if repeat < 0 and way == "compute":
                    continue
                report = _report(place, caller, replace(question, planner=_WAYS[way]))
                if repeat >= 0:
                    runs[way].append(report)
        return runs


def _rows(bench: Bench, context: str, bandwidth: float, runs: dict[str, list[Report]]) -> Iterator[Row]:
    """Yield the rows of one context at one bandwidth."""
    ttft_s = {way: [r.ttft_s for r in reports] for way, reports in runs.items()}
    for way, seconds in ttft_s.items():
        yield bench.row(f"{context}.{way}", "ttft", "s", bandwidth, seconds)
    better_s = min(statistics.median(ttft_s["compute"]), statistics.median(ttft_s["load"]))
    yield bench.row(f"{context}.race", "over_better", "ratio", bandwidth, [seconds / better_s for seconds in ttft_s["race"]])
    for way in ("load", "race"):
        missed = [r.predicted_ttft_s / r.ttft_s for r in runs[way]]
        yield bench.row(f"{context}.{way}", "predicted_over_actual", "ratio", bandwidth, missed)
    loaded = [sum(row.action == "load" for row in r.passages) / len(r.passages) for r in runs["race"]]
    yield bench.row(f"{context}.race", "loaded", "share", bandwidth, loaded)


def passages(engine: Engine, n_passages: int, n_tokens: int) -> list[str]:
    """Return texts of about so many tokens, no two alike."""
    draw = random.Random(_SEED)
    texts = []
    for n in range(n_passages):
        words = [f"Part {n}."]
        while len(engine.encode(" ".join(words))) < n_tokens - 1:
            words.append(draw.choice(_WORDS))
        texts.append(" ".join(words))
    return texts


def _report(place: Embedded, caller: Caller, question: Question) -> Report:
    """Ask once and return the report."""
    for event in place.worker.ask(caller, question):
        if isinstance(event, Report):
            return event
    raise KVError("an answer ended without its report")
