"""The device tier keeps what was used last, inside its budget, and never mixes tenants."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.errors import InvalidInputError
from kvstore.core.key import ChunkKey
from kvworker.answer.device_tier import DeviceTier, TenantKey
from kvworker.chunk import KVChunk, PassageKV

ROW_NBYTES = 2 * 4  # K and V of one head of dimension 1 in float32


def key(number: int, tenant: str = "a") -> TenantKey:
    """Return the key of chunk `number`."""
    return tenant, ChunkKey(bytes(32), number.to_bytes(32, "little"), bytes(32))


def passage(n_rows: int) -> PassageKV:
    """Return a passage of n_rows * ROW_NBYTES bytes."""
    return (KVChunk(torch.zeros(1, 1, n_rows, 1), torch.zeros(1, 1, n_rows, 1)),)


def test_a_passage_comes_back_as_the_same_tensors() -> None:
    """Nothing is copied on a hit."""
    tier, kept = DeviceTier(100), passage(2)
    assert tier.put(key(1), kept)
    assert tier.get(key(1)) is kept


def test_the_least_recently_used_passage_leaves_first() -> None:
    """A hit counts as use."""
    tier = DeviceTier(2 * ROW_NBYTES)
    tier.put(key(1), passage(1))
    tier.put(key(2), passage(1))
    tier.get(key(1))
    tier.put(key(3), passage(1))
    assert [tier.nbytes(key(n)) for n in (1, 2, 3)] == [ROW_NBYTES, 0, ROW_NBYTES]


def test_looking_at_the_size_is_not_a_use() -> None:
    """A planner asks about passages that it then may not load."""
    tier = DeviceTier(2 * ROW_NBYTES)
    tier.put(key(1), passage(1))
    tier.put(key(2), passage(1))
    tier.nbytes(key(1))
    tier.put(key(3), passage(1))
    assert tier.nbytes(key(1)) == 0


def test_a_passage_larger_than_the_budget_is_not_kept_and_evicts_nothing() -> None:
    """Making room for it could only fail."""
    tier = DeviceTier(2 * ROW_NBYTES)
    tier.put(key(1), passage(2))
    assert not tier.put(key(2), passage(3))
    assert tier.nbytes(key(1)) == 2 * ROW_NBYTES


def test_a_tier_without_capacity_keeps_nothing() -> None:
    """0 B switches it off."""
    tier = DeviceTier(0)
    assert not tier.put(key(1), passage(1))
    assert tier.get(key(1)) is None


def test_another_tenant_does_not_find_the_passage() -> None:
    """Not even by its speed: it is a miss."""
    tier = DeviceTier(100)
    tier.put(key(1, "a"), passage(1))
    assert tier.get(key(1, "b")) is None
    assert tier.stats().misses == 1


def test_hits_misses_and_evictions_are_counted() -> None:
    """Metrics and `stats` read them."""
    tier = DeviceTier(ROW_NBYTES)
    tier.put(key(1), passage(1))
    tier.put(key(2), passage(1))
    tier.get(key(2))
    tier.get(key(1))
    stats = tier.stats()
    assert (stats.hits, stats.misses, stats.evictions, stats.n_passages, stats.used_bytes) == (1, 1, 1, 1, ROW_NBYTES)


def test_dropped_passages_are_gone_and_their_bytes_free() -> None:
    """Invalidation and deletion reach device memory too; unknown keys are ignored."""
    tier = DeviceTier(100)
    tier.put(key(1), passage(1))
    tier.put(key(2), passage(2))
    tier.drop([key(1), key(9)])
    assert (tier.get(key(1)), tier.stats().used_bytes) == (None, 2 * ROW_NBYTES)
    tier.clear()
    assert (tier.get(key(2)), tier.stats().used_bytes) == (None, 0)


def test_a_negative_capacity_is_refused() -> None:
    """It comes from a configuration."""
    with pytest.raises(InvalidInputError, match="0 B or more, got -1 B"):
        DeviceTier(-1)


@given(st.integers(0, 8), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=40))
def test_the_budget_is_never_exceeded_and_the_count_is_exact(capacity_rows: int, puts: list[tuple[int, int]]) -> None:
    """Whatever is put, in any order, the same key again included."""
    tier = DeviceTier(capacity_rows * ROW_NBYTES)
    for number, n_rows in puts:
        tier.put(key(number), passage(n_rows))
        used = tier.stats().used_bytes
        assert used == sum(tier.nbytes(key(n)) for n in range(6)) <= capacity_rows * ROW_NBYTES


def test_threads_may_share_a_tier() -> None:
    """Loader threads put while requests get; a race would corrupt the byte count."""
    tier = DeviceTier(10 * ROW_NBYTES)

    def work(seed: int) -> None:
        for step in range(300):
            number = (seed * 7 + step * 13) % 17
            tier.put(key(number), passage(1 + number % 3))
            tier.get(key((number + 1) % 17))
            tier.drop([key((number + 2) % 17)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert tier.stats().used_bytes == sum(tier.nbytes(key(n)) for n in range(17)) <= 10 * ROW_NBYTES
