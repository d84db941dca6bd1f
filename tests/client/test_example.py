"""The ten-line example of the README."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.client.fake_server import FakeServer

EXAMPLE = Path(__file__).parents[2] / "examples" / "ten_lines.py"


def test_the_ten_line_example_prints_answer_and_report(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Address and token come from the environment."""
    monkeypatch.setenv("LARDER_ADDRESS", server.address)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    out = capsys.readouterr().out
    assert out.startswith("marble")
    assert "notes/harbour.txt#1: load 512 B from memory in 0.2500 s, read in its document: cheaper" in out


def test_the_example_is_about_ten_lines() -> None:
    """What a new user reads first is short."""
    code = [line for line in EXAMPLE.read_text().splitlines() if line.strip() and not line.startswith('"""')]
    assert len(code) <= 10
