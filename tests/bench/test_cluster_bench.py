"""What the cluster benchmark makes of rates."""

from __future__ import annotations

from dataclasses import dataclass

from kvworker.bench.cluster import ClusterBench, compared
from kvworker.bench.rows import Bench


@dataclass
class Measured:
    """What a lab has measured."""

    size: int
    rates: list[float]
    n_failed: int = 0


def test_sizes_are_compared_round_by_round() -> None:
    """Whatever slows a machine down slows both rates of a round down."""
    labs = [Measured(1, [100.0, 50.0, 10.0]), Measured(2, [110.0, 60.0, 9.0], n_failed=1)]
    rows = list(compared(Bench("cluster", "stores and workers", "cpu", "float32"), "device=0", labs))
    assert [(row.metric, row.x, row.p50) for row in rows] == [
        ("answers", 1, 50.0),
        ("failed", 1, 0),
        ("answers", 2, 60.0),
        ("failed", 2, 1),
        ("answers_over_1", 2, 1.1),
    ]


def test_the_quick_form_measures_the_same_sizes() -> None:
    """Its rows stand beside the others."""
    assert ClusterBench.quick().sizes == ClusterBench().sizes
