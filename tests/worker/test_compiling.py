"""What a worker has compiled before it serves: nothing that it would not use, and no failure ends anything."""

from __future__ import annotations

import logging

import pytest

from kvkernels import compiled, int8_compiled, kivi_compiled
from kvworker.codec.specs import find_codec
from kvworker.serve.compiling import compile_codecs
from tests.contracts.codecs import identity_for

MODEL = identity_for((8, 8, 128, 128), (8, 8, 128, 128), dtype="bfloat16")
TEXTS = ("int8", "kivi4", "int8+zstd:fields=codes", "raw", "kivi:bits=4,group=64")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | int, ...]]:
    """Return what would have been compiled, by name and widths of heads; there is a compiler."""
    made: list[tuple[str | int, ...]] = []
    monkeypatch.setattr(int8_compiled, "prepare", lambda k_dim, v_dim, dtype: made.append(("int8", k_dim, v_dim)))
    monkeypatch.setattr(kivi_compiled, "prepare", lambda dim, dtype: made.append(("kivi", dim)))
    monkeypatch.setattr(compiled, "has_compiler", lambda: True)
    return made


def test_every_form_that_codecs_use_is_compiled_once(made: list[tuple[str | int, ...]]) -> None:
    """Groups of layers and codecs share them; other widths of kivi have none."""
    compile_codecs("cpu", [find_codec(text) for text in TEXTS], MODEL)
    assert sorted(made) == [("int8", 128, 128), ("kivi", 128)]


@pytest.mark.parametrize(("device", "text"), [("cuda:0", "int8"), ("cpu", "raw"), ("cpu", "kivi2")])
def test_nothing_is_compiled_for_what_has_no_form(device: str, text: str, made: list[tuple[str | int, ...]]) -> None:
    """On a GPU kernels do it."""
    compile_codecs(device, [find_codec(text)], MODEL)
    assert made == []


def test_nothing_is_compiled_for_a_model_whose_chunks_are_small(made: list[tuple[str | int, ...]]) -> None:
    """Calling a compiled form would cost more than it saves."""
    compile_codecs("cpu", [find_codec("int8")], identity_for((3, 2, 32, 32)))
    assert made == []


def test_nothing_is_compiled_without_a_compiler(made: list[tuple[str | int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "has_compiler", lambda: False)
    compile_codecs("cpu", [find_codec("int8")], MODEL)
    assert made == []


@pytest.mark.usefixtures("made")
def test_a_compiler_that_fails_is_told_of_and_no_more(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The references do the same, slower."""

    def fail(k_dim: int, v_dim: int, dtype: object) -> None:
        raise RuntimeError("no headers")

    monkeypatch.setattr(int8_compiled, "prepare", fail)
    with caplog.at_level(logging.WARNING):
        compile_codecs("cpu", [find_codec("int8")], MODEL)
    assert "codecs stay uncompiled and slower: RuntimeError: no headers" in caplog.text
