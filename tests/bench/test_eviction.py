"""What the eviction benchmark reports, at a size that takes no time."""

from __future__ import annotations

from kvworker.bench.benchmark import Asked
from kvworker.bench.eviction import EvictionBench


def test_every_policy_is_compared_with_lru() -> None:
    """By the mean and the worst seed; LRU against itself is 1 throughout."""
    rows = list(EvictionBench(sizes=(2,), policies=("lru", "value"), exponents=(0.7,), seeds=2).run(Asked()))
    metrics = [name + suffix for name in ("saved_over_lru", "hits_lost_to_noise") for suffix in ("", "_mean", "_worst")]
    assert [row.metric for row in rows] == ["hit_share", *metrics] * 2 + ["hit_share", *metrics[:3]]
    assert {row.variant for row in rows} == {"lru exponent=0.7", "value exponent=0.7", "hindsight exponent=0.7"}
    assert {row.p50 for row in rows if row.variant.startswith("lru") and row.metric.startswith("saved")} == {1.0}
    value = {row.metric: row.p50 for row in rows if row.variant.startswith("value")}
    assert value["saved_over_lru_worst"] <= value["saved_over_lru_mean"]
    assert value["hits_lost_to_noise_mean"] <= value["hits_lost_to_noise_worst"]


def test_hindsight_keeps_what_is_asked_for_most() -> None:
    """So it saves more than any policy that has to find out."""
    rows = list(EvictionBench(sizes=(2,), policies=("value",), exponents=(1.0,), seeds=2).run(Asked()))
    saved = {row.variant: row.p50 for row in rows if row.metric == "saved_over_lru"}
    assert saved["hindsight exponent=1"] > saved["value exponent=1"]
