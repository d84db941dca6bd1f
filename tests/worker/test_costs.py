"""The cost model of a worker: shared by threads, kept in a file, measured again where the file is no good."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvstore.planners.cost import CostModel
from kvstore.planners.samples import ReadSample
from kvworker.answer.costs import CostBook, saved_costs

MODEL = CostModel.calibrated([ReadSample("memory", 1000, 1e-3), ReadSample("memory", 2000, 2e-3)], 0.5)


def test_saved_costs_read_back_the_same(tmp_path: Path) -> None:
    """Nothing is left beside the file."""
    path = tmp_path / "costs.json"
    CostBook(MODEL, path).save()
    assert saved_costs(path) == MODEL
    assert list(tmp_path.iterdir()) == [path]


def test_without_a_file_nothing_is_kept() -> None:
    """A worker without a data directory measures at every start."""
    CostBook(MODEL).save()
    assert saved_costs(None) is None


GOOD = json.dumps(MODEL.to_json())


@pytest.mark.parametrize(
    "text",
    [
        "",
        GOOD[:-1],
        "null",
        "[]",
        "3",
        '"text"',
        "{}",
        '{"costs": [], "overlap": 0}',
        '{"costs": {}, "overlap": 2}',
        '{"costs": {"tier x": 1}, "overlap": 0}',
        '{"costs": {"tier x": {"coefficients": [1], "relative_error": 1, "n_samples": 1}}, "overlap": 0}',
        '{"costs": {"tier x": {"coefficients": [NaN, 1], "relative_error": 1, "n_samples": 1}}, "overlap": 0}',
        '{"costs": {"tier x": {"coefficients": [-1, 1], "relative_error": 1, "n_samples": 1}}, "overlap": 0}',
        "[" * 100_000,
        '{"costs": {}, "overlap": 1e999}',
    ],
)
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    """The costs are measured again; a worker never fails to start over them."""
    path = tmp_path / "costs.json"
    path.write_text(text)
    assert saved_costs(path) is None


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", bytes(1000)])
def test_a_file_of_other_bytes_is_as_good_as_none(tmp_path: Path, data: bytes) -> None:
    """Not even text."""
    path = tmp_path / "costs.json"
    path.write_bytes(data)
    assert saved_costs(path) is None


def test_a_folder_in_place_of_the_file_is_as_good_as_none(tmp_path: Path) -> None:
    """Nor a file."""
    assert saved_costs(tmp_path) is None


def test_no_observation_of_any_thread_is_lost() -> None:
    """Each sample is counted once."""
    book = CostBook(MODEL)

    def observe(_: int) -> None:
        book.observe([ReadSample("memory", 1000, 1e-3)] * 2)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(observe, range(100)))
    assert book.model.costs["tier memory"].n_samples == 1 + 200
