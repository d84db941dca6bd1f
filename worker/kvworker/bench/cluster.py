"""Two stores and two workers on Ray against one of each, on the same cores: what spreading costs where it can win nothing.

Both clusters are there from the beginning and are asked in turn, the same questions in the same order; the one that is not asked does
nothing. Every answer loads all of its passages from the stores, or finds them in device memory where that is given.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from kvclient.cli.output import Output
from kvclient.cli.progress import progress
from kvworker.bench.benchmark import Asked, show_rows
from kvworker.bench.cluster_lab import Lab, on_ray
from kvworker.bench.rows import Bench, Row, cpu_name


class Measured(Protocol):
    """So many stores and workers, and their answers per second in each round."""

    size: int
    rates: list[float]
    n_failed: int


@dataclass(frozen=True)
class ClusterBench:
    """`larder bench cluster`.

    Parameters
    ----------
    sizes : tuple of int
        Numbers of stores, and as many workers each; the first is what the others are compared with.
    n_documents : int
        Of eight passages each.
    device_bytes : int
        Device memory of each worker.
    n_rounds, round_s : int, float
        How often each is asked, and for how long.
    """

    name: ClassVar[str] = "cluster"
    sizes: tuple[int, ...] = (1, 2)
    n_documents: int = 16
    device_bytes: int = 0
    n_rounds: int = 4
    round_s: float = 4.0

    @classmethod
    def quick(cls) -> ClusterBench:
        """Return the benchmark with shorter rounds; most of its time are starts."""
        return cls(n_documents=8, round_s=2.0)

    def run(self, asked: Asked) -> Iterator[Row]:
        """Yield answers per second of every size, their ratios round by round, and how many requests failed."""
        bench = Bench(self.name, "stores and workers", cpu_name(), "float32")
        with tempfile.TemporaryDirectory(prefix="larder-bench-") as folder, ExitStack() as stack:
            stack.enter_context(on_ray())
            labs = [stack.enter_context(Lab(Path(folder) / str(n), n, self.n_documents, self.device_bytes)) for n in self.sizes]
            with progress("asking", self.n_rounds) as advance:
                for _ in range(self.n_rounds):
                    for lab in labs:
                        lab.ask_for(self.round_s)
                    advance(1)
            yield from compared(bench, f"device={self.device_bytes}", labs)

    def show(self, rows: Sequence[Row], output: Output) -> None:
        """Print one line per row."""
        show_rows(rows, output)


def compared(bench: Bench, variant: str, labs: Sequence[Measured]) -> Iterator[Row]:
    """Yield what each lab measured, and its ratio to the first lab's rates round by round."""
    first = labs[0]
    for lab in labs:
        yield bench.row(variant, "answers", "1/s", lab.size, lab.rates)
        yield bench.row(variant, "failed", "requests", lab.size, [lab.n_failed])
        if lab is not first:
            ratios = [own / other for own, other in zip(lab.rates, first.rates, strict=True)]
            yield bench.row(variant, f"answers_over_{first.size}", "ratio", lab.size, ratios)
