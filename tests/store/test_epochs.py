"""Epochs: an invalidation that returned is never forgotten."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kvstore.core.errors import CorruptError, InvalidInputError
from kvstore.store.epochs import KINDS, Epochs


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_starts_at_zero_and_rises_by_one(kind: str) -> None:
    """For its own tenant and name only."""
    epochs = Epochs()
    assert [epochs.current(kind, "a", "x"), epochs.raise_epoch(kind, "a", "x"), epochs.raise_epoch(kind, "a", "x")] == [0, 1, 2]
    assert (epochs.current(kind, "a", "x"), epochs.current(kind, "a", "y"), epochs.current(kind, "b", "x")) == (2, 0, 0)


def test_epochs_survive_a_restart(tmp_path: Path) -> None:
    """Names of any characters included."""
    path = tmp_path / "state" / "epochs"
    Epochs(path).raise_epoch("source", "a", "notes/ä \n.txt")
    again = Epochs(path)
    assert again.raise_epoch("source", "a", "notes/ä \n.txt") == 2
    assert Epochs(path).current("source", "a", "notes/ä \n.txt") == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_damaged_file_stops_the_start(tmp_path: Path) -> None:
    """Flipped bits and truncations: epochs that fell back to 0 would bring invalidated chunks to life."""
    path = tmp_path / "epochs"
    Epochs(path).raise_epoch("tenant", "a")
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(0, len(whole), 7)]
    damaged += [whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :] for bit in range(0, 8 * len(whole), 5)]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(CorruptError, match="is damaged"):
            Epochs(path)


def test_an_epoch_that_could_not_be_written_is_not_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller learns that nothing was invalidated; the file is as it was and nothing is left beside it."""
    path = tmp_path / "epochs"
    epochs = Epochs(path)
    epochs.raise_epoch("model", "a", "00")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            epochs.raise_epoch("model", "a", "00")
    assert (epochs.current("model", "a", "00"), Epochs(path).current("model", "a", "00")) == (1, 1)
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_kind_or_an_endless_name_is_refused() -> None:
    """The file stays small whatever a caller sends."""
    with pytest.raises(InvalidInputError, match="known are model, source, tenant"):
        Epochs().current("galaxy", "a")
    with pytest.raises(InvalidInputError, match="5000 characters"):
        Epochs().raise_epoch("source", "a", "x" * 5000)
