"""Reading through the tiers: what a slow tier gives is received once, verified before it is copied, and taken out of sight when damaged."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvstore.core.api import Status
from kvstore.core.errors import CorruptError, DeadlineError, TierUnavailableError
from kvstore.core.landing import PIECE_NBYTES
from kvstore.store.disk import DiskTier
from kvstore.store.memory import MemoryTier
from kvstore.store.results import Miss, Opened
from kvstore.store.tiered import TieredStore
from tests.store.chunks import make_chunk, record_nbytes, record_of
from tests.store.faulty import FaultyTier, remote
from tests.store.stores import ROOMY, OpenStore, blob_of, corrupt, put

LARGE = 3 * PIECE_NBYTES


def opened_of(store: TieredStore, key: bytes, timeout_s: float = 10.0) -> Opened:
    """Open a record that is there."""
    outcome = store.get(key, timeout_s)
    assert isinstance(outcome, Opened), outcome
    return outcome


def far_tier(seed: int, nbytes: int = 64, damaged_at: int | None = None) -> tuple[bytes, FaultyTier]:
    """Return the key of a chunk and a remote tier that has it, with one flipped bit if asked for."""
    key, meta, blob = make_chunk(seed, nbytes)
    inner = MemoryTier(16 << 20)
    inner.put(key, [record_of(key, meta, blob)])
    if damaged_at is not None:
        corrupt(inner, key, damaged_at)
    return key, remote(inner)


def damage_file(directory: Path, key: bytes, at: int = -1) -> None:
    """Flip one bit of a record on disk."""
    path = directory / "records" / key.hex()[:2] / key.hex()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def found_on_disk(open_store: OpenStore, directory: Path, memory: MemoryTier, nbytes: int = 64) -> tuple[TieredStore, bytes]:
    """Return a store that was restarted and has a record on disk only."""
    store = open_store(MemoryTier(16 << 20), DiskTier(directory, 16 << 20))
    key = put(store, 1, nbytes)
    store.close()
    return open_store(memory, DiskTier(directory, 16 << 20)), key


def test_readers_of_one_record_receive_it_from_a_slow_tier_once(open_store: OpenStore) -> None:
    """However many they are: more than there are threads for remote calls."""
    key, far = far_tier(1, LARGE)
    store = open_store(MemoryTier(64), far, remote_threads=2)
    opened = [opened_of(store, key) for _ in range(9)]
    with ThreadPoolExecutor(9) as threads:
        assert set(threads.map(blob_of, opened)) == {make_chunk(1, LARGE)[2]}
    assert (far.calls, far.receives, far.closed) == (1, 4, 1)


def test_readers_that_wait_for_the_same_answer_use_one_remote_thread(open_store: OpenStore) -> None:
    """A popular record must not look unavailable because it is popular."""
    key, far = far_tier(1)
    store = open_store(MemoryTier(64), far, remote_threads=1)
    far.gate.clear()
    with ThreadPoolExecutor(9) as threads:
        reads = [threads.submit(store.get, key, 10.0) for _ in range(9)]
        while not far.calls:
            threading.Event().wait(0.001)
        far.gate.set()
        assert all(isinstance(read.result(), Opened) for read in reads)


def test_a_reader_that_stops_in_the_middle_lets_go_of_the_tier(open_store: OpenStore) -> None:
    """What it did not read is not received, and not copied up."""
    memory = MemoryTier(16 << 20)
    key, far = far_tier(1, LARGE)
    store = open_store(memory, far)
    opened = opened_of(store, key)
    opened.landing.fill(PIECE_NBYTES)
    opened.landing.close()
    assert store.drain()
    assert (far.receives, far.closed, memory.find([key])) == (2, 1, [None])
    assert blob_of(store.get(key)) == make_chunk(1, LARGE)[2]


def test_a_reader_that_stops_takes_nothing_from_another(open_store: OpenStore) -> None:
    """They share what arrives and nothing else."""
    memory = MemoryTier(16 << 20)
    key, far = far_tier(1, LARGE)
    store = open_store(memory, far)
    hasty, patient = opened_of(store, key), opened_of(store, key)
    hasty.landing.fill(PIECE_NBYTES)
    hasty.landing.close()
    assert blob_of(patient) == make_chunk(1, LARGE)[2]
    assert store.drain()
    assert (far.calls, far.receives, memory.find([key])) == (1, 4, [record_nbytes(LARGE)])


def test_a_reader_waits_for_a_remote_tier_as_long_as_it_said(open_store: OpenStore) -> None:
    """In the reading too; one who has more time is not held to it."""
    key, far = far_tier(1, LARGE)
    store = open_store(MemoryTier(64), far)
    hasty, patient = opened_of(store, key), opened_of(store, key, 60.0)
    hasty.landing._whole.deadline = 0.0  # type: ignore[attr-defined]
    with pytest.raises(DeadlineError):
        blob_of(hasty)
    assert blob_of(patient) == make_chunk(1, LARGE)[2]


def test_reading_from_a_local_tier_has_no_deadline(open_store: OpenStore, tmp_path: Path) -> None:
    """A reader may take its time over what no network can take away."""
    store, key = found_on_disk(open_store, tmp_path, MemoryTier(ROOMY))
    opened = opened_of(store, key, timeout_s=0.0)
    assert opened.tier == "disk"
    assert blob_of(opened) == make_chunk(1)[2]


def test_a_tier_that_dies_in_the_middle_is_an_error_that_says_so(open_store: OpenStore) -> None:
    """Neither damage nor a miss: the copy may be sound, so it stays."""
    key, far = far_tier(1, LARGE)
    store = open_store(MemoryTier(64), far)
    opened = opened_of(store, key)
    far.error = TierUnavailableError("down")
    with pytest.raises(TierUnavailableError):
        blob_of(opened)
    far.error = None
    assert (store.counters["quarantined"], blob_of(store.get(key))) == (0, make_chunk(1, LARGE)[2])


def test_a_damaged_record_is_never_copied_up(open_store: OpenStore, tmp_path: Path) -> None:
    """Also when its reader did not look: the copy is verified by whoever makes it, and the damaged file is quarantined and counted."""
    memory = MemoryTier(ROOMY)
    store, key = found_on_disk(open_store, tmp_path, memory)
    damage_file(tmp_path, key)
    opened = opened_of(store, key)
    opened.landing.fill(opened.landing.nbytes)
    assert store.drain()
    assert (memory.find([key]), store.counters["quarantined"], store.get(key)) == ([None], 1, Miss("corrupt"))
    assert len(list((tmp_path / "quarantine").iterdir())) == 1


def test_a_damaged_record_counts_once_whoever_finds_out_first(open_store: OpenStore, tmp_path: Path) -> None:
    """Two readers and the copy behind them all meet the same damage."""
    store, key = found_on_disk(open_store, tmp_path, MemoryTier(16 << 20), LARGE)
    damage_file(tmp_path, key)
    for opened in [opened_of(store, key) for _ in range(2)]:
        with pytest.raises(CorruptError) as damage:
            blob_of(opened)
        store.quarantine(key, opened.tier, damage.value)
    assert store.drain()
    assert (store.counters["quarantined"], store.lookup([key])[0].reason) == (1, "corrupt")


@pytest.mark.parametrize("at", [0, 20, 40, 70, 90, 300])
def test_a_damaged_head_in_a_slow_tier_is_a_miss_at_once(open_store: OpenStore, at: int) -> None:
    """Magic, length, storage key, digest and meta: none of it reaches a reader, and what it came from is let go."""
    key, far = far_tier(1, LARGE, damaged_at=at)
    store = open_store(MemoryTier(64), far)
    assert store.get(key) == Miss("corrupt")
    assert (store.counters["quarantined"], far.find([key]), far.closed) == (1, [None], 1)


def test_a_damaged_remote_copy_is_not_joined_after_it_went_out_of_sight(open_store: OpenStore) -> None:
    """While somebody still reads it: the next reader is told that there is none."""
    key, far = far_tier(1, LARGE, damaged_at=-1)
    store = open_store(MemoryTier(64), far)
    reading = opened_of(store, key)
    store.quarantine(key, "remote", CorruptError("somebody found out"))
    assert store.get(key) == Miss("never_stored")
    with pytest.raises(CorruptError):
        blob_of(reading)


def test_a_copy_that_found_no_room_is_no_debt(open_store: OpenStore, tmp_path: Path) -> None:
    """The record is where it was found; a drain owes memory nothing."""
    memory = MemoryTier(1024 + record_nbytes())
    store, key = found_on_disk(open_store, tmp_path, memory)
    store.lookup([put(store, 2, 600)], lease_s=30.0)
    assert store.drain()
    assert blob_of(store.get(key)) == make_chunk(1)[2]
    assert store.drain()
    assert (memory.find([key]), store.counters["write_behind_failed"]) == ([None], 1)


def test_a_record_that_another_server_described_otherwise_is_read_by_its_own_head(open_store: OpenStore) -> None:
    """It was copied up while this server put the same chunk from a source with a longer name: two heads, one blob."""
    memory = MemoryTier(ROOMY)
    store = open_store(memory)
    key, meta, blob = make_chunk(1)
    store.put(key, meta, blob)
    other = make_chunk(1, source="a/much/longer/name" * 9)[1]
    memory.delete(key)
    memory.put(key, [record_of(key, other, blob)])
    opened = opened_of(store, key)
    assert (opened.meta, blob_of(opened), store.counters["quarantined"]) == (other, blob, 0)


def test_scrubbing_quarantines_damaged_copies_and_no_other(open_store: OpenStore, tmp_path: Path) -> None:
    """A reader in another process saw damage and can't tell which copy it was; a second scrub finds nothing."""
    memory, disk = MemoryTier(ROOMY), DiskTier(tmp_path, ROOMY)
    key, far = far_tier(1)
    store = open_store(memory, disk, far)
    put(store, 1)
    assert store.drain()
    corrupt(memory, key)
    assert (store.scrub(key), store.scrub(key), store.counters["quarantined"]) == (True, False, 1)
    assert (memory.find([key]), disk.find([key]), far.find([key])) == ([None], [record_nbytes()], [record_nbytes()])
    assert opened_of(store, key).tier == "disk"


