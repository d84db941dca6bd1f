"""What reuse does to answers: every recompute policy at several shares of rows, and late chunking, beside full prefill.

Questions and documents are the reference model's notes of the test split. Variants are policies over passages that were read alone, and
`late_chunking`, whose passages were read in their documents. `variant@16` stands for a context of 16 passages where the plain name stands
for 8, and `variant@case` for one of the cases in which reading in a document could hurt. `rows` is the share of the passages' rows that
ran through all layers again, `work` counts every layer that a row ran through. `accuracy_retrieved_only` is asked over the last passage of
every document, without the earlier ones.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvclient.cli.output import Number, Output, Record
from kvclient.cli.progress import progress
from kvclient.records import Report
from kvworker.answer.answer import Question
from kvworker.answer.policy import find_policy
from kvworker.bench.benchmark import Asked
from kvworker.bench.embedded import Embedded, embedded
from kvworker.bench.rows import Bench, Row
from kvworker.engine.sampling import Sampling
from kvworker.quality import notes
from kvworker.quality.context import Context
from kvworker.quality.measure import Tally, compare
from kvworker.quality.probe import Probe
from kvworker.quality.variants import FULL, Variant, alone_at, late_at

MAIN = 8
CASES: dict[str, Callable[[int, int, int], Context]] = {
    "unrelated": notes.unrelated_before,
    "long": notes.long_document,
    "contradicted": notes.contradicted_before,
    "stale": notes.stale_edition,
    "unseen": notes.unseen,
}
_SEED = 20_000
_PASSAGE_TOKENS = 33  # eight facts of four tokens behind a BOS
_ROUNDS = 3
_METRIC = "accuracy_retrieved_only"


@dataclass(frozen=True)
class ReuseBench:
    """`larder bench reuse`.

    Parameters
    ----------
    sizes : tuple of int
        Numbers of passages, even.
    ratios, combined : tuple of float
        Shares of rows that policies repair in passages read alone, and in passages read in their documents.
    n_contexts, per_kind : int
        Contexts, and questions of each kind over each.
    n_cases, n_timed : int
        Contexts of each case that could hurt, and contexts whose answers are timed.
    """

    name: ClassVar[str] = "reuse"
    sizes: tuple[int, ...] = (MAIN, 2, 4, 16)
    ratios: tuple[float, ...] = (0.05, 0.1, 0.15, 0.3, 0.5)
    combined: tuple[float, ...] = (0.15,)
    n_contexts: int = 20
    per_kind: int = 8
    n_cases: int = 10
    n_timed: int = 12

    @classmethod
    def quick(cls) -> ReuseBench:
        """Return the benchmark at a size that ends within a minute on two cores."""
        return cls((MAIN,), (0.15, 0.3), (), 6, 8, 3, 3)

    def run(self, asked: Asked) -> Iterator[Row]:
        """Load the model and yield rows, number of passages by number of passages, then the cases."""
        with embedded(asked, "chunk_score") as place, progress("measuring", self._n_steps) as advance:
            bench = Bench(self.name, "ratio", place.device, place.worker.engine.identity.dtype)
            probe = Probe(place.worker.engine)
            for size in self.sizes:
                yield from self._size(bench, place, probe, size, advance)
            for name, make in CASES.items():
                yield from self._case(bench, probe, name, make, advance)

    @property
    def _n_steps(self) -> int:
        return len(self.sizes) * (2 * self.n_contexts + self.n_timed) + len(CASES) * self.n_cases

    def _size(self, bench: Bench, place: Embedded, probe: Probe, size: int, advance: Callable[[int], None]) -> Iterator[Row]:
        """Yield what was measured over contexts of one number of passages."""
        variants = [FULL, *alone_at(self.ratios, _PASSAGE_TOKENS), *late_at(self.combined, _PASSAGE_TOKENS)]
        suffix = "" if size == MAIN else f"@{size}"
        seeds = range(_SEED, _SEED + self.n_contexts)
        tallies = compare(probe, (notes.in_prompt(seed, size, self.per_kind) for seed in seeds), variants, advance)
        later = compare(probe, (notes.retrieved_only(seed, size, self.per_kind) for seed in seeds), variants, advance)
        seconds = _ttft(place, [notes.in_prompt(seed, size, 1) for seed in seeds[: self.n_timed]], variants, advance)
        for variant, tally in tallies.items():
            yield from _rows(bench, variant, suffix, tally)
            if right := later[variant].right.get("carried"):
                yield bench.row(variant.name + suffix, _METRIC, "share", variant.ratio, [statistics.mean(map(float, right))])
            yield from _time_rows(bench, variant, suffix, seconds[variant], seconds[FULL])

    def _case(
        self, bench: Bench, probe: Probe, name: str, make: Callable[[int, int, int], Context], advance: Callable[[int], None]
    ) -> Iterator[Row]:
        """Yield what full prefill, plain reuse and late chunking score in one case."""
        variants = [FULL, Variant("none", 0.0, "alone", find_policy("none")), *late_at((), _PASSAGE_TOKENS)]
        contexts = (make(seed, MAIN, self.per_kind) for seed in range(_SEED, _SEED + self.n_cases))
        for variant, tally in compare(probe, contexts, variants, advance).items():
            yield from _rows(bench, variant, f"@{name}", tally)

    def show(self, rows: Sequence[Row], output: Output) -> None:
        """Print one line per variant and ratio."""
        lines: dict[tuple[str, float], dict[str, float]] = {}
        for row in rows:
            lines.setdefault((row.variant, row.x), {})[row.metric] = row.p50
        records = [{"variant": name, "ratio": ratio, **values} for (name, ratio), values in lines.items()]
        output.table(records, {heading: _cell(key) for heading, key in _COLUMNS.items()})


_COLUMNS = {
    "variant": "variant",
    "ratio": "ratio",
    "rows": "rows",
    "work": "work",
    "direct": "accuracy_direct",
    "carried": "accuracy_carried",
    "alias": "accuracy_alias",
    "two_hop": "accuracy_two_hop",
    "retrieved only": _METRIC,
    "top-1": "top1",
    "KL, nats": "kl",
    "TTFT ratio": "ttft_ratio",
}


def _cell(key: str) -> Callable[[Record], object]:
    """Return the function that reads one column of a record; what was not measured stays empty."""
    return lambda record: record[key] if key == "variant" else Number(f"{record[key]:.3f}" if key in record else "")


def _rows(bench: Bench, variant: Variant, suffix: str, tally: Tally) -> Iterator[Row]:
    """Yield accuracy by kind, agreement, KL (mean over the questions of a context's size) and rows of one variant."""
    name = variant.name + suffix
    for kind in tally.right:
        yield bench.row(name, f"accuracy_{kind}", "share", variant.ratio, [tally.accuracy(kind)])
    yield bench.row(name, "top1", "share", variant.ratio, [statistics.mean(map(float, tally.same))])
    yield bench.row(name, "kl", "nats", variant.ratio, [statistics.mean(tally.kl)])
    yield bench.row(name, "rows", "share", variant.ratio, [statistics.mean(tally.rows)])
    yield bench.row(name, "work", "share", variant.ratio, [statistics.mean(tally.work)])


@dataclass(frozen=True)
class _Timing:
    """Seconds to the first token, as they were predicted and as they were."""

    predicted_s: float
    actual_s: float


def _time_rows(bench: Bench, variant: Variant, suffix: str, own: Sequence[_Timing], full: Sequence[_Timing]) -> Iterator[Row]:
    """Yield the times of one variant, and their ratio to full prefill of the same round."""
    name, ratios = variant.name + suffix, [a.actual_s / b.actual_s for a, b in zip(own, full, strict=True)]
    yield bench.row(name, "ttft_ratio", "ratio", variant.ratio, ratios)
    yield bench.row(name, "ttft", "s", variant.ratio, [t.actual_s for t in own])
    yield bench.row(name, "ttft_predicted", "s", variant.ratio, [t.predicted_s for t in own])


def _ttft(
    place: Embedded, contexts: Sequence[Context], variants: Sequence[Variant], advance: Callable[[int], None]
) -> dict[Variant, list[_Timing]]:
    """Return times to the first token through the worker and its store, everything loaded; the variants take turns at each context.

    The first of a few rounds warms up.
    """
    seconds: dict[Variant, list[_Timing]] = {variant: [] for variant in variants}
    for number, context in enumerate(contexts):
        names = {reading: _ingest(place, context, number, reading) for reading in ("alone", "document")}
        for turn in range(_ROUNDS + 1):
            for variant, kept in seconds.items():
                policy, planner = (variant.policy.spec, "always_load") if variant.policy else ("all", "always_compute")
                sampling = Sampling(max_new_tokens=1)
                question = Question(names[variant.reading], context.asks[0].text, sampling, policy, planner)
                (report,) = (event for event in place.worker.ask(place.caller, question) if isinstance(event, Report))
                kept += [_Timing(report.predicted_ttft_s, report.ttft_s)] if turn else []
        advance(1)
    return seconds


def _ingest(place: Embedded, context: Context, number: int, reading: str) -> tuple[str, ...]:
    """Store a context's documents, read in one way; return the names of the prompt's passages."""
    sources = [f"context {number}, read {reading}, {d}" for d in range(len(context.documents))]
    for source, passages in zip(sources, context.documents, strict=True):
        list(place.worker.ingest(place.caller, source, passages, reading))
    return tuple(f"{sources[d]}#{index}" for d, index in context.prompt)
