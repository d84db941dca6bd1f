"""`larder bench`: run a benchmark on an embedded store and worker, and print its rows."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from kvclient.cli.output import JsonLines, Number, Output, Tables
from kvstore.core.discovery import find
from kvworker.bench.random_model import write_random_model
from kvworker.bench.rows import Row, append_csv, cpu_name
from kvworker.demo.corpus import Examples, read_examples, shipped_examples
from kvworker.reference import MODEL_FOLDER
from kvworker.serve.config import ModelConfig, UpConfig
from kvworker.serve.local import Local
from kvworker.serve.runtime import Caller, Worker
from kvworker.settings import WorkerSettings

RANDOM = "random-100m"


class Benchmark(Protocol):
    """What a benchmark file defines: how to run, in full and quickly."""

    @classmethod
    def quick(cls) -> Benchmark:
        """Return it at a size that ends within a minute on two cores."""
        ...

    def run(self, worker: Worker, caller: Caller, examples: Examples, device: str) -> Iterator[Row]:
        """Yield rows as they are measured."""
        ...


def run(args: argparse.Namespace) -> int:
    """Run one benchmark; print rows as they come, and append them to a CSV file if asked."""
    bench: type[Benchmark] = find("kvworker.bench", args.name)
    output: Output = JsonLines() if args.json else Tables()
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as folder:
        config = UpConfig(
            data_dir=folder,
            model=ModelConfig(directory=str(_model(args.model, Path(folder)))),
            worker=WorkerSettings(device_bytes=0),
        )
        with Local(config) as local:
            device = cpu_name() if local.worker.engine.device == "cpu" else local.worker.engine.device
            examples = read_examples(args.examples or shipped_examples())
            runner = bench.quick() if args.quick else bench()
            rows = list(_shown(runner.run(local.worker, local.caller, examples, device), output))
    output.table([asdict(row) for row in rows], _COLUMNS)
    if args.csv:
        append_csv(args.csv, rows)
    return 0


def _shown(rows: Iterable[Row], output: Output) -> Iterable[Row]:
    """Print each row as it comes, where programs read it."""
    for row in rows:
        output.record(asdict(row))
        yield row


def _model(name: str | None, folder: Path) -> Path:
    """Return a model's directory."""
    if name == RANDOM:
        return write_random_model(MODEL_FOLDER, folder / RANDOM)
    return Path(name) if name else MODEL_FOLDER


_COLUMNS = {
    "variant": lambda r: r["variant"],
    "metric": lambda r: r["metric"],
    "x": lambda r: r["x"],
    "p20": lambda r: Number(f"{r['p20']:.4g}"),
    "p50": lambda r: Number(f"{r['p50']:.4g}"),
    "p80": lambda r: Number(f"{r['p80']:.4g}"),
    "unit": lambda r: r["unit"],
}
