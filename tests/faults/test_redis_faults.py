"""A store over a real Redis that is down, paused, evicting or flushed: each read is a miss within its deadline, or the right answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from kvstore.core.errors import CorruptError
from kvstore.core.reading import land_all
from kvstore.store.breaker import BreakerTier
from kvstore.store.memory import MemoryTier
from kvstore.store.redis import RedisTier
from kvstore.store.redis_dial import RedisSettings
from kvstore.store.results import Miss, Opened, StoreSettings
from kvstore.store.tiered import TieredStore
from tests.redis_server import RedisServer
from tests.store.chunks import make_chunk

DEADLINE_S = 0.3
SLACK_S = 0.7  # for a busy machine
N_CHUNKS = 8


def open_store(server: RedisServer) -> TieredStore:
    """Return a store whose memory is empty, over a Redis behind a breaker."""
    redis = BreakerTier(RedisTier(RedisSettings(server.url, timeout_s=DEADLINE_S)), cool_down_s=60.0)
    return TieredStore([MemoryTier(8 << 20), redis], StoreSettings(remote_timeout_s=DEADLINE_S))


def read(store: TieredStore, key: bytes) -> bytes | None:
    """Return a verified blob, or None when there is none, or a piece of it was evicted."""
    opened = store.get(key, timeout_s=10.0)
    if isinstance(opened, Miss):
        return None
    try:
        land_all(opened.landing)
    except CorruptError:
        return None
    return bytes(opened.landing.view)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis that holds a few chunks which no memory has."""
    with RedisServer() as running:
        writer = open_store(running)
        for seed in range(N_CHUNKS):
            key, meta, blob = make_chunk(seed, 1000)
            writer.put(key, meta, blob)
        assert writer.drain()
        writer.close()
        yield running


@pytest.mark.parametrize("fault", [RedisServer.stop, RedisServer.pause], ids=["down", "paused"])
def test_a_redis_that_does_not_answer_costs_one_deadline_and_then_nothing(
    server: RedisServer, fault: Callable[[RedisServer], None]
) -> None:
    """The first read waits its deadline at most; the breaker spares all that follow, and memory goes on working."""
    store = open_store(server)
    fault(server)
    start = time.monotonic()
    first = store.get(make_chunk(0)[0])
    waited_s = time.monotonic() - start
    time.sleep(DEADLINE_S)  # the call that the first read gave up on ends within its own deadline
    start = time.monotonic()
    others = [store.get(make_chunk(seed, 1000)[0]) for seed in range(1, N_CHUNKS)]
    spared_s = time.monotonic() - start
    key, meta, blob = make_chunk(99)
    assert store.put(key, meta, blob).stored
    assert isinstance(store.get(key), Opened)
    assert isinstance(first, Miss)
    assert first.reason in ("timeout", "unavailable")
    assert others == [Miss("unavailable")] * (N_CHUNKS - 1)
    assert waited_s < DEADLINE_S + SLACK_S
    assert spared_s < DEADLINE_S
    server.resume() if fault is RedisServer.pause else None
    store.close(timeout_s=1.0)


def test_a_flushed_redis_is_a_miss_and_takes_new_chunks(server: RedisServer) -> None:
    """A lookup before the flush is no promise; the chunk can be stored again."""
    store = open_store(server)
    key, meta, blob = make_chunk(0, 1000)
    assert store.lookup([key])[0].tier == "redis"
    server.command("FLUSHALL")
    assert store.get(key) == Miss("never_stored")
    store.put(key, meta, blob)
    assert store.drain()
    assert open_store(server).lookup([key])[0].tier == "redis"
    store.close()


def test_an_evicting_redis_gives_the_right_answer_or_a_miss() -> None:
    """Far more is written than fits; what Redis dropped is computed again, and nothing is ever half there."""
    with RedisServer("--maxmemory", "12mb", "--maxmemory-policy", "allkeys-random") as small:
        chunks = [make_chunk(seed, 1_500_000) for seed in range(16)]
        writer = open_store(small)
        for chunk in chunks:
            writer.put(*chunk)
            writer.drain()
        writer.close()
        reader = open_store(small)
        outcomes = [read(reader, key) for key, _, _ in chunks]
        reader.close()
    assert outcomes.count(None) > 0
    assert all(outcome in (None, chunk[2]) for outcome, chunk in zip(outcomes, chunks, strict=True))
