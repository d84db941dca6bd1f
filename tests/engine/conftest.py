"""Loads each tiny model once per run, as an engine and as the plain library model that the engine is compared with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.engine.prompts import Tiny, load_tiny
from tests.engine.tiny_models import TINY_MODELS


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread: tiny tensors lose more to waking others than they win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=TINY_MODELS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Return every tiny model in turn."""
    return load_tiny(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Return the plainest tiny model, for what does not depend on the family."""
    return load_tiny("llama", tmp_path_factory.mktemp("plain-llama"))
