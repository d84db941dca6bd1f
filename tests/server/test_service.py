"""What the store service does besides the contract of every transport: places, stale chunks, foreign records, closing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.core.api import Hit, PutNote, Scope, Status
from kvstore.core.blob import parse_header
from kvstore.core.errors import ClosedError, KVError
from kvstore.core.key import storage_key, tenant_secret
from kvstore.server.config import StoreConfig, load_config
from kvstore.server.opening import open_store
from kvstore.server.recent import RecentKeys
from kvstore.server.service import StoreService
from kvstore.store.epochs import Epochs
from kvstore.store.memory import MemoryTier
from kvstore.store.record import RecordMeta
from kvstore.store.tiered import TieredStore
from tests.redis_server import RedisServer
from tests.server.chunks import MASTER_SECRET, key, make_blob, make_service
from tests.server.slow import make_slow_service
from tests.store.chunks import record_of


@pytest.fixture
def service() -> Iterator[StoreService]:
    """A service over memory."""
    made = make_service()
    yield made
    made.close()


def config_in(tmp_path: Path, **flags: object) -> StoreConfig:
    """Return a small configuration with memory and disk."""
    sizes = {"tiers.memory.capacity": "4MiB", "tiers.disk.capacity": "64MiB", "tiers.disk.fsync": "always"}
    return load_config(None, {}, {"data_dir": str(tmp_path), **sizes, **flags})


def test_a_chunk_lies_where_only_its_tenants_secret_and_epochs_point(service: StoreService) -> None:
    """The storage key is the HMAC that the key module defines."""
    blob = make_blob()
    service.bind("alpha").put(blob, PutNote())
    (stored,) = service.store.entries()
    assert stored.storage_key == storage_key(tenant_secret(MASTER_SECRET, "alpha"), 0, 0, key(blob))


def test_a_stale_chunk_is_removed_when_it_is_met(service: StoreService) -> None:
    """Its bytes go to chunks that can be had."""
    blob = make_blob()
    api = service.bind("alpha")
    api.put(blob, PutNote(source="book"))
    api.invalidate(Scope("source", "book"))
    assert len(list(service.store.entries())) == 1
    api.lookup([key(blob)])
    assert list(service.store.entries()) == []


def test_a_record_that_holds_another_chunk_is_a_miss_and_removed() -> None:
    """Even if every digest in it is right."""
    asked, held = make_blob(0), make_blob(1)
    place = storage_key(tenant_secret(MASTER_SECRET, "alpha"), 0, 0, key(asked))
    tier = MemoryTier(1 << 20)
    tier.put(place, [record_of(place, RecordMeta.of(parse_header(held).manifest), held)])
    service = StoreService(TieredStore([tier]), Epochs(), MASTER_SECRET, 1 << 20)
    api = service.bind("alpha")
    assert api.get(key(asked)) is None
    assert api.stats().counters["quarantined"] == 1
    assert api.lookup([key(asked)])[0].status is Status.ABSENT
    service.close()


def test_a_record_that_holds_another_chunk_is_not_received(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a slow tier has of it stays there."""
    asked, held = make_blob(0), make_blob(1, part_nbytes=1_000_000)
    service, gate = make_slow_service()
    api = service.bind("alpha")
    api.put(held, PutNote())
    monkeypatch.setattr(api, "_place", lambda _: storage_key(tenant_secret(MASTER_SECRET, "alpha"), 0, 0, key(held)))
    gate.release(1 << 20)
    assert isinstance(api.read(key(asked)), Hit)
    assert gate.n_ended == 1
    service.close()


