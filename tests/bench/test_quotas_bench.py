"""The benchmark of quotas: real processes for a moment, and what its rows say."""

from __future__ import annotations

import pytest

from kvworker.bench.benchmark import Asked
from kvworker.bench.quotas import VARIANTS, QuotasBench
from kvworker.bench.transport_timing import Budget


def test_every_variant_is_measured_and_compared_with_being_alone() -> None:
    """In the same round, since machines have moods."""
    bench = QuotasBench(sizes=(100,), nbytes=4096, rounds=1, budget=Budget(warm_ups=1, min_operations=5, min_s=0.01, max_s=0.05))
    rows = {(row.variant, row.unit): row.p50 for row in bench.run(Asked())}
    assert {variant for variant, _ in rows} == {*VARIANTS, *(f"{variant} / alone" for variant in VARIANTS if variant != "alone")}
    for variant in VARIANTS:
        if variant != "alone":
            assert rows[f"{variant} / alone", "ratio"] == pytest.approx(rows[variant, "ms"] / rows["alone", "ms"])
