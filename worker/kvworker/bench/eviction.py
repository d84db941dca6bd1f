"""Seconds of prefill that each eviction policy saves, against LRU, and what traffic that never repeats costs it.

2,000 requests over 300 passages of 64 to 2,048 tokens, in one tier with room for a third of their bytes; everything found is loaded.
Simulated with the real policies on seeded traces, so equal on every machine. "hindsight" is no policy but a yardstick: it was told how
often each passage will be asked for, keeps those that are worth most, and never evicts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import ClassVar

from kvclient.cli.output import Output
from kvstore.simulate.replay import Outcome, simulate, stored_nbytes
from kvstore.simulate.scenario import Scenario
from kvstore.simulate.trace import Asked as Passage
from kvstore.simulate.trace import TraceRequest
from kvstore.simulate.zipf import Zipf
from kvworker.bench.benchmark import Asked, show_rows
from kvworker.bench.rows import Bench, Row

_YARDSTICK = "lru"
_NOISE = 0.5
_HINDSIGHT = "hindsight"
_ROOM_FOR_ALL = 1 << 60


@dataclass(frozen=True)
class EvictionBench:
    """`larder bench eviction`; the sizes are passages per request."""

    name: ClassVar[str] = "eviction"
    sizes: tuple[int, ...] = (1, 4, 8)
    policies: tuple[str, ...] = ("lru", "value", "lfu", "arc")
    exponents: tuple[float, ...] = (0.7, 1.0)
    seeds: int = 20

    @classmethod
    def quick(cls) -> EvictionBench:
        """Return the benchmark at a size that ends within a minute on two cores."""
        return cls(sizes=(8,), policies=("lru", "value"), exponents=(Zipf.exponent,))

    def run(self, asked: Asked) -> Iterator[Row]:
        """Yield rows, policy by policy, for each number of passages and each exponent."""
        for per_request in self.sizes:
            for exponent in self.exponents:
                yield from self._rows(Zipf(per_request=per_request, exponent=exponent))

    def show(self, rows: Sequence[Row], output: Output) -> None:
        """Print one line per row."""
        show_rows(rows, output)

    def _rows(self, shape: Zipf) -> Iterator[Row]:
        """Yield every policy's rows for one kind of traffic: over all seeds, then their mean and the worst of them."""
        bench = Bench(self.name, "passages_per_request", "simulated", "none")
        runs = [self._run(replace(shape, seed=seed)) for seed in range(self.seeds)]
        for policy in self.policies:
            variant = f"{policy} exponent={shape.exponent:g}"
            saved = [clean[policy].saved_s / clean[_YARDSTICK].saved_s for clean, _ in runs]
            lost = [1 - noisy[policy].found / clean[policy].found for clean, noisy in runs]
            yield bench.row(variant, "hit_share", "share", shape.per_request, [clean[policy].hit_share for clean, _ in runs])
            yield from _summary(bench, variant, "saved_over_lru", "ratio", shape.per_request, saved, min(saved))
            yield from _summary(bench, variant, "hits_lost_to_noise", "share", shape.per_request, lost, max(lost))
        best, variant = [clean[_HINDSIGHT] for clean, _ in runs], f"{_HINDSIGHT} exponent={shape.exponent:g}"
        saved = [told.saved_s / clean[_YARDSTICK].saved_s for told, (clean, _) in zip(best, runs, strict=True)]
        yield bench.row(variant, "hit_share", "share", shape.per_request, [told.hit_share for told in best])
        yield from _summary(bench, variant, "saved_over_lru", "ratio", shape.per_request, saved, min(saved))

    def _run(self, traffic: Zipf) -> list[dict[str, Outcome]]:
        """Return each policy's outcome without and with as many one-shot requests among the others; hindsight's without them."""
        clean, noisy = traffic.trace(), replace(traffic, noise=_NOISE).trace()
        setting = Scenario(planner="always_load")
        setting = replace(setting, memory=_third(clean, setting))
        names = {_YARDSTICK, *self.policies}
        outcomes = [{name: simulate(trace, replace(setting, eviction=name)) for name in names} for trace in (clean, noisy)]
        outcomes[0][_HINDSIGHT] = _with_hindsight(clean, setting)
        return outcomes


def _summary(bench: Bench, variant: str, metric: str, unit: str, x: float, values: Sequence[float], worst: float) -> Iterator[Row]:
    """Yield a metric's percentiles, its mean and its worst value."""
    yield bench.row(variant, metric, unit, x, values)
    yield bench.row(variant, f"{metric}_mean", unit, x, [mean(values)])
    yield bench.row(variant, f"{metric}_worst", unit, x, [worst])


def _with_hindsight(trace: Sequence[TraceRequest], setting: Scenario) -> Outcome:
    """Replay with room for everything, where each passage but those worth keeping is another one every time."""
    kept = _worth_keeping(trace, setting)
    changed = [
        replace(request, passages=tuple(a if a in kept else a._replace(key=f"{a.key} at {n}") for a in request.passages))
        for n, request in enumerate(trace)
    ]
    return simulate(changed, replace(setting, memory=_ROOM_FOR_ALL))


def _worth_keeping(trace: Sequence[TraceRequest], setting: Scenario) -> set[Passage]:
    """Return the passages that save most per byte, as many as fit: tokens stand for seconds, all reads but the first count."""
    reads = Counter(asked for request in trace for asked in request.passages)
    left, kept = setting.memory, set[Passage]()
    for asked in sorted(reads, key=lambda a: (reads[a] - 1) * a.n_tokens / stored_nbytes(a, setting), reverse=True):
        nbytes = stored_nbytes(asked, setting)
        if nbytes <= left:
            left -= nbytes
            kept.add(asked)
    return kept


def _third(trace: Sequence[TraceRequest], setting: Scenario) -> int:
    """Return a third of the stored bytes of all passages."""
    return sum(stored_nbytes(asked, setting) for asked in {a for request in trace for a in request.passages}) // 3
