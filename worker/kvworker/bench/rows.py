"""One row per measured point, as JSON for programs and CSV for the record."""

from __future__ import annotations

import csv
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """A benchmark's point: the 20th, 50th and 80th percentile of a metric of one variant at one x."""

    bench: str
    variant: str
    metric: str
    unit: str
    x_name: str
    x: float
    p20: float
    p50: float
    p80: float
    device: str
    dtype: str
    date: str
    commit: str

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Bench:
    """What all rows of one run share."""

    name: str
    x_name: str
    device: str
    dtype: str

    def row(self, variant: str, metric: str, unit: str, x: float, values: Sequence[float]) -> Row:
        """Return the row of one point's measured values, of which there is at least one."""
        p20, p50, p80 = percentiles(values)
        date = datetime.now(UTC).strftime("%Y-%m-%d")
        return Row(self.name, variant, metric, unit, self.x_name, x, p20, p50, p80, self.device, self.dtype, date, commit())


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the 20th, 50th and 80th percentile; a single value is all three."""
    if len(values) == 1:
        return (values[0],) * 3
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return fifths[0], statistics.median(values), fifths[3]


def append_csv(path: Path, rows: Iterable[Row]) -> None:
    """Append rows to a CSV file, with a header if it is new."""
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        if is_new:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def cpu_name() -> str:
    """Return the processor's name and how many cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores"


@cache
def commit() -> str:
    """Return the short hash of the checked-out commit, or "unknown" outside a checkout."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
