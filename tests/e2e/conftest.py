"""What the end-to-end tests share: tiny models, and processes that are started once per file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.e2e.processes import Process, start, stop
from tests.engine.tiny_models import save_tiny_model


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread: tiny tensors lose more to waking others than they win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a tiny model."""
    return save_tiny_model("llama", tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of one file's processes: data, tokens and logs."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def up(model: Path, home: Path) -> Iterator[Process]:
    """Run `larder up` for the tests of one file."""
    process = start(home, "up", "--model", str(model), "--address", "127.0.0.1:0", "--memory", "32MiB", "--disk", "64MiB")
    yield process
    stop(process)