def test_an_unexpected_failure_leaves_as_our_error(service: StoreService, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that embeds the store catches one class."""
    api = service.bind("alpha")
    monkeypatch.setattr(service.store, "get", lambda *_: 1 / 0)
    with pytest.raises(KVError, match="get"):
        api.get(key(make_blob()))


def test_a_closed_service_refuses_calls(service: StoreService) -> None:
    """New views and old ones."""
    api = service.bind("alpha")
    service.close()
    with pytest.raises(ClosedError):
        api.get(key(make_blob()))
    with pytest.raises(ClosedError):
        service.bind("alpha")


def test_an_opened_store_finds_its_chunks_and_invalidations_again(tmp_path: Path) -> None:
    """Everything that was acknowledged before an orderly close is there after it."""
    blobs = [make_blob(seed) for seed in range(3)]
    first = open_store(config_in(tmp_path))
    for blob in blobs:
        first.bind("alpha").put(blob, PutNote(source=f"book-{key(blob)}"))
    first.bind("alpha").invalidate(Scope("source", f"book-{key(blobs[0])}"))
    first.close()
    second = open_store(config_in(tmp_path))
    hits = second.bind("alpha").lookup([key(blob) for blob in blobs])
    assert [(hit.status, hit.tier, hit.reason) for hit in hits] == [
        (Status.ABSENT, "", "epoch"),
        (Status.READY, "disk", ""),
        (Status.READY, "disk", ""),
    ]
    second.close()


def test_a_durable_put_says_that_it_is(tmp_path: Path) -> None:
    """A receipt is a promise."""
    service = open_store(config_in(tmp_path))
    assert service.bind("alpha").put(make_blob(), PutNote(durable=True)).is_durable
    service.close()


def test_a_store_without_disk_keeps_nothing(tmp_path: Path) -> None:
    """Capacity 0 turns the tier off."""
    service = open_store(config_in(tmp_path, **{"tiers.disk.capacity": 0}))
    assert [tier.name for tier in service.bind("alpha").stats().tiers] == ["memory"]
    service.close()


def test_an_unknown_eviction_policy_is_refused(tmp_path: Path) -> None:
    """With the known ones."""
    with pytest.raises(KVError, match="lru"):
        open_store(config_in(tmp_path, **{"tiers.memory.eviction": "random"}))


def test_recent_keys_forget_the_oldest() -> None:
    """Their number is bounded."""
    recent = RecentKeys(2)
    for number in range(3):
        recent.add(bytes([number]))
    recent.discard(b"\x02")
    assert [bytes([number]) in recent for number in range(3)] == [False, True, False]


def test_servers_that_share_redis_and_a_secret_share_chunks(tmp_path: Path) -> None:
    """A second machine starts with nothing and finds what the first one stored."""
    blob = make_blob()
    with RedisServer() as redis:
        shared = {"tiers.redis.url": redis.url, "tiers.redis.timeout_s": 5, "auth.secret_file": str(tmp_path / "secret")}
        first, second = (open_store(config_in(tmp_path / name, **shared)) for name in ("one", "two"))
        first.bind("alpha").put(blob, PutNote())
        assert first.store.drain()
        reader = second.bind("alpha").get(key(blob))
        assert reader is not None
        parts = reader.manifest.parts
        assert [reader.part(index) for index in range(len(parts))] == [blob[part.offset : part.offset + part.nbytes] for part in parts]
        assert (reader.tier, reader.nbytes) == ("redis", len(blob))
        assert second.bind("beta").get(key(blob)) is None
        first.close()
        second.close()


def test_a_source_that_is_invalidated_is_a_miss_in_redis_too(tmp_path: Path) -> None:
    """The record tells its source when it is read."""
    blob = make_blob()
    with RedisServer() as redis:
        shared = {"tiers.redis.url": redis.url, "tiers.redis.timeout_s": 5, "auth.secret_file": str(tmp_path / "secret")}
        first, second = (open_store(config_in(tmp_path / name, **shared)) for name in ("one", "two"))
        first.bind("alpha").put(blob, PutNote(source="book"))
        assert first.store.drain()
        second.bind("alpha").invalidate(Scope("source", "book"))
        assert second.bind("alpha").get(key(blob)) is None
        assert second.bind("alpha").lookup([key(blob)])[0].reason == "epoch"
        first.close()
        second.close()


def test_a_redis_that_is_not_there_is_a_miss_and_not_a_failure(tmp_path: Path) -> None:
    """A store goes on with the tiers it has."""
    service = open_store(config_in(tmp_path, **{"tiers.redis.url": "redis://127.0.0.1:9/0", "tiers.redis.timeout_s": 0.2}))
    api, blob = service.bind("alpha"), make_blob()
    assert api.get(key(make_blob(5))) is None
    api.put(blob, PutNote())
    assert api.get(key(blob)) is not None
    assert [tier.is_available for tier in api.stats().tiers] == [True, True, False]
    service.close()
