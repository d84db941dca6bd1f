"""The tiered store: first writer, promotion, leases, reasons, and failures that end as a miss."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvstore.core.api import Status
from kvstore.core.errors import CapacityError, ClosedError, ConfigError, CorruptError, IdentityError, TierUnavailableError, UnsupportedError
from kvstore.store.disk import DiskTier
from kvstore.store.memory import MemoryTier
from kvstore.store.results import Miss, Opened
from kvstore.store.tiered import TieredStore
from tests.store.chunks import make_chunk, record_nbytes
from tests.store.faulty import FaultyTier, remote
from tests.store.stores import ROOMY, OpenStore, blob_of, corrupt, put
from tests.store.test_breaker import Clock


def test_a_chunk_comes_back_with_its_meta_and_tier(open_store: OpenStore) -> None:
    """All of it is there at once, in the memory that it was stored in."""
    store = open_store(MemoryTier(ROOMY))
    key, meta, blob = make_chunk(1, 1000)
    stored = store.put(key, meta, blob)
    opened = store.get(key)
    assert isinstance(opened, Opened)
    assert (stored.stored, stored.tier, stored.nbytes, stored.is_durable) == (True, "memory", len(blob), False)
    assert (opened.meta, opened.landing.view, opened.tier) == (meta, blob, "memory")


def test_the_second_put_of_a_key_changes_nothing(open_store: OpenStore) -> None:
    """First writer wins: an equal chunk is as good."""
    store = open_store(MemoryTier(ROOMY))
    key = put(store, 1)
    _, meta, blob = make_chunk(1, 64, recompute_s=9.0)
    assert not store.put(key, meta, blob).stored
    opened = store.get(key)
    assert isinstance(opened, Opened)
    assert opened.meta.recompute_s == 1.0


@pytest.mark.parametrize("damage", ["blob", "meta", "size"])
def test_a_bad_put_raises_and_stores_nothing(open_store: OpenStore, damage: str) -> None:
    """Publish after verify: nobody may read what was not checked."""
    store = open_store(MemoryTier(ROOMY), max_blob_nbytes=2000)
    key, meta, blob = make_chunk(1, 4000 if damage == "size" else 64)
    if damage == "blob":
        blob = blob[:-1] + bytes([blob[-1] ^ 1])
    if damage == "meta":
        meta = make_chunk(2)[1]
    with pytest.raises({"blob": CorruptError, "meta": IdentityError, "size": CapacityError}[damage]):
        store.put(key, meta, blob)
    assert store.get(key) == Miss("never_stored")


def test_a_put_reaches_every_tier(open_store: OpenStore, tmp_path: Path) -> None:
    """Written behind, in the background."""
    store = open_store(MemoryTier(ROOMY), DiskTier(tmp_path, ROOMY), remote(MemoryTier(ROOMY)))
    put(store, 1)
    assert store.drain()
    assert [entry.tiers for entry in store.entries()] == [("memory", "disk", "remote")]


def test_a_restart_serves_what_the_disk_has(open_store: OpenStore, tmp_path: Path) -> None:
    """Closing drains, so everything acknowledged is there."""
    store = open_store(MemoryTier(ROOMY), DiskTier(tmp_path, ROOMY))
    keys = [put(store, seed) for seed in range(10)]
    store.close()
    again = open_store(MemoryTier(ROOMY), DiskTier(tmp_path, ROOMY))
    assert [blob_of(again.get(key)) for key in keys] == [make_chunk(seed)[2] for seed in range(10)]
    assert {entry.meta.source for entry in again.entries()} == {"notes/a.txt"}


def test_a_slow_tier_is_read_once_and_then_memory_answers(open_store: OpenStore, tmp_path: Path) -> None:
    """It is copied up behind the answer, once a reader has had all of it."""
    store = open_store(MemoryTier(ROOMY), DiskTier(tmp_path, ROOMY))
    key = put(store, 1)
    store.close()
    again = open_store(MemoryTier(ROOMY), DiskTier(tmp_path, ROOMY))
    tiers = []
    for _ in range(2):
        opened = again.get(key)
        assert isinstance(opened, Opened)
        assert blob_of(opened) == make_chunk(1)[2]
        tiers.append(opened.tier)
        assert again.drain()
    assert tiers == ["disk", "memory"]


def test_another_servers_record_is_found_in_the_shared_tier(open_store: OpenStore) -> None:
    """Nothing local knows the key; the remote tier is asked, in lookup and in get."""
    shared = MemoryTier(ROOMY)
    first = open_store(MemoryTier(ROOMY), remote(shared))
    key = put(first, 1)
    assert first.drain()
    second = open_store(MemoryTier(ROOMY), remote(shared))
    found = second.lookup([key, bytes(32)])
    assert [(f.status, f.tier, f.reason) for f in found] == [(Status.READY, "remote", ""), (Status.ABSENT, "", "never_stored")]
    assert blob_of(second.get(key)) == make_chunk(1)[2]


def test_a_damaged_copy_is_quarantined_and_the_next_tier_answers(open_store: OpenStore, tmp_path: Path) -> None:
    """Whoever reads it finds out and says so; counted once, and the memory copy is replaced by a good one."""
    memory = MemoryTier(ROOMY)
    store = open_store(memory, DiskTier(tmp_path, ROOMY))
    key = put(store, 1)
    assert store.drain()
    corrupt(memory, key)
    for _ in range(2):
        with pytest.raises(CorruptError) as found:
            blob_of(store.get(key))
    store.quarantine(key, "memory", found.value)
    store.quarantine(key, "memory", found.value)
    opened = store.get(key)
    assert isinstance(opened, Opened)
    assert (opened.tier, blob_of(opened), store.counters["quarantined"]) == ("disk", make_chunk(1)[2], 1)
    assert store.drain()
    assert (memory.find([key]), blob_of(store.get(key))) == ([record_nbytes()], make_chunk(1)[2])


def test_a_chunk_whose_only_copy_is_damaged_is_a_miss_that_says_so(open_store: OpenStore) -> None:
    """And it can be stored again."""
    memory = MemoryTier(ROOMY)
    store = open_store(memory)
    key = put(store, 1)
    store.quarantine(key, "memory", CorruptError("a test said so"))
    assert (store.get(key), store.get(key), store.lookup([key])[0].reason) == (Miss("corrupt"), Miss("corrupt"), "corrupt")
    put(store, 1)
    assert blob_of(store.get(key)) == make_chunk(1)[2]


def test_a_durable_put_is_on_the_durable_tier_when_it_returns(open_store: OpenStore, tmp_path: Path) -> None:
    """Also when the chunk was there already, in memory only."""
    disk = FaultyTier(DiskTier(tmp_path, ROOMY))
    store = open_store(MemoryTier(ROOMY), disk)
    key, meta, blob = make_chunk(1)
    assert store.put(key, meta, blob, durable=True).is_durable
    assert disk.find([key]) != [None]
    disk.gate.clear()
    key, meta, blob = make_chunk(2)
    assert not store.put(key, meta, blob).is_durable
    disk.gate.set()
    assert store.put(key, meta, blob, durable=True).is_durable
    assert disk.find([key]) != [None]


def test_a_durable_put_fails_when_the_durable_tier_does(open_store: OpenStore, tmp_path: Path) -> None:
    """It must not be acknowledged, and nothing is left that looks as if it were."""
    disk = FaultyTier(DiskTier(tmp_path, ROOMY))
    store = open_store(MemoryTier(ROOMY), disk)
    disk.error = TierUnavailableError("broken")
    key, meta, blob = make_chunk(1)
    with pytest.raises(TierUnavailableError):
        store.put(key, meta, blob, durable=True)
    assert store.get(key) == Miss("never_stored")
    disk.error = None


def test_a_durable_put_without_a_durable_tier_says_what_to_add(open_store: OpenStore) -> None:
    """A promise that no tier can keep is refused."""
    key, meta, blob = make_chunk(1)
    with pytest.raises(UnsupportedError, match="add a disk tier"):
        open_store(MemoryTier(ROOMY)).put(key, meta, blob, durable=True)


def test_a_chunk_larger_than_memory_goes_to_disk(open_store: OpenStore, tmp_path: Path) -> None:
    """And one larger than every tier is refused with the numbers."""
    store = open_store(MemoryTier(4096), DiskTier(tmp_path, 100_000))
    key, meta, blob = make_chunk(1, 50_000)
    assert store.put(key, meta, blob).tier == "disk"
    assert blob_of(store.get(key)) == blob
    with pytest.raises(CapacityError, match="the largest has 100000 B"):
        put(store, 2, 200_000)


def test_what_a_full_queue_left_is_written_when_the_store_drains(open_store: OpenStore, tmp_path: Path) -> None:
    """A slow disk must not hold up writers, and an orderly stop must not lose what was acknowledged."""
    disk = FaultyTier(DiskTier(tmp_path, ROOMY))
    store = open_store(MemoryTier(ROOMY), disk, write_queue_bytes=2 * record_nbytes())
    disk.gate.clear()
    keys = [put(store, seed) for seed in range(10)]
    assert store.counters["write_behind_dropped"] >= 7
    disk.gate.set()
    assert store.drain()
    assert None not in disk.find(keys)


def test_what_a_broken_disk_refused_is_written_when_it_works_again(open_store: OpenStore, tmp_path: Path) -> None:
    """A drain that cannot write everything says so."""
    disk = FaultyTier(DiskTier(tmp_path, ROOMY))
    store = open_store(MemoryTier(ROOMY), disk)
    disk.error = TierUnavailableError("broken")
    key = put(store, 1)
    assert not store.drain()
    disk.error = None
    assert store.drain()
    assert disk.find([key]) != [None]


def test_a_leased_chunk_is_not_evicted_until_the_lease_ends(open_store: OpenStore) -> None:
    """A plan may count on what a lookup promised."""
    clock = Clock()
    store = open_store(MemoryTier(4 * 1024), clock=clock, eviction="lru")
    first = put(store, 0)
    assert store.lookup([first], lease_s=5.0)[0].status is Status.READY
    for seed in range(1, 20):
        put(store, seed)
    assert blob_of(store.get(first)) == make_chunk(0)[2]
    clock.now_s = 5.0
    for seed in range(20, 40):
        put(store, seed)
    assert store.get(first) == Miss("evicted")


def test_leases_that_fill_the_store_refuse_a_put(open_store: OpenStore) -> None:
    """Better no new chunk than a broken promise; the lease is cut to the longest allowed."""
    clock = Clock()
    store = open_store(MemoryTier(4 * 1024), clock=clock, max_lease_s=10.0)
    keys = [put(store, seed) for seed in range(4)]
    here = [key for key, found in zip(keys, store.lookup(keys, lease_s=1e9), strict=True) if found.status is Status.READY]
    with pytest.raises(CapacityError):
        put(store, 9)
    assert all(isinstance(store.get(key), Opened) for key in here)
    clock.now_s = 10.0
    put(store, 9)


def test_what_leases_and_a_full_disk_refuse_goes_to_a_remote_tier(open_store: OpenStore, tmp_path: Path) -> None:
    """An ingest is refused only where no tier takes it, and then for what the fastest one said."""
    clock, disk, far = Clock(), FaultyTier(DiskTier(tmp_path, ROOMY)), remote(MemoryTier(ROOMY))
    store = open_store(MemoryTier(4 * 1024), disk, far, clock=clock, max_lease_s=10.0)
    disk.error = CapacityError("no space is left on the device")
    store.lookup([put(store, seed) for seed in range(4)], lease_s=10.0)
    key, meta, blob = make_chunk(9)
    stored = store.put(key, meta, blob)
    assert (stored.stored, stored.tier, stored.is_durable) == (True, "remote", False)
    assert blob_of(store.get(key)) == blob
    far.error = TierUnavailableError("broken")
    with pytest.raises(CapacityError, match="tier memory"):
        put(store, 10)


def test_a_deleted_chunk_is_gone_from_every_tier(open_store: OpenStore, tmp_path: Path) -> None:
    """And stays a miss when a tier that was down comes back with it."""
    disk, far = DiskTier(tmp_path, ROOMY), remote(MemoryTier(ROOMY))
    store = open_store(MemoryTier(ROOMY), disk, far)
    key = put(store, 1)
    assert store.drain()
    far.error = TierUnavailableError("down")
    assert store.delete(key)
    far.error = None
    assert (disk.find([key]), far.find([key])[0] is None) == ([None], False)
    assert (store.get(key), store.lookup([key])[0].reason, store.delete(key)) == (Miss("deleted"), "deleted", True)
    assert far.find([key]) == [None]
    put(store, 1)
    assert isinstance(store.get(key), Opened)


def test_a_chunk_deleted_while_it_is_written_behind_does_not_come_back(open_store: OpenStore, tmp_path: Path) -> None:
    """The write that is under way is taken back."""
    disk = FaultyTier(DiskTier(tmp_path, ROOMY))
    store = open_store(MemoryTier(ROOMY), disk, remote_timeout_s=0.05)
    disk.gate.clear()
    key = put(store, 1)
    deleter = threading.Thread(target=store.delete, args=(key,))
    deleter.start()
    time.sleep(0.1)  # the delete has given up waiting for the write by now
    disk.gate.set()
    deleter.join()
    assert store.drain()
    assert (store.get(key), disk.find([key])) == (Miss("deleted"), [None])


def test_a_chunk_being_written_is_pending_and_a_second_writer_waits(open_store: OpenStore, tmp_path: Path) -> None:
    """Nobody computes or writes the same chunk twice."""
    disk = FaultyTier(DiskTier(tmp_path, ROOMY))
    store = open_store(disk)
    key, meta, blob = make_chunk(1)
    disk.gate.clear()
    with ThreadPoolExecutor(2) as threads:
        puts = [threads.submit(store.put, key, meta, blob) for _ in range(2)]
        while store.lookup([key])[0].status is not Status.PENDING:
            time.sleep(0.001)
        disk.gate.set()
        assert sorted(p.result().stored for p in puts) == [False, True]
    assert store.lookup([key])[0].status is Status.READY


@pytest.mark.parametrize("reason", ["timeout", "unavailable"])
def test_a_remote_tier_that_fails_is_a_miss_inside_the_deadline(open_store: OpenStore, reason: str) -> None:
    """Hung or dead: the caller waits as long as it said and no longer."""
    far = remote(MemoryTier(ROOMY))
    store = open_store(MemoryTier(ROOMY), far)
    if reason == "timeout":
        far.gate.clear()
    else:
        far.error = TierUnavailableError("down")
    start = time.monotonic()
    assert store.get(bytes(32), timeout_s=0.1) == Miss(reason)
    assert store.lookup([bytes(32)], timeout_s=0.1)[0].reason == reason
    assert time.monotonic() - start < 1.0
    far.gate.set()


def test_hung_calls_cannot_pile_up(open_store: OpenStore) -> None:
    """When every thread hangs, further reads fail at once."""
    far = remote(MemoryTier(ROOMY))
    store = open_store(MemoryTier(ROOMY), far, remote_threads=2)
    far.gate.clear()
    outcomes = [store.get(bytes([n] * 32), timeout_s=0.05) for n in range(5)]
    assert outcomes == [Miss("timeout")] * 2 + [Miss("unavailable")] * 3
    far.gate.set()


def test_many_readers_of_one_slow_record_cause_one_read(open_store: OpenStore) -> None:
    """Everybody gets the answer of the first."""
    shared = MemoryTier(ROOMY)
    key = put(first := open_store(MemoryTier(ROOMY), remote(shared)), 1)
    assert first.drain()
    far = remote(shared)
    store = open_store(MemoryTier(ROOMY), far)
    far.gate.clear()
    with ThreadPoolExecutor(8) as threads:
        reads = [threads.submit(store.get, key, 5.0) for _ in range(8)]
        time.sleep(0.1)
        far.gate.set()
        assert {blob_of(read.result()) for read in reads} == {make_chunk(1)[2]}
    assert far.calls == 1


def test_gone_keys_are_remembered_within_bounds(open_store: OpenStore) -> None:
    """The oldest reason is forgotten first."""
    store = open_store(MemoryTier(ROOMY), remembered_misses=3)
    keys = [put(store, seed) for seed in range(4)]
    for key in keys:
        store.delete(key)
    assert [found.reason for found in store.lookup(keys)] == ["never_stored"] + ["deleted"] * 3


def test_entries_list_the_most_recently_used_first(open_store: OpenStore) -> None:
    """What a person wants to see on the first page."""
    store = open_store(MemoryTier(ROOMY))
    keys = [put(store, seed) for seed in range(4)]
    store.get(keys[1])
    assert [entry.storage_key for entry in store.entries()] == [keys[1], keys[3], keys[2], keys[0]]


def test_a_restart_with_less_capacity_evicts_down_to_it(open_store: OpenStore, tmp_path: Path) -> None:
    """Files count from the first moment."""
    store = open_store(MemoryTier(ROOMY), DiskTier(tmp_path, ROOMY))
    for seed in range(10):
        name = put(store, seed, durable=True).hex()
        os.utime(tmp_path / "records" / name[:2] / name, ns=(seed, seed))
    store.close()
    disk = DiskTier(tmp_path, 3 * record_nbytes())
    again = open_store(MemoryTier(ROOMY), disk, eviction="lru")
    assert disk.used_bytes <= 3 * record_nbytes()
    assert [entry.storage_key for entry in again.entries()] == [make_chunk(seed)[0] for seed in (9, 8, 7)]


def test_tier_stats_tell_use_and_health(open_store: OpenStore) -> None:
    """A tier that does not answer is shown as such, and costs the deadline only."""
    far = remote(MemoryTier(ROOMY))
    store = open_store(MemoryTier(ROOMY), far)
    put(store, 1)
    assert store.drain()
    far.error = TierUnavailableError("down")
    memory, distant = store.tier_stats()
    assert (memory.entries, memory.is_available, memory.used_bytes > 0, memory.capacity_bytes) == (1, True, True, ROOMY)
    assert (distant.name, distant.is_available) == ("remote", False)


def test_a_closed_store_says_so(open_store: OpenStore) -> None:
    """Calls that come too late get an error they may try elsewhere."""
    store = open_store(MemoryTier(ROOMY))
    store.close()
    for call in (lambda: store.get(bytes(32)), lambda: store.lookup([bytes(32)]), lambda: put(store, 1), lambda: store.delete(bytes(32))):
        with pytest.raises(ClosedError):
            call()


@pytest.mark.parametrize("tiers", [[], ["a", "a"]])
def test_tiers_that_make_no_store_are_refused(tiers: list[str]) -> None:
    """Counters and reports go by name."""
    with pytest.raises(ConfigError, match="at least one local tier"):
        TieredStore([MemoryTier(1000, name=name) for name in tiers])
