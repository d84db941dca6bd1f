"""Every decisive check of CHECKS.md has its test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROWS = [line for line in (FOLDER / "CHECKS.md").read_text("utf-8").splitlines() if line.startswith("| ")][2:]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:60])
def test_a_row_names_a_test_that_is_there(row: str) -> None:
    """A number that nothing asserts is not kept."""
    cells = row.strip("| ").split(" | ")
    named = re.fullmatch(r"`(kernels/)?(test_\w+)::(test_\w+)`", cells[-1])
    assert len(cells) == 5
    assert named is not None
    folder = FOLDER.parent / "kernels" if named[1] else FOLDER
    assert f"def {named[3]}(" in (folder / f"{named[2]}.py").read_text("utf-8")
