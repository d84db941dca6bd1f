"""What `larder bench codecs` measured, read back from the file that its rows were appended to."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PEER = "transformers "
RAW = "raw"


@dataclass(frozen=True)
class Measured:
    """A variant's medians by metric, and where and when they were measured."""

    variant: str
    metrics: Mapping[str, float]
    device: str
    date: str
    commit: str

    @property
    def bits(self) -> float:
        """Bits a value, everything counted."""
        return self.metrics["bits_per_value"]


def read_codecs(path: Path) -> list[Measured]:
    """Return the latest run of the benchmark, in its order; no row raises SystemExit with what to run."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["bench"] == "codecs"]
    if not rows:
        raise SystemExit(f"{path} has no rows of the codec benchmark; run `larder bench codecs --csv {path}` first")
    return _by_variant(rows[_start_of_last(rows) :])


def _start_of_last(rows: Sequence[Mapping[str, str]]) -> int:
    """Return where the last run begins: every run begins with raw KV."""
    return max(n for n, row in enumerate(rows) if row["variant"] == RAW and (not n or rows[n - 1]["variant"] != RAW))


def _by_variant(rows: Sequence[Mapping[str, str]]) -> list[Measured]:
    """Return the rows of one run by variant, at the largest size that it measured."""
    size = max(float(row["x"]) for row in rows)
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if float(row["x"]) == size:
            found.setdefault(row["variant"], {})[row["metric"]] = float(row["p50"])
    return [Measured(name, metrics, rows[0]["device"], rows[0]["date"], rows[0]["commit"]) for name, metrics in found.items()]
