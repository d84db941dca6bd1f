"""The benchmark of edits measures what it says: tokens follow from the place of the edit."""

from __future__ import annotations

import pytest

from kvstore.planners.cost import CostModel
from kvworker.bench.benchmark import Asked
from kvworker.bench.edits import EditsBench
from kvworker.serve import runtime


def test_an_edit_reads_the_passages_from_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 equal passages: all of them, none, the last, the last quarter, half, all."""
    monkeypatch.setattr(runtime, "calibrate", lambda *_: CostModel())
    rows = list(EditsBench(sizes=(128,), repeats=1).run(Asked()))
    n_read = {row.variant: row.p50 for row in rows if row.metric == "tokens_read"}
    whole = n_read["whole"]
    shares = {variant: round(16 * n / whole) for variant, n in n_read.items()}
    assert shares == {
        "whole": 16,
        "unchanged": 0,
        "edit_last": 1,
        "edit_three_quarters": 4,
        "edit_middle": 8,
        "edit_first": 16,
        "alone": 16,
        "both": 31,
    }
    assert all(row.p50 > 0 for row in rows if row.metric == "ingest")