@pytest.mark.parametrize("at", [0, 90, 300, -1])
def test_scrubbing_finds_damage_anywhere_in_every_slower_tier(open_store: OpenStore, tmp_path: Path, at: int) -> None:
    """In the head, the manifest or a part; the sound copy in memory is what is left."""
    key, far = far_tier(1, damaged_at=at)
    store = open_store(MemoryTier(ROOMY), DiskTier(tmp_path, ROOMY), far)
    put(store, 1)
    assert store.drain()
    damage_file(tmp_path, key, at)
    assert (store.scrub(key), store.counters["quarantined"], far.find([key])) == (True, 2, [None])
    assert opened_of(store, key).tier == "memory"


def test_scrubbing_leaves_alone_what_it_can_not_read(open_store: OpenStore) -> None:
    """A tier that is down has no damage that we know of; and a chunk that nobody stored has none at all."""
    key, far = far_tier(1)
    store = open_store(MemoryTier(ROOMY), far)
    far.error = TierUnavailableError("down")
    assert (store.scrub(key), store.scrub(bytes(32))) == (False, False)
    far.error = None
    assert (store.counters["quarantined"], store.lookup([key])[0].status) == (0, Status.READY)


def test_scrubbing_quarantines_a_record_that_tells_of_another_chunk(open_store: OpenStore) -> None:
    """Every digest in it may be right; no reader would ever take it."""
    (key, _, blob), other = make_chunk(1), make_chunk(2)[1]
    inner = MemoryTier(ROOMY)
    inner.put(key, [record_of(key, other, blob)])
    store = open_store(MemoryTier(64), remote(inner))
    assert (store.scrub(key), inner.find([key])) == (True, [None])
