"""Every lane and tier, put and get, from 4 KiB to 64 MiB, beside memcpy, a bare socket and the plainest clients in the same rounds.

A store runs as a process of its own, and so does every client and every other server; all on this machine. Ours and what it is compared
with take turns, so that noise hits both; a ratio never crosses rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from kvclient.cli.output import Output
from kvclient.cli.progress import progress
from kvstore.core.errors import ConfigError
from kvworker.bench.benchmark import Asked
from kvworker.bench.rows import Bench, Row, cpu_name
from kvworker.bench.transport_lab import SMALL_NBYTES, open_lab
from kvworker.bench.transport_lanes import N_GROUPS
from kvworker.bench.transport_rows import COLUMNS, LEVEL_NBYTES, NOTE, Round, lines, rows_of
from kvworker.bench.transport_timing import Budget

MIB = 1 << 20


@dataclass(frozen=True)
class TransportBench:
    """`larder bench transport`.

    Parameters
    ----------
    sizes : tuple of int
        Bytes of a chunk's parts together, multiples of 4.
    rounds : int
        How often everything takes its turn at each size.
    budget : Budget
        How long one turn lasts.
    bulk_nbytes : int
        Size of the chunks in the stream beside which small gets are measured.
    batch : tuple of int
        How many chunks a batch has, and the bytes of each.
    cliffs : tuple of int
        Sizes at which our lanes alone are measured, once, beside `sizes`: does a byte cost more there than at 8 MiB?
    """

    name: ClassVar[str] = "transport"
    sizes: tuple[int, ...] = (SMALL_NBYTES, 64 << 10, MIB, LEVEL_NBYTES, 16 * MIB, 31 * MIB, 32 * MIB, 33 * MIB, 64 * MIB)
    rounds: int = 3
    budget: Budget = field(default_factory=lambda: Budget(warm_ups=2, min_operations=10, min_s=0.4, max_s=1.0))
    bulk_nbytes: int = 32 * MIB
    batch: tuple[int, int] = (64, 64 << 10)
    cliffs: tuple[int, ...] = ()

    @classmethod
    def quick(cls) -> TransportBench:
        """Return the benchmark at a size that ends within a minute on two cores."""
        return cls(
            (SMALL_NBYTES, MIB, LEVEL_NBYTES, 32 * MIB),
            2,
            Budget(warm_ups=1, min_operations=5, min_s=0.1, max_s=0.3),
            cliffs=(16 * MIB, 31 * MIB, 33 * MIB, 64 * MIB),
        )

    def run(self, asked: Asked) -> Iterator[Row]:
        """Start every process and yield rows, size by size; raises ConfigError for sizes that can't be measured."""
        if not self.sizes or any(size < N_GROUPS or size % N_GROUPS for size in (*self.sizes, *self.cliffs)):
            raise ConfigError(f"a chunk of {N_GROUPS} parts has a multiple of {N_GROUPS} bytes, got sizes {self.sizes} and {self.cliffs}")
        bench = Bench(self.name, "bytes", cpu_name(), "uint8")
        n_chunks, nbytes = self.batch
        n_turns = self.rounds * (len(self.sizes) + 1) + len(self.cliffs)
        level: Round = {}
        with (
            open_lab((*self.sizes, *self.cliffs), n_chunks * nbytes, self.bulk_nbytes) as lab,
            progress("measuring", n_turns) as advance,
        ):
            for size in self.sizes:
                rounds = lab.rounds(size, self.rounds, self.budget, advance)
                level = rounds[-1] if size == LEVEL_NBYTES else level
                yield from rows_of(bench, size, rounds, level if size > LEVEL_NBYTES else {})
            for size in self.cliffs:
                yield from rows_of(bench, size, [lab.lanes(size, self.budget)], level)
                advance(1)
            yield from rows_of(bench, n_chunks * nbytes, lab.batches(n_chunks, nbytes, self.rounds, self.budget, advance))

    def show(self, rows: Sequence[Row], output: Output) -> None:
        """Print one line per variant and size."""
        output.table(lines(rows), COLUMNS)
        output.text(NOTE)
