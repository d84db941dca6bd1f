"""The memory tier: views instead of copies, and blocks that are free only when nobody reads them."""

from __future__ import annotations

import gc

import pytest

from kvstore.core.errors import CapacityError
from kvstore.store.memory import MemoryTier
from tests.store.chunks import make_record


def test_a_get_copies_nothing() -> None:
    """Two reads see the same bytes of the arena; neither can change them."""
    tier = MemoryTier(1 << 16)
    key, record = make_record(1)
    tier.put(key, [record])
    one, two = tier.get(key), tier.get(key)
    assert one is not None
    assert two is not None
    assert one.obj is two.obj
    assert one.readonly


def test_a_deleted_record_counts_as_used_until_its_last_view_is_dropped() -> None:
    """The capacity bounds memory, not the number of names."""
    tier = MemoryTier(1 << 16)
    key, record = make_record(2, 128)
    tier.put(key, [record])
    used, view = tier.used_bytes, tier.get(key)
    assert view is not None
    part = view[100:200]
    tier.delete(key)
    del view
    assert tier.used_bytes == used
    del part
    gc.collect()
    assert tier.used_bytes == 0


def test_a_block_that_is_being_read_is_not_given_away() -> None:
    """The arena is full of a record that was deleted but is still read: a put is refused rather than overwrite it."""
    tier = MemoryTier(2048)
    (key, record), (other_key, other) = make_record(3, 990), make_record(4, 990)
    tier.put(key, [record])
    view = tier.get(key)
    tier.delete(key)
    with pytest.raises(CapacityError):
        tier.put(other_key, [other])
    assert view == record
    del view
    tier.put(other_key, [other])
    assert tier.get(other_key) == other


def test_a_put_that_fails_halfway_leaves_no_block_behind() -> None:
    """A caller's buffer may turn out to be unusable after room was made."""
    tier = MemoryTier(1 << 16)
    key, record = make_record(5)
    with pytest.raises((TypeError, ValueError)):
        tier.put(key, [record, "text"])  # type: ignore[list-item]
    gc.collect()
    assert (tier.used_bytes, tier.get(key)) == (0, None)
