"""From a configuration to a running store: in this process, or behind a gRPC server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from kvstore.core.pool import BufferPool
from kvstore.core.units import format_nbytes
from kvstore.server.access.audit import open_audit
from kvstore.server.access.auth import TokenAuthenticator
from kvstore.server.config import EncryptionConfig, StoreConfig
from kvstore.server.grpc_server import RpcServer
from kvstore.server.service import StoreService
from kvstore.server.store_servicer import register_store
from kvstore.store.breaker import BreakerTier
from kvstore.store.changing import Changing
from kvstore.store.disk import DiskTier
from kvstore.store.encrypted import EncryptedTier
from kvstore.store.epochs import Epochs
from kvstore.store.key_ring import read_key_ring
from kvstore.store.memory import MemoryTier
from kvstore.store.redis.plaintext import warn_of_plaintext
from kvstore.store.redis.settings import RedisSettings
from kvstore.store.redis.tier import RedisTier
from kvstore.store.results import StoreSettings
from kvstore.store.secret import load_secret
from kvstore.store.store_name import load_store_name
from kvstore.store.tier import Tier
from kvstore.store.tiered import TieredStore
from kvstore.store.traced import TracedTier


def open_store(config: StoreConfig, is_shared: bool = False) -> StoreService:
    """Open the tiers and return the service; close it to flush what was acknowledged.

    Embedded use: `open_store(config).bind("default")` is a StoreAPI. With `is_shared` the memory tier can be read in place by other
    processes. Raises ConfigError, or TierUnavailableError when another process has the directory.
    """
    settings = StoreSettings(
        eviction=config.tiers.memory.eviction,
        write_queue_bytes=config.tiers.write_queue,
        remote_timeout_s=config.tiers.redis.timeout_s,
        max_lease_s=config.tiers.max_lease_s,
        max_blob_nbytes=config.server.max_blob_bytes,
    )
    secret = load_secret(config.secret_path)
    epochs = Epochs(config.epochs_path)
    memory = MemoryTier(config.tiers.memory.capacity, is_shared=is_shared)
    store = TieredStore([memory, *_open_slower_tiers(config)], settings)
    name = load_store_name(config.name_path)
    return StoreService(store, epochs, secret, config.server.max_blob_bytes, memory.shared, name, config.quotas)


def serve_store(config: StoreConfig, service: StoreService, authenticate: TokenAuthenticator) -> RpcServer:
    """Serve the store on `config.server.address` and return the running server; drain it before closing the service."""
    if service.shared:
        service.shared.touch()
    server = RpcServer(config.server, open_audit(config.auth))
    server.start([register_store(service, authenticate, server)])
    return server


def describe(config: StoreConfig) -> str:
    """Say in one line which tiers a store has."""
    tiers = config.tiers
    parts = [f"memory {format_nbytes(tiers.memory.capacity)}"]
    parts += [f"disk {format_nbytes(tiers.disk.capacity)} in {config.chunks_path}"] if tiers.disk.capacity else []
    return ", ".join(parts + (["redis"] if tiers.redis.url else []))


def _open_slower_tiers(config: StoreConfig) -> Iterator[Tier]:
    """Open the tiers behind memory, fast to slow; they read into memory that they share."""
    disk, redis = config.tiers.disk, config.tiers.redis
    pool = BufferPool(config.tiers.write_queue)
    encrypted = _encryption(config.encryption, pool)
    if disk.capacity:
        yield encrypted(DiskTier(config.chunks_path, disk.capacity, disk.fsync, direct=disk.direct, pool=pool))
    if redis.url:
        warn_of_plaintext("tiers.redis.url", redis.url)
        # A record is its blob and a head of at most 64 KiB; encrypted, 16 B more for each 256 KiB.
        tier = RedisTier(RedisSettings(**vars(redis)), config.server.max_blob_bytes + (1 << 17), pool)
        yield encrypted(TracedTier(tier if redis.cluster == "on" else BreakerTier(tier)))


def _encryption(config: EncryptionConfig, pool: BufferPool) -> Callable[[Tier], Tier]:
    """Return what encrypts a tier, or leaves it as it is."""
    if not config.keys_file:
        return lambda tier: tier
    file = Path(config.keys_file).expanduser()
    ring = Changing((file,), lambda: read_key_ring(file))
    return lambda tier: EncryptedTier(tier, ring.current, pool)
