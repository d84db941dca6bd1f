"""The Redis and disk tiers by themselves, in this process, as a store process uses them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from kvstore.core.allocator import keep_large_blocks
from kvstore.core.blob import Buffer, parse_header
from kvstore.core.errors import KVError
from kvstore.core.pool import BufferPool
from kvstore.core.reading import land_all
from kvstore.store.disk import DiskTier
from kvstore.store.record import RecordMeta, check_describes, land_head, record_head
from kvstore.store.redis.settings import RedisSettings
from kvstore.store.redis.tier import RedisTier
from kvstore.store.tier import Tier
from kvworker.bench.transport_lanes import make_chunk
from kvworker.bench.transport_processes import Server
from kvworker.bench.transport_timing import Operation

_POOL_NBYTES = 256 << 20  # what a store gives to its slower tiers by default
_TIMEOUT_S = 20.0
_KEPT, _FRESH = (hashlib.sha256(name).digest() for name in (b"kept", b"fresh"))


class Tiers:
    """Implements `Subject`: get and put of whole records. The disk's stay in the page cache and are not synced."""

    def __init__(self, folder: Path, capacity_nbytes: int, redis: Server | None) -> None:
        pool = BufferPool(_POOL_NBYTES)
        self._tiers: dict[str, Tier] = {"disk": DiskTier(folder / "disk", capacity_nbytes, fsync="never", pool=pool)}
        self._pids = {"disk": (), "redis": (redis.pid,)} if redis else {"disk": ()}
        if redis:
            self._tiers["redis"] = RedisTier(RedisSettings(f"unix://{redis.address}?db=0", _TIMEOUT_S), pool=pool)

    def prepare(self, nbytes: int, n_chunks: int) -> Mapping[str, Operation]:
        """Replace the record that is kept for reading."""
        operations = {}
        for name, tier in self._tiers.items():
            tier.delete(_KEPT)
            tier.put(_KEPT, make_record(_KEPT, nbytes))
            fresh = make_record(_FRESH, nbytes)
            operations[f"{name}.get"] = Operation(partial(_get, tier, _KEPT), self._pids[name])
            operations[f"{name}.put"] = Operation(partial(tier.put, _FRESH, fresh), self._pids[name], partial(tier.delete, _FRESH))
        return operations

    def close(self) -> None:
        """Close the tiers."""
        for tier in self._tiers.values():
            tier.close()


@contextmanager
def open_tiers(folder: Path, capacity_nbytes: int, redis: Server | None) -> Iterator[Tiers]:
    """Open the tiers with the allocator set as our processes set it."""
    keep_large_blocks()
    tiers = Tiers(folder, capacity_nbytes, redis)
    try:
        yield tiers
    finally:
        tiers.close()


def make_record(storage_key: bytes, nbytes: int) -> Sequence[Buffer]:
    """Return the pieces of a record whose chunk's parts hold `nbytes`."""
    blob = make_chunk(nbytes, (0,)).blob
    return record_head(storage_key, RecordMeta.of(parse_header(blob).manifest), len(blob)), blob


def _get(tier: Tier, key: bytes) -> None:
    """Read a record and verify every byte of it."""
    landing = tier.get(key)
    if landing is None:
        raise KVError(f"tier {tier.info.name} does not have the record that was put")
    head = land_head(landing, key)
    check_describes(head.meta, land_all(landing.tail(head.blob_offset)).manifest)
    landing.close()
