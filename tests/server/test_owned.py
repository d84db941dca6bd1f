"""A list shows a tenant's own chunks, and costs what it shows, however many others the store has."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.core.api import PutNote, Scope
from kvstore.core.errors import QuotaError
from kvstore.core.key import ChunkKey
from kvstore.server.config import QuotaConfig
from kvstore.server.service import BoundStore, StoreService
from kvstore.store.disk import DiskTier
from kvstore.store.epochs import Epochs
from kvstore.store.memory import MemoryTier
from kvstore.store.tiered import TieredStore
from tests.server.chunks import MASTER_SECRET, key, make_blob
from tests.server.serving import dialing, serving

N_TENANTS = 50


def blob(seed: int) -> bytearray:
    """Return a small chunk."""
    return make_blob(seed, n_parts=1, part_nbytes=64)


@pytest.fixture
def service() -> Iterator[StoreService]:
    """A store over memory."""
    service = StoreService(TieredStore([MemoryTier(64 << 20)]), Epochs(), MASTER_SECRET, 8 << 20)
    yield service
    service.close()


def listed(store: BoundStore) -> list[ChunkKey]:
    """Return the keys that a list shows, in its order."""
    return [entry.key for entry in store.entries()]


def keys(*seeds: int) -> list[ChunkKey]:
    """Return the keys of chunks."""
    return [key(blob(seed)) for seed in seeds]


def fill(service: StoreService, n_each: int = 4) -> None:
    """Store the same chunks for every tenant, one tenant after the other."""
    for tenant in range(N_TENANTS):
        for seed in range(n_each):
            service.bind(f"tenant-{tenant}").put(blob(seed), PutNote())


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Storage keys of the records that lists look at, as they do."""
    seen: list[bytes] = []
    entries = TieredStore.entries

    def noting(store: TieredStore, *storage_keys: object) -> Iterator[object]:
        for stored in entries(store, *storage_keys):  # type: ignore[arg-type]
            seen.append(stored.storage_key)
            yield stored

    monkeypatch.setattr(TieredStore, "entries", noting)
    return seen


def test_every_tenant_sees_its_own_chunks_newest_first(service: StoreService) -> None:
    """And nobody else's, of which there are 49 times as many."""
    fill(service)
    for tenant in range(N_TENANTS):
        assert listed(service.bind(f"tenant-{tenant}")) == keys(3, 2, 1, 0)


def test_a_list_looks_at_the_tenants_own_records_only_once_they_are_known(service: StoreService, looked_at: list[bytes]) -> None:
    """Whatever others store meanwhile."""
    fill(service)
    store = service.bind("tenant-7")
    assert store.n_to_list == N_TENANTS * 4
    listed(store)
    fill(service, n_each=8)
    looked_at.clear()
    assert store.n_to_list == 8
    assert len(listed(store)) == len(looked_at) == 8


def test_a_list_of_some_looks_at_no_more(service: StoreService, looked_at: list[bytes]) -> None:
    """It ends where its limit does."""
    fill(service)
    store = service.bind("tenant-7")
    listed(store)
    looked_at.clear()
    assert [entry.key for entry in store.entries(limit=2)] == keys(3, 2)
    assert len(looked_at) <= 3


@pytest.mark.parametrize("seed", range(4))
def test_what_is_known_stays_true_under_puts_reads_deletes_evictions_and_invalidations(seed: int) -> None:
    """A store that has just been opened over the same records, and has to look at all of them, shows the same."""
    rng, epochs = random.Random(seed), Epochs()
    tiered = TieredStore([MemoryTier(40 << 10)])  # some sixty of them: the oldest leave
    service = StoreService(tiered, epochs, MASTER_SECRET, 8 << 20)
    for _ in range(300):
        store, number = service.bind(f"tenant-{rng.randrange(3)}"), rng.randrange(60)
        kind = rng.choice(["put", "put", "put", "get", "delete", "source", "tenant"] if rng.random() < 0.1 else ["put", "get", "list"])
        if kind == "put":
            store.put(blob(number), PutNote(source=f"{number % 5}.txt"))
        elif kind == "get" and (reader := store.get(key(blob(number)))):
            reader.close()
        elif kind == "delete":
            store.delete(keys(number))
        elif kind in ("source", "tenant"):
            store.invalidate(Scope(kind, f"{number % 5}.txt" if kind == "source" else ""))
        else:
            listed(store)
    fresh = StoreService(tiered, epochs, MASTER_SECRET, 8 << 20)
    for tenant in range(3):
        assert set(listed(service.bind(f"tenant-{tenant}"))) == set(listed(fresh.bind(f"tenant-{tenant}")))
    service.close()


def test_what_was_stored_before_a_restart_is_listed(tmp_path: Path) -> None:
    """Nobody noted it: the first list finds it."""
    for seeds in ((0, 1), ()):
        store = TieredStore([DiskTier(tmp_path, 64 << 20, fsync="never")])
        service = StoreService(store, Epochs(), MASTER_SECRET, 8 << 20)
        for seed in seeds:
            service.bind("alpha").put(blob(seed), PutNote())
        assert set(listed(service.bind("alpha"))) == set(keys(0, 1))
        assert listed(service.bind("beta")) == []
        service.close()


def test_keys_of_what_is_gone_are_forgotten(service: StoreService, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant that stores and deletes for a year takes no more memory than what it has."""
    monkeypatch.setattr("kvstore.server.owned._FEW", 8)
    store = service.bind("alpha")
    listed(store)
    for seed in range(200):
        store.put(blob(seed), PutNote())
        store.delete(keys(seed))
    assert store.n_to_list <= 10


def test_a_list_is_paid_for_by_what_is_looked_at() -> None:
    """The first one by the whole store, later ones by what the tenant has: 300 records are two requests."""
    quotas = QuotaConfig(requests_per_s=0.001, burst=4)
    tiered = TieredStore([MemoryTier(64 << 20)])
    service = StoreService(tiered, Epochs(), MASTER_SECRET, 8 << 20, quotas=quotas)
    for seed in range(300):
        service.bind("beta").put(blob(seed), PutNote())
    with serving(service) as server, dialing(server) as alpha:
        for _ in range(3):
            assert list(alpha.entries()) == []
        with pytest.raises(QuotaError, match="tenant alpha may make"):
            list(alpha.entries())
