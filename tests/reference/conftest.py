"""Makes the scripts of examples/reference importable and loads the committed reference model once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "examples" / "reference"


@pytest.fixture(scope="session")
def scripts() -> Iterator[None]:
    """Put the folder of the example scripts on the import path, as running one of them does."""
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="session")
def prompts(scripts: None) -> ModuleType:
    import prompts

    return prompts


@pytest.fixture(scope="session")
def make_demo(scripts: None) -> ModuleType:
    import make_demo

    return make_demo


@pytest.fixture(scope="session")
def evaluate(scripts: None) -> ModuleType:
    import evaluate

    return evaluate
