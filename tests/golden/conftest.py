"""The scripts of this folder as modules."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent


def load(name: str) -> ModuleType:
    """Import a file of this folder."""
    spec = spec_from_file_location(f"golden_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def second_reader() -> ModuleType:
    """The reader that was written from proto/FORMAT.md."""
    return load("second_reader")


@pytest.fixture(scope="session")
def make() -> ModuleType:
    """The script that made the golden files."""
    return load("make")
