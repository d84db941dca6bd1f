"""The file of a calibration: it comes back as it was, is bound to one model, and hostile bytes are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvstore.core.errors import CorruptError, IdentityError, UnsupportedError
from kvworker.codec.specs import find_codec
from kvworker.quality.calibration import Calibration, Measured, calibration_path, codec_id, load_calibration, shipped_calibration

NAMESPACE, OTHER = bytes(32), bytes([1] * 32)
ROW = Measured("alone", "lossless", "none", 200, 3, 0.25, 0.125)
KEPT = Calibration(NAMESPACE.hex(), "cpu", "known", "2026-01-01", (ROW,))


def saved(tmp_path: Path, **changes: object) -> Path:
    """Write a calibration with other values in its file, or in its first row, and return the path."""
    path = calibration_path(tmp_path, "cpu")
    KEPT.save(path)
    content = json.loads(path.read_text())
    for key, value in changes.items():
        (content if key in content else content["rows"][0])[key] = value
    path.write_text(json.dumps(content))
    return path


def test_a_calibration_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    """Every number."""
    assert load_calibration(saved(tmp_path), NAMESPACE) == KEPT


def test_no_file_is_no_calibration(tmp_path: Path) -> None:
    """A new model starts without one."""
    assert load_calibration(calibration_path(tmp_path, "cuda:0"), NAMESPACE) is None


def test_the_calibration_of_another_model_is_refused(tmp_path: Path) -> None:
    """Other weights have another namespace, wherever the file was copied to."""
    with pytest.raises(IdentityError, match="larder calibrate"):
        load_calibration(saved(tmp_path), OTHER)


def test_a_calibration_that_came_with_other_weights_does_not_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever trains a model further has another; it is served without, and the log says so."""
    KEPT.save(tmp_path / "larder-quality.json")
    assert shipped_calibration(tmp_path, NAMESPACE) == KEPT
    assert shipped_calibration(tmp_path, OTHER) is None
    assert "is of model" in caplog.text


def test_another_format_is_refused(tmp_path: Path) -> None:
    """Its numbers may mean something else."""
    with pytest.raises(UnsupportedError, match="larder-quality/9"):
        load_calibration(saved(tmp_path, format="larder-quality/9"), NAMESPACE)


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": {}},
        {"policy": "magic"},
        {"rows": [1]},
        {"rows": [{}]},
        {"namespace": 3},
        {"n_asked": 0},
        {"n_lost": 201},
        {"n_lost": -1},
        {"n_lost": True},
        {"n_asked": 2.5},
        {"cost": float("nan")},
        {"kl": float("inf")},
        {"cost": -1.0},
        {"reading": "upside_down"},
        {"policy": None},
    ],
    ids=str,
)
def test_a_file_that_nobody_measured_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    """One wrong count would open the gate."""
    with pytest.raises(CorruptError, match="quality-cpu"):
        load_calibration(saved(tmp_path, **changes), NAMESPACE)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000], ids=["empty", "cut", "list", "bytes", "null", "deep"]
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """Each has a clear error of ours."""
    path = calibration_path(tmp_path, "cpu")
    path.write_bytes(content)
    with pytest.raises(CorruptError, match="damaged"):
        load_calibration(path, NAMESPACE)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """Its size is checked first."""
    path = calibration_path(tmp_path, "cpu")
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CorruptError, match="at most"):
        load_calibration(path, NAMESPACE)


def test_a_loss_is_bounded_the_further_away_the_more_it_was_chosen_from() -> None:
    """The best of many may have been lucky."""
    assert ROW.at_least < ROW.loss < ROW.at_most(1) < ROW.at_most(20)


@pytest.mark.parametrize(("codec", "name"), [("raw", "lossless"), ("lossless", "lossless"), ("kivi4", "kivi:bits=4,group=32")])
def test_a_codec_is_known_by_what_it_loses(codec: str, name: str) -> None:
    """Byte stages lose nothing, so that raw and compressed chunks share their measurements."""
    assert codec_id(find_codec(codec)) == name
