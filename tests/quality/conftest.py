"""The reference model, loaded once, on one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kvworker.engine.engine_hf import HFEngine, load_engine
from kvworker.quality.probe import Probe
from kvworker.reference import MODEL_FOLDER


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread: small tensors lose more to waking others than they win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def engine() -> HFEngine:
    """Return the reference model."""
    return load_engine(MODEL_FOLDER, device="cpu")


@pytest.fixture(scope="session")
def probe(engine: HFEngine) -> Probe:
    """Return the reference model as measurements ask it."""
    return Probe(engine)
