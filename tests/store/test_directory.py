"""The directory of shared chunks: what is listed is there, and what is gone is not listed."""

from __future__ import annotations

import pytest

from kvstore.core.directory import BUCKET_NBYTES, ENTRY_NBYTES, Listed, bucket_of, find_entry, fingerprint, pack_entry, parse_entry
from kvstore.core.key import ChunkKey
from kvstore.store.directory import CLOSED, Directory
from kvstore.store.memory import MemoryTier
from tests.store.chunks import make_record

KEY = ChunkKey(b"n" * 32, b"c" * 32, b"v" * 32)
SALT = b"s" * 16


class Table:
    """A directory of some buckets, and what a reader sees of it."""

    def __init__(self, n_buckets: int = 1) -> None:
        self.bytes = bytearray(n_buckets * BUCKET_NBYTES)
        self.floor = memoryview(bytearray(8)).cast("Q")
        self.directory = Directory(memoryview(self.bytes), self.floor)

    def enter(self, block_offset: int, name: int, stamp: int | None = None) -> None:
        """List a block under a fingerprint made of `name`."""
        listed = Listed(self.directory.stamp() if stamp is None else stamp, 4096 + block_offset, 100, "memory")
        self.directory.enter(block_offset, named(name), listed)

    def find(self, name: int) -> Listed | None:
        """Return what a reader believes of a fingerprint."""
        start = bucket_of(named(name), self.directory.n_buckets) * BUCKET_NBYTES
        bucket = bytes(self.bytes[start : start + BUCKET_NBYTES])
        at = find_entry(bucket, named(name))
        listed = parse_entry(bucket[at : at + ENTRY_NBYTES]) if at >= 0 else None
        return listed if listed and listed.stamp > self.floor[0] else None


def named(name: int) -> bytes:
    """Return a fingerprint."""
    return bytes([name]) * 16


@pytest.fixture
def table() -> Table:
    """One bucket."""
    return Table()


def test_what_was_entered_is_found(table: Table) -> None:
    """With its place, length and tier."""
    table.enter(64, 1)
    assert table.find(1) == Listed(1, 4160, 100, "memory")


@pytest.mark.parametrize("goes", [Directory.remove, Directory.retire], ids=["removed", "retired"])
def test_a_block_that_is_gone_is_not_found(table: Table, goes: object) -> None:
    """Its entry is cleared, and no other one."""
    table.enter(64, 1)
    table.enter(128, 2)
    goes(table.directory, 64)  # type: ignore[operator]
    assert (table.find(1), table.find(2) is None) == (None, False)


def test_a_block_that_was_removed_is_not_listed_by_who_still_reads_it(table: Table) -> None:
    """It was opened before, and is entered behind the removal; the next block at its place is listed again."""
    table.directory.remove(64)
    table.enter(64, 1)
    assert table.find(1) is None
    table.directory.retire(64)
    table.enter(64, 1)
    assert table.find(1) is not None


def test_nothing_that_was_listed_before_an_invalidation_is_believed(table: Table) -> None:
    """Nor what was being looked for meanwhile; what is looked for behind it is."""
    table.enter(64, 1)
    stamp = table.directory.stamp()
    table.directory.invalidate()
    table.enter(128, 2, stamp)
    assert (table.find(1), table.find(2)) == (None, None)
    table.enter(64, 1)
    assert table.find(1) is not None


def test_nothing_is_believed_of_a_store_that_is_closed(table: Table) -> None:
    """Readers keep its memory mapped."""
    table.enter(64, 1)
    table.directory.close()
    assert (table.floor[0], table.find(1)) == (CLOSED, None)


def test_a_full_bucket_lists_the_latest(table: Table) -> None:
    """Another entry gives way; its block can be listed again."""
    for name in range(1, 6):
        table.enter(64 * name, name)
    found = [name for name in range(1, 6) if table.find(name)]
    assert (len(found), 5 in found) == (4, True)
    lost = next(name for name in range(1, 6) if name not in found)
    table.enter(64 * lost, lost)
    assert table.find(lost) is not None


def test_a_key_that_lies_elsewhere_now_has_one_entry(table: Table) -> None:
    """The first block's end says nothing of the second."""
    table.enter(64, 1)
    table.enter(128, 1)
    table.directory.remove(64)
    found = table.find(1)
    assert found is not None
    assert found.offset == 4096 + 128


def test_an_entry_that_is_being_written_is_not_believed() -> None:
    """Any mixture of two entries has another sum."""
    first, second = pack_entry(named(1), Listed(1, 64, 100, "memory")), pack_entry(named(1), Listed(2, 128, 700, "memory"))
    cuts = range(17, ENTRY_NBYTES)  # before that they are the same
    torn = [first[:cut] + second[cut:] for cut in cuts]
    assert [parse_entry(entry) for entry in torn if entry not in (first, second)] == [None] * sum(e not in (first, second) for e in torn)


def test_a_fingerprint_within_an_entry_is_no_entry() -> None:
    """Only what begins where an entry begins counts."""
    inner = named(7)
    bucket = bytearray(BUCKET_NBYTES)
    bucket[8:24] = inner
    assert find_entry(bytes(bucket), inner) == -1
    bucket[64:80] = inner
    assert find_entry(bytes(bucket), inner) == 64


def test_tenants_find_the_same_key_by_different_fingerprints() -> None:
    """Each by its own salt."""
    assert fingerprint(SALT, KEY) != fingerprint(b"t" * 16, KEY)


def test_a_record_that_leaves_the_memory_tier_leaves_the_directory() -> None:
    """Before anybody can be told that it is gone."""
    tier = MemoryTier(1 << 20, is_shared=True)
    assert tier.shared is not None
    key, record = make_record(1, 1000)
    tier.put(key, [record])
    landing = tier.get(key)
    assert landing is not None
    directory = tier.shared.directory
    directory.enter(landing.block_offset, named(1), Listed(directory.stamp(), 0, 1000, "memory"))
    tier.delete(key)
    assert not any(directory._table)
    tier.close()
