"""One flipped bit in what a tier stores is never an answer: more than 10,000 seeded flips in memory, on disk and in Redis."""

from __future__ import annotations

import logging
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from kvstore.store.disk import DiskTier
from kvstore.store.memory import MemoryTier
from kvstore.store.record import Record, record_pieces
from kvstore.store.redis import RedisTier, connect
from kvstore.store.results import Miss
from kvstore.store.tiered import TieredStore
from tests.redis_server import RedisServer
from tests.store.chunks import make_chunk

N_FLIPS = 3400  # per tier
CHUNKS = [make_chunk(seed, 16 * seed) for seed in range(12)]


class Vault(ABC):
    """A store over one tier whose stored bits a test can flip behind its back."""

    store: TieredStore

    @abstractmethod
    def nbytes(self, key: bytes) -> int:
        """Bytes that the tier stores for a record."""

    @abstractmethod
    def flip(self, key: bytes, bit: int) -> None:
        """Flip one stored bit."""


class MemoryVault(Vault):
    """Flips bits in the arena."""

    def __init__(self) -> None:
        self.tier = MemoryTier(1 << 20)
        self.store = TieredStore([self.tier])

    def nbytes(self, key: bytes) -> int:
        return self.tier.find([key])[0] or 0

    def flip(self, key: bytes, bit: int) -> None:
        self.tier._blocks[key][bit // 8] ^= 1 << bit % 8


class DiskVault(Vault):
    """Flips bits in the file."""

    def __init__(self, directory: Path) -> None:
        self.records = directory / "records"
        self.store = TieredStore([DiskTier(directory, 1 << 20, fsync="never")])

    def nbytes(self, key: bytes) -> int:
        return (self.records / key.hex()[:2] / key.hex()).stat().st_size

    def flip(self, key: bytes, bit: int) -> None:
        descriptor = os.open(self.records / key.hex()[:2] / key.hex(), os.O_RDWR)
        byte = os.pread(descriptor, 1, bit // 8)[0]
        os.pwrite(descriptor, bytes([byte ^ 1 << bit % 8]), bit // 8)
        os.close(descriptor)


class RedisVault(Vault):
    """Flips bits in the index and in the piece; the memory tier in front is too small for any record."""

    INDEX_NBYTES = 40

    def __init__(self, server: RedisServer) -> None:
        self.tier = RedisTier(lambda: connect(server.unix_url, timeout_s=5.0))
        self.client = redis.Redis.from_url(server.unix_url)
        self.store = TieredStore([MemoryTier(64), self.tier])

    def nbytes(self, key: bytes) -> int:
        return self.INDEX_NBYTES + (self.tier.find([key])[0] or 0)

    def flip(self, key: bytes, bit: int) -> None:
        name, bit = ("i", bit) if bit < 8 * self.INDEX_NBYTES else ("0", bit - 8 * self.INDEX_NBYTES)
        at = bit // 8 * 8 + 7 - bit % 8  # Redis counts the bits of a byte from the highest
        name = f"larder:1:{key.hex()}:{name}"
        assert self.client.setbit(name, at, 1 - self.client.getbit(name, at)) in (0, 1)


@pytest.fixture(params=["memory", "disk", "redis"])
def vault(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Vault]:
    """A store over each kind of tier."""
    if request.param == "redis":
        with RedisServer() as server:
            opened = RedisVault(server)
            yield opened
            opened.store.close()
            opened.client.close()
    else:
        local = MemoryVault() if request.param == "memory" else DiskVault(tmp_path)
        yield local
        local.store.close()


def store_chunk(vault: Vault, number: int) -> bytes:
    """Put a chunk, or put it again; return its storage key."""
    key, meta, blob = CHUNKS[number]
    if isinstance(vault, RedisVault):
        vault.tier.put(key, record_pieces(key, meta, blob))
    else:
        assert vault.store.put(key, meta, blob).stored
    return key


def test_no_flipped_bit_is_ever_an_answer(vault: Vault, caplog: pytest.LogCaptureFixture) -> None:
    """Every flip is a miss, quarantined and counted; every chunk that was not touched is still right."""
    caplog.set_level(logging.CRITICAL, logger="kvstore.store.tiered")
    rng = random.Random(20_26)
    keys = [store_chunk(vault, number) for number in range(len(CHUNKS))]
    for _ in range(N_FLIPS):
        number = rng.randrange(len(CHUNKS))
        vault.flip(keys[number], rng.randrange(8 * vault.nbytes(keys[number])))
        assert vault.store.get(keys[number], timeout_s=10.0) == Miss("corrupt")
        store_chunk(vault, number)
    assert vault.store.counters["quarantined"] == N_FLIPS
    for key, _, blob in CHUNKS:
        record = vault.store.get(key, timeout_s=10.0)
        assert isinstance(record, Record)
        assert record.blob == blob
