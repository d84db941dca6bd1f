"""What a benchmark is: a file whose class is named like it, which yields rows and knows how people read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from kvclient.cli.output import Number, Output
from kvworker.bench.rows import Row


@dataclass(frozen=True)
class Asked:
    """What the command line says to every benchmark, None where it says nothing: a model, and a folder of examples."""

    model: str | None = None
    examples: Path | None = None


class Benchmark(Protocol):
    """A frozen dataclass; `sizes` are the x of its rows."""

    name: ClassVar[str]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The x that are measured."""
        ...

    @classmethod
    def quick(cls) -> Benchmark:
        """Return it at a size that ends within a minute on two cores."""
        ...

    def run(self, asked: Asked) -> Iterator[Row]:
        """Yield rows as they are measured."""
        ...

    def show(self, rows: Sequence[Row], output: Output) -> None:
        """Print what was measured as people read it."""
        ...


def show_rows(rows: Sequence[Row], output: Output) -> None:
    """Print one line per row."""
    output.table([asdict(row) for row in rows], _COLUMNS)


_COLUMNS = {
    "variant": lambda r: r["variant"],
    "metric": lambda r: r["metric"],
    "x": lambda r: r["x"],
    "p20": lambda r: Number(f"{r['p20']:.4g}"),
    "p50": lambda r: Number(f"{r['p50']:.4g}"),
    "p80": lambda r: Number(f"{r['p80']:.4g}"),
    "unit": lambda r: r["unit"],
}
