"""Shared contexts: eight task families, asked in one conversation and by separate requests, in every way to reuse a stored context.

After SCBench (arXiv 2412.10319), with generated contexts. Variants are `mode/way`, and `mode/way@2` over contexts twice as long; x is the
depth at which the answer lies, or the turn that asked, for `score`, the mean over families and depths. `score_FAMILY` is by the metric of
the family; `top1`, `kl` and `retained` (probability put on the same tokens) compare the first token with full prefill's, so that they say
something where a model does not know the answers. The reference model was trained on notes only: it knows `facts`, `many_shot`, `needles`
and half of `mix`.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from kvclient.cli.output import Number, Output, Record
from kvclient.cli.progress import progress
from kvworker.bench.benchmark import Asked
from kvworker.bench.embedded import embedded
from kvworker.bench.rows import Bench, Row
from kvworker.quality.probe import Probe
from kvworker.quality.shared import Point, measure_task, ways
from kvworker.quality.task import tasks

_SEED = 70_000
_QUICK = frozenset({"full", "prefix", "prefix+near-lossless", "none", "first_k", "late_chunking"})
_DEPTH, _TURN = "depth", "turn"
_FIDELITY = (("top1", "share", "is_same"), ("kl", "nats", "kl"), ("retained", "share", "retained"), ("rows", "share", "rows"))


@dataclass(frozen=True)
class SharedContextBench:
    """`larder bench scbench`; `sizes` are lengths of contexts, in multiples of each family's own, `compared` ways, all if empty."""

    name: ClassVar[str] = "scbench"
    sizes: tuple[int, ...] = (1, 2, 4)
    n_contexts: int = 4
    compared: frozenset[str] = frozenset()

    @classmethod
    def quick(cls) -> SharedContextBench:
        """Return the benchmark with one context per family, and few ways to reuse it."""
        return cls((1,), 1, _QUICK)

    def run(self, asked: Asked) -> Iterator[Row]:
        """Load the model and yield rows, length by length."""
        families = tasks()
        with embedded(asked) as place, progress("asking", len(self.sizes) * len(families) * self.n_contexts) as advance:
            bench = Bench(self.name, _DEPTH, place.device, place.worker.engine.identity.dtype)
            probe, compared = Probe(place.worker.engine), [way for way in ways() if not self.compared or way.name in self.compared]
            for size in self.sizes:
                points: list[Point] = []
                for task in families:
                    for seed in range(_SEED, _SEED + self.n_contexts):
                        points += measure_task(probe, task.scaled(size), seed, compared)
                        advance(1)
                yield from rows_of(bench, points, "" if size == 1 else f"@{size}")

    def show(self, rows: Sequence[Row], output: Output) -> None:
        """Print one line per mode and way: mean scores by family, and fidelity."""
        values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            if row.x_name == _DEPTH:
                values[row.variant][row.metric].append(row.p50)
        means = [{"variant": name, **{m: statistics.mean(v) for m, v in metrics.items()}} for name, metrics in values.items()]
        headings = dict.fromkeys(metric for record in means for metric in record if metric != "variant")
        columns: dict[str, Callable[[Record], object]] = {"variant": lambda record: record["variant"]}
        columns.update({metric.removeprefix("score_"): _cell(metric) for metric in headings})
        output.table(means, columns)


def rows_of(bench: Bench, points: Iterable[Point], suffix: str) -> Iterator[Row]:
    """Yield means: the score of every family at every depth and of all families at every turn, and fidelity at every depth."""
    by_family: dict[tuple[str, str, float], list[Point]] = defaultdict(list)
    by_turn: dict[tuple[str, int], list[Point]] = defaultdict(list)
    by_depth: dict[tuple[str, float], list[Point]] = defaultdict(list)
    for point in points:
        variant = f"{point.mode}/{point.way}{suffix}"
        by_family[variant, point.task, point.depth].append(point)
        by_turn[variant, point.turn].append(point)
        by_depth[variant, point.depth].append(point)
    for (variant, task, depth), found in sorted(by_family.items()):
        yield bench.row(variant, f"score_{task}", "share", depth, [statistics.mean(p.score for p in found)])
    for (variant, turn), found in sorted(by_turn.items()):
        yield replace(bench, x_name=_TURN).row(variant, "score", "share", turn + 1, [statistics.mean(p.score for p in found)])
    for (variant, depth), found in sorted(by_depth.items()):
        for metric, unit, name in _FIDELITY:
            yield bench.row(variant, metric, unit, depth, [statistics.mean(float(getattr(p, name)) for p in found)])


def _cell(metric: str) -> Callable[[Record], object]:
    """Return the function that reads one column of a record."""
    return lambda record: Number(f"{record[metric]:.3f}" if metric in record else "")
