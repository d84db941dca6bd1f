"""The plots show every policy once per number of passages, and nothing that was not timed."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from bench.plot import by_passages, draw_prediction, draw_reuse, main, read_points

VALUES = {"ttft_ratio": 0.5, "accuracy_carried": 0.75, "ttft": 0.02, "ttft_predicted": 0.01}


def rows(variant: str, x: float, **values: float) -> list[dict[str, str]]:
    """Return the CSV rows of a point."""
    return [{"bench": "reuse", "variant": variant, "x": str(x), "metric": m, "p50": str(v)} for m, v in values.items()]


MEASURED = [
    *rows("none", 0.0, **VALUES),
    *rows("deviation", 0.3, **VALUES),
    *rows("deviation", 0.15, **VALUES),
    *rows("none@16", 0.0, **VALUES),
    *rows("none@long", 0.0, accuracy_carried=0.1),
]


def test_what_was_not_timed_is_left_out() -> None:
    """The cases in which reading in a document could hurt have no times."""
    assert ("none@long", 0.0) not in read_points(MEASURED)


def test_rows_of_other_benchmarks_are_left_out() -> None:
    """The CSV file holds all of them."""
    assert read_points([{**row, "bench": "context"} for row in MEASURED]) == {}


def test_the_last_measurement_of_a_point_counts() -> None:
    """The file is only ever appended to."""
    points = read_points([*MEASURED, *rows("none", 0.0, ttft_ratio=0.25)])
    assert points["none", 0.0]["ttft_ratio"] == 0.25


def test_panels_hold_one_line_per_policy_from_few_rows_to_many() -> None:
    """Eight passages are the main number, which no suffix names."""
    panels = by_passages(read_points([*MEASURED, *rows("deviation", 0.15, ttft_ratio=0.1)]))
    assert {passages: list(policies) for passages, policies in panels.items()} == {"8": ["none", "deviation"], "16": ["none"]}
    assert [m["ttft_ratio"] for m in panels["8"]["deviation"]] == [0.1, 0.5]


def test_every_policy_is_drawn_once_and_named_once() -> None:
    """In the legend, over all panels."""
    figure = draw_reuse(read_points(MEASURED))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["none", "deviation"]


def test_predictions_are_drawn_against_what_happened() -> None:
    """In milliseconds, predicted across and actual up."""
    (axis,) = draw_prediction(read_points(rows("none", 0.0, **VALUES))).axes
    assert axis.collections[-1].get_offsets().tolist() == [[10.0, 20.0]]


def test_both_plots_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SVG, the same bytes for the same numbers."""
    table = tmp_path / "results.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(MEASURED[0]))
        writer.writeheader()
        writer.writerows(MEASURED)
    monkeypatch.setattr(sys, "argv", ["plot", str(table), str(tmp_path)])
    main()
    written = {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}
    main()
    assert sorted(written) == ["prediction.svg", "reuse.svg"]
    assert written == {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}


def test_a_file_without_the_benchmark_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty plot would be worse."""
    table = tmp_path / "results.csv"
    table.write_text("bench,variant,metric,x,p50\n")
    monkeypatch.setattr(sys, "argv", ["plot", str(table), str(tmp_path)])
    with pytest.raises(SystemExit, match="larder bench reuse"):
        main()
