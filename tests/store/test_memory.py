"""The memory tier: views instead of copies, and blocks that are free only when nobody reads them."""

from __future__ import annotations

import gc

import pytest

from kvstore.core.blob import align
from kvstore.core.errors import CapacityError
from kvstore.store.memory import MemoryTier
from tests.store.chunks import make_record
from tests.store.reading import read_whole


def test_a_get_copies_nothing() -> None:
    """Two reads see the same bytes of the arena; neither can change them."""
    tier = MemoryTier(1 << 16)
    key, record = make_record(1)
    tier.put(key, [record])
    one, two = tier.get(key), tier.get(key)
    assert one is not None
    assert two is not None
    assert (one.view.obj is two.view.obj, one.filled, one.offset) == (True, len(record), two.offset)
    assert one.view.readonly


def test_a_deleted_record_counts_as_used_until_its_last_view_is_dropped() -> None:
    """The capacity bounds memory, not the number of names."""
    tier = MemoryTier(1 << 16)
    key, record = make_record(2, 128)
    tier.put(key, [record])
    used, landing = tier.used_bytes, tier.get(key)
    assert landing is not None
    part = landing.view[100:200]
    tier.delete(key)
    del landing
    assert tier.used_bytes == used
    del part
    gc.collect()
    assert tier.used_bytes == 0


def test_a_block_that_is_being_read_is_not_given_away() -> None:
    """The arena is full of a record that was deleted but is still read: a put is refused rather than overwrite it."""
    tier = MemoryTier(2048)
    (key, record), (other_key, other) = make_record(3, 990), make_record(4, 990)
    tier.put(key, [record])
    landing = tier.get(key)
    assert landing is not None
    tier.delete(key)
    with pytest.raises(CapacityError):
        tier.put(other_key, [other])
    assert landing.view == record
    del landing
    tier.put(other_key, [other])
    assert read_whole(tier, other_key) == other


def test_a_put_that_fails_halfway_leaves_no_block_behind() -> None:
    """A caller's buffer may turn out to be unusable after room was made."""
    tier = MemoryTier(1 << 16)
    key, record = make_record(5)
    with pytest.raises((TypeError, ValueError)):
        tier.put(key, [record, "text"])  # type: ignore[list-item]
    gc.collect()
    assert (tier.used_bytes, tier.get(key)) == (0, None)


def test_a_room_is_seen_by_nobody_before_it_is_published() -> None:
    """Neither by its key, nor in a listing; and publishing copies nothing."""
    tier = MemoryTier(1 << 16)
    key, record = make_record(6)
    room = tier.reserve(len(record))
    room.view[:] = record
    assert (tier.get(key), tier.find([key]), list(tier.scan())) == (None, [None], [])
    tier.publish(key, room)
    landing = tier.get(key)
    assert landing is not None
    assert (landing.view, landing.offset, landing.view.obj is room.view.obj) == (record, room.offset, True)


def test_a_room_that_is_dropped_gives_its_bytes_back() -> None:
    """A writer that fails halfway leaves nothing behind; the bytes count until then."""
    tier = MemoryTier(1 << 16)
    room = tier.reserve(1000)
    assert tier.used_bytes == 1024
    with pytest.raises(CapacityError, match="64512 B are free in one piece"):
        tier.reserve(1 << 16)
    del room
    assert tier.used_bytes == 0
    assert len(tier.reserve(1 << 16).view) == 1 << 16


def test_the_first_of_two_rooms_that_are_published_stays() -> None:
    """And the bytes of the second one are free again."""
    tier = MemoryTier(1 << 16)
    (key, record), (_, other) = make_record(7, 100), make_record(8, 500)
    rooms = [tier.reserve(len(record)), tier.reserve(len(other))]
    for room, data in zip(rooms, (record, other), strict=True):
        room.view[:] = data
        tier.publish(key, room)
    del room, rooms
    assert read_whole(tier, key) == record
    assert tier.used_bytes == align(len(record))


def test_rooms_never_overlap() -> None:
    """Writers fill them at the same time."""
    tier = MemoryTier(1 << 16)
    rooms = [tier.reserve(nbytes) for nbytes in (1, 63, 64, 65, 4096)]
    for number, room in enumerate(rooms):
        room.view[:] = bytes([number + 1]) * len(room.view)
    assert [set(room.view) for room in rooms] == [{number + 1} for number in range(len(rooms))]
