"""What sending a question to the worker that has its passages at hand saves, against sending it to any.

Several workers in one process share a store; each keeps a share of all passages in device memory. Questions follow Zipf's law over
documents; every one loads what it needs, and `moved` is what the workers say they read from the store. `again` counts from the second
third of the trace on, when every worker is warm. `rate` compares one worker process with several on the same cores, behind one front.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import ClassVar

from kvclient.cli.output import Output
from kvclient.cli.progress import progress
from kvworker.bench.benchmark import Asked, show_rows
from kvworker.bench.routing_lab import Lab, Replayed, zipf
from kvworker.bench.routing_rate import rates
from kvworker.bench.rows import Bench, Row, cpu_name
from kvworker.route.board import Decide
from kvworker.route.choose import PassageKey, WorkerState, choose


@dataclass(frozen=True)
class RoutingBench:
    """`larder bench routing`.

    Parameters
    ----------
    sizes : tuple of int
        Numbers of workers.
    exponents : tuple of float
        Of Zipf's law.
    n_documents, n_questions, n_callers : int
        Documents of eight passages each, the length of a trace, and how many ask at once.
    shares : tuple of float
        Of all passages, that one worker's device memory holds.
    seeds : tuple of int
        A trace each.
    rate_s : float
        How long each number of worker processes is measured.
    """

    name: ClassVar[str] = "routing"
    sizes: tuple[int, ...] = (2, 4)
    exponents: tuple[float, ...] = (0.7, 1.0)
    shares: tuple[float, ...] = (0.3, 0.6)
    n_documents: int = 32
    n_questions: int = 900
    n_callers: int = 2
    seeds: tuple[int, ...] = (0, 1, 2)
    rate_s: float = 20.0

    @classmethod
    def quick(cls) -> RoutingBench:
        """Return the benchmark at a size that ends within a minute on two cores."""
        return cls((2,), (0.7,), (0.6,), 24, 400, seeds=(0,), rate_s=6.0)

    def run(self, asked: Asked) -> Iterator[Row]:
        """Yield rows: bytes moved by both ways of choosing, then the rates of one worker and of several."""
        bench = Bench(self.name, "workers", cpu_name(), "float32")
        with tempfile.TemporaryDirectory(prefix="larder-bench-") as folder:
            with progress("asking", 2 * len(self.sizes) * len(self.shares) * len(self.exponents) * len(self.seeds)) as advance:
                for size, share in product(self.sizes, self.shares):
                    yield from self._moved(bench, Path(folder) / f"{size}-{share}", size, share, advance)
            yield from rates(bench, Path(folder) / "rate", self.sizes, self.n_documents, self.rate_s)

    def _moved(self, bench: Bench, folder: Path, size: int, share: float, advance: Callable[[int], None]) -> Iterator[Row]:
        """Yield what both ways of choosing move, for each exponent, over all seeds."""
        with Lab(folder, size, self.n_documents, share, self.n_callers) as lab:
            for exponent in self.exponents:
                aware, chance = list[Replayed](), list[Replayed]()
                for seed in self.seeds:
                    trace = zipf(self.n_documents, self.n_questions, exponent, seed)
                    for replays, decide in ((aware, choose), (chance, at_random(seed))):
                        replays.append(lab.replay(trace, decide))
                        advance(1)
                yield from _rows(
                    bench, f"share={share:g} exponent={exponent:g} seeds={','.join(map(str, self.seeds))}", size, aware, chance
                )

    def show(self, rows: Sequence[Row], output: Output) -> None:
        """Print one line per row."""
        show_rows(rows, output)


def at_random(seed: int) -> Decide:
    """Return what chooses any worker that takes requests."""
    rng = random.Random(seed)

    def decide(states: Collection[WorkerState], wanted: Mapping[PassageKey, int]) -> str | None:
        able = sorted(state.name for state in states if state.is_serving and not state.is_draining)
        return rng.choice(able) if able else None

    return decide


def _rows(bench: Bench, variant: str, size: int, aware: Sequence[Replayed], chance: Sequence[Replayed]) -> Iterator[Row]:
    """Yield bytes, their ratio trace by trace, and how many answers were the computed ones."""
    for name, replays in (("aware", aware), ("random", chance)):
        yield bench.row(f"{name} {variant}", "moved", "MB", size, [r.moved_nbytes / 1e6 for r in replays])
        yield bench.row(f"{name} {variant}", "moved_again", "MB", size, [r.again_nbytes / 1e6 for r in replays])
        yield bench.row(f"{name} {variant}", "answers_equal", "share", size, [r.n_equal / r.n_answers for r in replays])
    pairs = list(zip(aware, chance, strict=True))
    yield bench.row(f"aware/random {variant}", "moved", "ratio", size, [a.moved_nbytes / c.moved_nbytes for a, c in pairs])
    yield bench.row(f"aware/random {variant}", "moved_again", "ratio", size, [a.again_nbytes / c.again_nbytes for a, c in pairs])
    busiest = statistics.median(max(r.by_worker.values()) / r.n_answers for r in aware)
    yield bench.row(f"aware {variant}", "busiest_worker", "share", size, [busiest])
