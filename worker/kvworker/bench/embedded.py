"""An embedded store with a worker and its examples, as the benchmarks of answers use them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvworker.bench.benchmark import Asked
from kvworker.bench.random_model import write_random_model
from kvworker.bench.rows import cpu_name
from kvworker.demo.corpus import Examples, read_examples, shipped_examples
from kvworker.reference import MODEL_FOLDER
from kvworker.serve.config import ModelConfig, UpConfig
from kvworker.serve.local import Local
from kvworker.serve.runtime import Caller, Worker
from kvworker.settings import WorkerSettings

RANDOM = "random-100m"


@dataclass(frozen=True)
class Embedded:
    """What a benchmark of answers works with."""

    worker: Worker
    caller: Caller
    examples: Examples
    device: str


@contextmanager
def embedded(asked: Asked, policy: str = "none") -> Iterator[Embedded]:
    """Open a store in a temporary folder and load the model; decoded copies are off.

    Questions name their policies; the worker's own only decides what is noted of passages that are read alone.
    """
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as folder:
        config = UpConfig(
            data_dir=folder,
            model=ModelConfig(directory=str(_model(asked.model, Path(folder)))),
            worker=WorkerSettings(device_bytes=0, policy=policy),
        )
        with Local(config) as local:
            device = cpu_name() if local.worker.engine.device == "cpu" else local.worker.engine.device
            yield Embedded(local.worker, local.caller, read_examples(asked.examples or shipped_examples()), device)


def _model(name: str | None, folder: Path) -> Path:
    """Return a model's directory."""
    if name == RANDOM:
        return write_random_model(MODEL_FOLDER, folder / RANDOM)
    return Path(name) if name else MODEL_FOLDER
