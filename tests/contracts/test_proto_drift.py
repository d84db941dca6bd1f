"""The committed code of the wire contract is what the .proto files say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

PROTO = Path(__file__).resolve().parents[2] / "proto"
GENERATED = sorted(path.relative_to(PROTO) for path in PROTO.glob("kvproto/**/*_pb2*.py*") if path.suffix in (".py", ".pyi"))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with code generated now."""
    spec = importlib.util.spec_from_file_location("generate", PROTO / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    output = tmp_path_factory.mktemp("generated")
    module.generate(output)
    return output


@pytest.mark.parametrize("path", GENERATED, ids=str)
def test_generated_code_is_current(fresh: Path, path: Path) -> None:
    """Run `python proto/generate.py` after a change of a .proto file."""
    assert (fresh / path).read_text() == (PROTO / path).read_text()


def test_every_generated_file_is_committed(fresh: Path) -> None:
    """A new .proto file needs its code."""
    assert sorted(path.relative_to(fresh) for path in fresh.rglob("*") if path.is_file()) == GENERATED
