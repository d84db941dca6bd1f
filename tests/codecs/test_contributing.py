"""Adding a quantizer takes one file and one test: the diff that CONTRIBUTING.md shows is applied and held to the contract suite."""

from __future__ import annotations

import re
import runpy
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.core import discovery
from kvworker.codec import registry
from kvworker.methods import quantize
from tests.architecture.source import ROOT
from tests.contracts import test_codec_contract as contract

NAME = "signs"


@pytest.fixture
def applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Apply the diff to an empty folder and let the quantizers in it be found."""
    (diff,) = re.findall(r"^```diff\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S | re.M)
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff, text=True, check=True)
    folder = tmp_path / "worker" / "kvworker" / "methods" / "quantize"
    monkeypatch.setattr(quantize, "__path__", [*quantize.__path__, str(folder)])
    _forget()
    yield tmp_path
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    """Have packages looked through again."""
    discovery._module_names.cache_clear()
    registry.find_stage_class.cache_clear()
    registry._pipeline_of.cache_clear()


def test_the_diff_is_one_file_and_one_test(applied: Path) -> None:
    files = [path.relative_to(applied).as_posix() for path in sorted(applied.rglob("*.py"))]
    assert files == ["tests/codecs/test_signs.py", "worker/kvworker/methods/quantize/signs.py"]


def test_the_quantizer_of_the_diff_keeps_the_contract(applied: Path) -> None:
    """The parts that every codec is held to, those that draw examples left out."""
    for dtype in ("float32", "bfloat16"):
        contract.test_encoding_twice_makes_equal_bytes(NAME, dtype)
        contract.test_decoded_tensors_have_the_shape_and_type_of_the_model(NAME, dtype)
        contract.test_a_field_takes_at_most_its_raw_bytes(NAME, dtype)
    contract.test_encoding_changes_no_input(NAME)
    contract.test_a_part_decodes_without_the_other_parts(NAME)
    contract.test_a_head_does_not_depend_on_the_heads_beside_it(NAME)
    contract.test_a_token_does_not_depend_on_the_tokens_behind_it(NAME)
    contract.test_strided_tensors_are_stored_as_what_they_hold(NAME)
    contract.test_the_manifest_alone_rebuilds_the_codec(NAME)
    contract.test_bits_per_value_count_every_byte_that_is_stored(NAME)
    assert NAME in discovery.known_names(registry.QUANTIZERS)


def test_the_test_of_the_diff_passes(applied: Path) -> None:
    tests = runpy.run_path(str(applied / "tests" / "codecs" / "test_signs.py"))
    found = [test for name, test in tests.items() if name.startswith("test_")]
    assert len(found) == 1
    found[0]()
