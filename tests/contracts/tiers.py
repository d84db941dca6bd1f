"""Every kind of tier, opened empty, for the contract that all of them keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvstore.core.pool import BufferPool
from kvstore.store.breaker import BreakerTier
from kvstore.store.counted import CountedTier
from kvstore.store.counters import Counters
from kvstore.store.disk import DiskTier
from kvstore.store.encrypted import EncryptedTier
from kvstore.store.key_ring import KeyRing
from kvstore.store.memory import MemoryTier
from kvstore.store.redis.settings import RedisSettings
from kvstore.store.redis.tier import RedisTier
from kvstore.store.tier import Tier
from tests.redis_server import RedisServer
from tests.store.faulty import FaultyTier

CAPACITY_BYTES = 8 << 20


@dataclass(frozen=True)
class Place:
    """What a tier may need: an empty directory, and a Redis that was flushed."""

    directory: Path
    redis: RedisServer


def _redis(url: str) -> Tier:
    return RedisTier(RedisSettings(url, timeout_s=5.0))


def _encrypted(tier: Tier) -> Tier:
    ring = KeyRing({"only": bytes(32)}, "only")
    return EncryptedTier(tier, lambda: ring, BufferPool(0))


BOUNDED: dict[str, Callable[[Place], Tier]] = {
    "memory": lambda place: MemoryTier(CAPACITY_BYTES),
    "disk": lambda place: DiskTier(place.directory, CAPACITY_BYTES),
    "disk without fsync": lambda place: DiskTier(place.directory, CAPACITY_BYTES, fsync="never"),
    "disk past the page cache": lambda place: DiskTier(place.directory, CAPACITY_BYTES, direct="on"),
    "disk through the page cache": lambda place: DiskTier(place.directory, CAPACITY_BYTES, direct="off"),
    "breaker": lambda place: BreakerTier(MemoryTier(CAPACITY_BYTES)),
    "counted": lambda place: CountedTier(MemoryTier(CAPACITY_BYTES), Counters()),
    "encrypted disk": lambda place: _encrypted(DiskTier(place.directory, CAPACITY_BYTES)),
    "faulty": lambda place: FaultyTier(MemoryTier(CAPACITY_BYTES)),
}
TIERS: dict[str, Callable[[Place], Tier]] = {
    **BOUNDED,
    "encrypted redis": lambda place: _encrypted(_redis(place.redis.unix_url)),
    "redis over TCP": lambda place: _redis(place.redis.url),
    "redis over a Unix socket": lambda place: _redis(place.redis.unix_url),
}
