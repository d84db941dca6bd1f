"""The page and the plot of codecs are made of what was measured last, and name every method."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from bench import codecs_page, equal_bits, plot_codecs
from bench.codec_results import read_codecs
from kvstore.core.discovery import known_names
from kvworker.codec.presets import LADDER
from kvworker.codec.registry import QUANTIZERS, TRANSFORMS

ERRORS = ("k_err", "v_err", "attn_err", "attn_err_worst_layer", "worst_layer")
METRICS = (*ERRORS, "top1", "kl", "accuracy", "encode_gb_per_s", "decode_gb_per_s")


def rows(variant: str, bits: float, value: float = 0.5, bench: str = "codecs") -> list[dict[str, str]]:
    """Return the rows of a variant, all but its bits with one value."""
    head = {"bench": bench, "variant": variant, "x": "1024.0", "device": "a CPU", "date": "2026-01-02", "commit": "abc"}
    return [{**head, "metric": m, "p50": str(v)} for m, v in {"bits_per_value": bits, **dict.fromkeys(METRICS, value)}.items()]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Return a file with an old run and a new one."""
    path = tmp_path / "results.csv"
    new = [*rows("raw", 16), *(row for n, p in enumerate(LADDER) for row in rows(p.name, 10 - n)), *rows("int8", 9.5)]
    found = [*rows("raw", 17), *rows("gone", 3), *rows("x", 1, bench="reuse"), *new, *rows("transformers HQQ 4 bits, groups of 64", 4.5)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    return path


def test_the_last_run_counts(table: Path) -> None:
    found = {m.variant: m.bits for m in read_codecs(table)}
    assert found["raw"] == 16
    assert "gone" not in found


def test_the_page_names_every_method_and_preset(table: Path) -> None:
    text = codecs_page.page(read_codecs(table))
    names = [*known_names(TRANSFORMS), *known_names(QUANTIZERS), *known_names("kvstore.codecs"), *(preset.name for preset in LADDER)]
    assert [name for name in names if f"| `{name}` |" not in text] == []


def test_the_page_says_what_was_measured_of_each_codec(table: Path) -> None:
    text = codecs_page.page(read_codecs(table))
    assert "| `int8` | 9.50 | 0.5000 |" in text
    assert "| HQQ 4 bits, groups of 64 | 4.50 | 0.5000 |" in text


def test_a_page_without_peers_says_so(table: Path) -> None:
    found = [m for m in read_codecs(table) if not m.variant.startswith("transformers")]
    assert "were not installed" in codecs_page.page(found)


def test_the_page_has_rivals_beside_presets_at_their_bits(table: Path) -> None:
    """A rival of one setting has its error at any bits, and says at which where the preset has fewer."""
    text = codecs_page.page(read_codecs(table))
    assert "| `small` | 7.00 | 0.5000 |  |  |  | 0.5000 |" in text


@pytest.mark.parametrize(("bits", "expected"), [(2, 0.4), (3, 0.2), (2.5, 0.08**0.5), (1, 0.4), (5, 0.2)])
def test_an_error_between_two_settings_lies_on_the_line_of_its_logarithm(bits: float, expected: float) -> None:
    """A bit more divides the error; a setting that another one beats at fewer bits does not count."""
    assert equal_bits.error_at(bits, [(3, 0.2), (2, 0.4), (2.5, 0.9), (4, 0.3)]) == pytest.approx(expected)


def test_the_frontier_is_what_nothing_beats_at_fewer_bits() -> None:
    assert plot_codecs.frontier([(4, 0.9), (2, 0.8), (3, 0.7), (5, 0.9), (4, 0.85)]) == [(2, 0.8), (4, 0.9)]


def test_presets_and_peers_are_named_in_the_plot(table: Path) -> None:
    left = plot_codecs.draw_codecs(read_codecs(table)).axes[0]
    assert {text.get_text() for text in left.texts} == {*(preset.name for preset in LADDER), "HQQ 4 bits"}


def test_both_are_written(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["page", str(table), str(tmp_path / "docs" / "codecs.md")])
    codecs_page.main()
    monkeypatch.setattr(sys, "argv", ["plot", str(table), str(tmp_path)])
    plot_codecs.main()
    assert (tmp_path / "docs" / "codecs.md").read_text().startswith("# Codecs")
    assert (tmp_path / "codecs.png").read_bytes()[1:4] == b"PNG"


def test_a_file_without_the_benchmark_says_how_to_get_it(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("bench,variant,metric,x,p50\n")
    with pytest.raises(SystemExit, match="larder bench codecs"):
        read_codecs(path)
