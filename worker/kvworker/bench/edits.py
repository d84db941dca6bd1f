"""What it costs to read a document again after an edit, against reading it whole: seconds and tokens that go through the model.

Documents of equal passages in the words of the reference model, embedded, memory tier. Each repeat reads a document that nobody stored,
then edits of one passage of it, each behind the text as it was, and at last a document in both readings.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvclient.cli.output import Output
from kvworker.bench.benchmark import Asked, show_rows
from kvworker.bench.embedded import embedded
from kvworker.bench.rows import Bench, Row
from kvworker.reference.words import GOODS
from kvworker.serve.runtime import Caller, Worker

_SEED = 1
_PASSAGES = 16
_EDITS = {"edit_last": 15, "edit_three_quarters": 12, "edit_middle": 8, "edit_first": 0}
Measured = dict[str, list[tuple[float, int]]]


@dataclass(frozen=True)
class EditsBench:
    """`larder bench edits`: x is the document's length in words."""

    name: ClassVar[str] = "edits"
    sizes: tuple[int, ...] = (512, 2048)
    repeats: int = 5

    @classmethod
    def quick(cls) -> EditsBench:
        """Return the benchmark at a size that ends within a minute on two cores."""
        return cls(repeats=3)

    def run(self, asked: Asked) -> Iterator[Row]:
        """Load the model and yield rows, size by size."""
        with embedded(asked) as place:
            bench = Bench(self.name, "document_words", place.device, place.worker.engine.identity.dtype)
            for size in self.sizes:
                for variant, values in self._measure(place.worker, place.caller, size).items():
                    yield bench.row(variant, "ingest", "s", size, [seconds for seconds, _ in values])
                    yield bench.row(variant, "tokens_read", "tokens", size, [n_read for _, n_read in values])

    def show(self, rows: Sequence[Row], output: Output) -> None:
        """Print one line per row."""
        show_rows(rows, output)

    def _measure(self, worker: Worker, caller: Caller, size: int) -> Measured:
        """Return seconds and tokens read of every variant; the first repeat warms up."""
        draw, found = random.Random(_SEED), Measured()
        for repeat in range(self.repeats + 1):
            for variant, values in _round(worker, caller, size // _PASSAGES, draw).items():
                if repeat:
                    found.setdefault(variant, []).append(values)
        return found


def _round(worker: Worker, caller: Caller, n_words: int, draw: random.Random) -> dict[str, tuple[float, int]]:
    """Ingest one document in every variant and forget it."""
    texts = [_passage(draw, n_words) for _ in range(_PASSAGES)]
    found = {"whole": _ingest(worker, caller, "edited.txt", texts), "unchanged": _ingest(worker, caller, "edited.txt", texts)}
    for variant, at in _EDITS.items():
        found[variant] = _ingest(worker, caller, "edited.txt", [*texts[:at], _passage(draw, n_words), *texts[at + 1 :]])
        _ingest(worker, caller, "edited.txt", texts)
    found["alone"] = _ingest(worker, caller, "alone.txt", [_passage(draw, n_words) for _ in range(_PASSAGES)], "alone")
    found["both"] = _ingest(worker, caller, "both.txt", [_passage(draw, n_words) for _ in range(_PASSAGES)], "both")
    for source in ("edited.txt", "alone.txt", "both.txt"):
        worker.forget(caller, source)
    return found


def _ingest(worker: Worker, caller: Caller, source: str, texts: Sequence[str], read_as: str = "document") -> tuple[float, int]:
    """Return the seconds of an ingest, and the tokens that went through the model."""
    started = time.perf_counter()
    n_read = sum(done.tokens_read for done in worker.ingest(caller, source, texts, read_as))
    return time.perf_counter() - started, n_read


def _passage(draw: random.Random, n_words: int) -> str:
    """Return so many words, each a token of the reference model."""
    return " ".join(draw.choices(GOODS, k=n_words))
