"""What the end-to-end tests share: tiny models, and one server that all of them ask."""

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


@pytest.fixture(scope="session")
def up(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Run one `larder up` for all tests that leave it running: a start takes seconds, nearly all of them imports."""
    home = tmp_path_factory.mktemp("up")
    process = start(home, "up", "--model", str(model), "--address", "127.0.0.1:0", "--memory", "32MiB", "--disk", "64MiB")
    yield process
    stop(process)
