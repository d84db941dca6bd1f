"""Records that are written in place: seen by nobody before the commit, and gone without a trace when they are dropped."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import kvstore.store.tiered as tiered_module
from kvstore.core.api import Status
from kvstore.core.blob import Buffer, Header
from kvstore.core.errors import CapacityError, ClosedError, IdentityError, TierUnavailableError
from kvstore.store.disk import DiskTier
from kvstore.store.memory import MemoryTier
from kvstore.store.record import parse_record
from kvstore.store.results import Draft, Miss, Opened
from kvstore.store.tiered import TieredStore
from tests.store.chunks import make_chunk, record_nbytes
from tests.store.faulty import FaultyTier, remote
from tests.store.reading import read_whole
from tests.store.stores import ROOMY, OpenStore, blob_of, corrupt, put


def write(store: TieredStore, seed: int, nbytes: int = 64) -> Draft:
    """Begin a draft and fill it."""
    key, meta, blob = make_chunk(seed, nbytes)
    draft = store.begin(key, meta, len(blob))
    draft.blob[:] = blob
    return draft


def test_a_draft_is_published_where_it_was_written(open_store: OpenStore) -> None:
    """No copy: what a reader sees is the memory that the writer filled."""
    store = open_store(MemoryTier(ROOMY))
    draft = write(store, 1)
    block = draft.view.obj
    stored = store.commit(draft)
    opened = store.get(draft.storage_key)
    assert isinstance(opened, Opened)
    assert (stored.stored, stored.tier, stored.nbytes, opened.meta) == (True, "memory", len(make_chunk(1)[2]), draft.meta)
    assert opened.landing.view.obj is block
    assert blob_of(opened) == make_chunk(1)[2]


def test_nobody_sees_a_draft_before_it_is_committed(open_store: OpenStore, tmp_path: Path) -> None:
    """However whole it is: nobody has verified it."""
    store = open_store(MemoryTier(ROOMY), DiskTier(tmp_path, ROOMY))
    draft = write(store, 1)
    assert store.drain()
    assert (store.get(draft.storage_key), list(store.entries())) == (Miss("never_stored"), [])
    assert store.lookup([draft.storage_key])[0].status is Status.ABSENT


@pytest.mark.parametrize("is_first", [True, False], ids=["first writer", "second writer"])
def test_nobody_can_write_through_a_draft_once_it_is_committed(open_store: OpenStore, is_first: bool) -> None:
    """Neither through what it was filled by nor through its whole view: readers share that memory."""
    store = open_store(MemoryTier(ROOMY))
    if not is_first:
        store.commit(write(store, 1))
    draft = write(store, 1)
    blob, view = draft.blob, draft.view
    assert store.commit(draft).stored is is_first
    for memory in (blob, view):
        with pytest.raises(ValueError, match="released"):
            memory[0] = 1
    opened = store.get(draft.storage_key)
    assert isinstance(opened, Opened)
    assert blob_of(opened) == make_chunk(1)[2]


def test_a_draft_that_is_dropped_frees_its_memory_and_stores_nothing(open_store: OpenStore, tmp_path: Path) -> None:
    """A client that goes away in the middle of a put costs nothing."""
    memory, disk = MemoryTier(ROOMY), DiskTier(tmp_path, ROOMY)
    store = open_store(memory, disk)
    draft = write(store, 1, 500_000)
    key, used = draft.storage_key, memory.used_bytes
    del draft
    assert (used, memory.used_bytes, disk.used_bytes) == (-(-record_nbytes(500_000) // 64) * 64, 0, 0)
    assert store.get(key) == Miss("never_stored")
    assert store.counters["puts"] == 0


def test_the_first_of_two_drafts_that_is_committed_wins(open_store: OpenStore) -> None:
    """It need not be the one that began first; the other's memory is free again."""
    memory = MemoryTier(ROOMY)
    store = open_store(memory)
    key, meta, blob = make_chunk(1)
    slow = store.begin(key, make_chunk(1, recompute_s=7.0)[1], len(blob))
    slow.blob[:] = blob
    quick = store.begin(key, meta, len(blob))
    quick.blob[:] = blob
    assert store.commit(quick).stored
    assert not store.commit(slow).stored
    del quick, slow
    opened = store.get(key)
    assert isinstance(opened, Opened)
    assert (opened.meta, blob_of(opened), store.counters["puts"], store.counters["put_duplicates"]) == (meta, blob, 1, 1)
    assert memory.used_bytes == -(-record_nbytes() // 64) * 64


def test_a_durable_commit_is_on_disk_before_anybody_sees_it(open_store: OpenStore, tmp_path: Path) -> None:
    """A reader could otherwise use what a crash takes back."""
    memory, seen = MemoryTier(ROOMY), []
    disk = FaultyTier(DiskTier(tmp_path, ROOMY))
    store = open_store(memory, disk)
    draft = write(store, 1)
    disk.pass_on = lambda: seen.append(memory.find([draft.storage_key]))  # type: ignore[method-assign]
    stored = store.commit(draft, durable=True)
    assert (stored.is_durable, stored.tier, seen[0]) == (True, "memory", [None])


def test_a_durable_commit_that_fails_leaves_nothing(open_store: OpenStore, tmp_path: Path) -> None:
    """The writer was not acknowledged, and may try again with the same draft."""
    disk = FaultyTier(DiskTier(tmp_path, ROOMY))
    store = open_store(MemoryTier(ROOMY), disk)
    draft = write(store, 1)
    disk.error = TierUnavailableError("broken")
    with pytest.raises(TierUnavailableError):
        store.commit(draft, durable=True)
    assert store.get(draft.storage_key) == Miss("never_stored")
    disk.error = None
    assert store.commit(draft, durable=True).is_durable


def test_a_draft_that_does_not_fit_into_memory_is_written_to_disk_from_a_pooled_buffer(open_store: OpenStore, tmp_path: Path) -> None:
    """The buffer comes back once the slower tiers have the record, however often that happens."""
    store = open_store(MemoryTier(4096), DiskTier(tmp_path, ROOMY))
    for seed in range(3):
        draft = write(store, seed, 200_000)
        assert (draft.room, store._pool.lent_nbytes) == (None, 256 << 10)
        assert store.commit(draft).tier == "disk"
        del draft
        assert store.drain()
        assert (store._pool.lent_nbytes, store._pool.free_nbytes) == (0, 256 << 10)
    assert blob_of(store.get(make_chunk(2, 200_000)[0])) == make_chunk(2, 200_000)[2]


def test_a_draft_evicts_what_is_worth_less_but_nothing_that_is_leased(open_store: OpenStore) -> None:
    """Where leases keep all of memory the draft lies outside, and its commit says that there is no room."""
    store = open_store(MemoryTier(4 * 1024), eviction="lru")
    keys = [put(store, seed) for seed in range(3)]
    draft = write(store, 9, 3000)
    assert draft.room is not None
    assert store.counters["evicted"] >= 1
    del draft
    here = [key for key in keys if isinstance(store.get(key), Opened)] + [put(store, 7)]
    store.lookup(here, lease_s=30.0)
    draft = write(store, 8, 3000)
    assert draft.room is None
    with pytest.raises(CapacityError):
        store.commit(draft)
    assert all(isinstance(store.get(key), Opened) for key in here)


@pytest.mark.parametrize(("nbytes", "what"), [(5000, "raise max_blob_nbytes"), (3000, "raise its capacity")])
def test_a_draft_that_nothing_could_take_is_refused_before_any_memory_is_taken(open_store: OpenStore, nbytes: int, what: str) -> None:
    """A client's number is checked before it costs anything."""
    memory = MemoryTier(2048)
    store = open_store(memory, max_blob_nbytes=4096)
    with pytest.raises(CapacityError, match=what):
        store.begin(*make_chunk(1)[:2], nbytes)
    assert (memory.used_bytes, store._pool.lent_nbytes) == (0, 0)


def test_a_draft_can_not_be_committed_to_a_closed_store(open_store: OpenStore) -> None:
    """It was not acknowledged, so nothing is lost that was promised."""
    store = open_store(MemoryTier(ROOMY))
    draft = write(store, 1)
    store.close()
    with pytest.raises(ClosedError):
        store.commit(draft)


def test_what_was_put_in_place_reaches_every_tier_whole(open_store: OpenStore, tmp_path: Path) -> None:
    """The head too: a slower tier's copy says itself what it is."""
    disk, far = DiskTier(tmp_path, ROOMY), MemoryTier(ROOMY)
    store = open_store(MemoryTier(ROOMY), disk, remote(far))
    draft = write(store, 1, 300_000)
    store.commit(draft)
    assert store.drain()
    for tier in (disk, far):
        record = read_whole(tier, draft.storage_key)
        assert record is not None
        assert parse_record(draft.storage_key, record).meta == draft.meta


@pytest.mark.parametrize("act", ["delete", "damage"])
def test_a_second_put_whose_record_went_meanwhile_stores_its_own(
    open_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """Between the look and the write a record may be deleted, or turn out to be damaged when it has to become durable."""
    memory, disk = MemoryTier(ROOMY), DiskTier(tmp_path, ROOMY)
    store = open_store(memory, disk, write_queue_bytes=1)  # nothing is written behind
    key, meta, blob = make_chunk(1)
    store.put(key, meta, blob)
    verify = tiered_module.verify_blob

    def meanwhile(data: Buffer) -> Header:
        if act == "delete":
            store.delete(key)
        else:
            corrupt(memory, key)
        return verify(data)

    monkeypatch.setattr(tiered_module, "verify_blob", meanwhile)
    assert store.put(key, meta, blob, durable=True).is_durable
    assert (blob_of(store.get(key)), store.counters["quarantined"]) == (blob, int(act == "damage"))
    record = read_whole(disk, key)
    assert record is not None
    assert parse_record(key, record).meta == meta


def test_a_second_put_with_the_meta_of_another_chunk_is_refused(open_store: OpenStore) -> None:
    """The first one's being there is no reason to look less closely."""
    store = open_store(MemoryTier(ROOMY))
    put(store, 1)
    key, _, blob = make_chunk(1)
    with pytest.raises(IdentityError):
        store.put(key, make_chunk(2)[1], blob)


def test_blocks_of_drafts_and_of_records_never_overlap(open_store: OpenStore) -> None:
    """Begun, committed and dropped in a seeded order, while records are evicted for them: all read as they were written."""
    store, rng = open_store(MemoryTier(1 << 16), eviction="lru"), random.Random(5)
    chunks = [make_chunk(seed, 700 * seed) for seed in range(20)]
    drafts: dict[int, Draft] = {}
    for _ in range(400):
        if rng.random() < 0.5 and len(drafts) < 4:
            seed = rng.randrange(len(chunks))
            drafts[seed] = write(store, seed, 700 * seed)
        elif drafts:
            draft = drafts.pop(rng.choice(sorted(drafts)))
            if rng.random() < 0.7:
                store.commit(draft)
            del draft
        assert all(draft.blob == chunks[seed][2] for seed, draft in drafts.items())
        assert all(
            outcome == Miss("never_stored") or outcome == Miss("evicted") or blob_of(outcome) == blob
            for outcome, blob in ((store.get(key), blob) for key, _, blob in chunks)
        )
    assert store.counters["evicted"] > 100
