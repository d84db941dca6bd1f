"""The disk that campaigns fill."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.faults.campaign import small_disk
from tests.faults.campaign.small_disk import SmallDisk

RECORD = bytes(100_000)


@pytest.mark.parametrize("held", [small_disk._HELD, "echo not permitted >&2; exit 1"], ids=["any machine", "one that mounts nothing"])
def test_nothing_fits_on_a_full_disk_and_all_does_behind_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: str) -> None:
    """A write fails as the system says it of a full disk."""
    monkeypatch.setattr(small_disk, "_HELD", held)
    with SmallDisk(tmp_path / "disk", 1 << 20) as disk:
        (disk.place / "before").write_bytes(RECORD)
        with disk.full(os.getpid()), pytest.raises(OSError, match=r"No space|too large") as caught:
            (disk.place / "meanwhile").write_bytes(RECORD)
        (disk.place / "behind").write_bytes(RECORD)
        assert (disk.place / "before").read_bytes() == (disk.place / "behind").read_bytes() == RECORD
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
