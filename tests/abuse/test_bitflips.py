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

from kvstore.core.api import PutNote
from kvstore.core.blob import verify_blob
from kvstore.core.errors import CorruptError
from kvstore.core.key import storage_key, tenant_secret
from kvstore.server.service import BoundStore, StoreService
from kvstore.store.disk import DiskTier
from kvstore.store.epochs import Epochs
from kvstore.store.memory import MemoryTier
from kvstore.store.record import parse_head
from kvstore.store.redis.settings import RedisSettings
from kvstore.store.redis.tier import RedisTier
from kvstore.store.tier import Tier
from kvstore.store.tiered import TieredStore
from tests.redis_server import RedisServer
from tests.store.chunks import make_chunk, record_of

N_FLIPS = 3400  # per tier
N_HARMLESS = 400
MASTER_SECRET = bytes(range(32))
CHUNKS = [make_chunk(seed, 16 * seed, n_parts=1 + seed % 3)[1:] for seed in range(12)]


class Vault(ABC):
    """One tenant's view of a store whose stored bits a test can flip behind its back."""

    def __init__(self, *tiers: Tier) -> None:
        self.store = TieredStore(tiers)
        self.service = StoreService(self.store, Epochs(), MASTER_SECRET, 1 << 20)
        self.api: BoundStore = self.service.bind("alpha")

    def place(self, number: int) -> bytes:
        """Return the storage key of a chunk."""
        return storage_key(tenant_secret(MASTER_SECRET, "alpha"), 0, 0, CHUNKS[number][0].chunk)

    def put(self, number: int) -> None:
        """Put a chunk, or put it again."""
        assert self.api.put(CHUNKS[number][1], PutNote()).stored

    def read(self, number: int) -> bytes | None:
        """Return all parts of a chunk joined, or None for a miss; raises CorruptError."""
        reader = self.api.get(CHUNKS[number][0].chunk, timeout_s=10.0)
        if reader is None:
            return None
        try:
            return b"".join(bytes(reader.part(index)) for index in range(len(reader.manifest.parts)))
        finally:
            reader.close()

    @abstractmethod
    def bits(self, number: int) -> range:
        """Return the stored bits that a read depends on."""

    @abstractmethod
    def flip(self, number: int, bit: int) -> None:
        """Flip one stored bit."""


class MemoryVault(Vault):
    """Flips bits in the arena. The head of a record there is not read: the index has what it says."""

    def __init__(self, *slower: Tier) -> None:
        self.tier = MemoryTier(1 << 20)
        super().__init__(self.tier, *slower)

    def head(self, number: int) -> range:
        """Return the bits before the blob."""
        return range(8 * parse_head(self.tier._blocks[self.place(number)][0].data).blob_offset)

    def bits(self, number: int) -> range:
        return range(self.head(number).stop, 8 * len(self.tier._blocks[self.place(number)][0]))

    def flip(self, number: int, bit: int) -> None:
        self.tier._blocks[self.place(number)][0][bit // 8] ^= 1 << bit % 8


class DiskVault(Vault):
    """Flips bits in the file."""

    def __init__(self, directory: Path) -> None:
        self.records = directory / "records"
        super().__init__(DiskTier(directory, 1 << 20, fsync="never"))

    def path(self, number: int) -> Path:
        """Return the file of a chunk."""
        name = self.place(number).hex()
        return self.records / name[:2] / name

    def bits(self, number: int) -> range:
        return range(8 * self.path(number).stat().st_size)

    def flip(self, number: int, bit: int) -> None:
        descriptor = os.open(self.path(number), os.O_RDWR)
        byte = os.pread(descriptor, 1, bit // 8)[0]
        os.pwrite(descriptor, bytes([byte ^ 1 << bit % 8]), bit // 8)
        os.close(descriptor)


class RedisVault(Vault):
    """Flips bits in the index and in the piece; the memory tier in front is too small for any record."""

    INDEX_NBYTES = 40

    def __init__(self, server: RedisServer) -> None:
        self.tier = RedisTier(RedisSettings(server.unix_url, timeout_s=5.0))
        self.client = redis.Redis.from_url(server.unix_url)
        super().__init__(MemoryTier(64), self.tier)

    def put(self, number: int) -> None:
        self.tier.put(self.place(number), [record_of(self.place(number), *CHUNKS[number])])

    def bits(self, number: int) -> range:
        return range(8 * (self.INDEX_NBYTES + (self.tier.find([self.place(number)])[0] or 0)))

    def flip(self, number: int, bit: int) -> None:
        name, bit = ("i", bit) if bit < 8 * self.INDEX_NBYTES else ("0", bit - 8 * self.INDEX_NBYTES)
        at = bit // 8 * 8 + 7 - bit % 8  # Redis counts the bits of a byte from the highest
        name = f"larder:1:{self.place(number).hex()}:{name}"
        assert self.client.setbit(name, at, 1 - self.client.getbit(name, at)) in (0, 1)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Each flip is worth a line in the log, but not here."""
    caplog.set_level(logging.CRITICAL, logger="kvstore")


@pytest.fixture(params=["memory", "disk", "redis"])
def vault(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Vault]:
    """A store over each kind of tier."""
    if request.param == "redis":
        with RedisServer() as server:
            opened = RedisVault(server)
            yield opened
            opened.service.close()
            opened.client.close()
    else:
        local = MemoryVault() if request.param == "memory" else DiskVault(tmp_path)
        yield local
        local.service.close()


def payload(number: int) -> bytes:
    """Return all parts of a chunk joined, as they were put."""
    blob = CHUNKS[number][1]
    return b"".join(blob[part.offset : part.offset + part.nbytes] for part in verify_blob(blob).manifest.parts)


def test_no_flipped_bit_is_ever_an_answer(vault: Vault) -> None:
    """Every flip is a miss or a CorruptError, then a miss, and is quarantined and counted; what was not touched is still right."""
    rng = random.Random(20_26)
    for number in range(len(CHUNKS)):
        vault.put(number)
    for _ in range(N_FLIPS):
        number = rng.randrange(len(CHUNKS))
        vault.flip(number, rng.choice(vault.bits(number)))
        try:
            assert vault.read(number) is None
        except CorruptError:
            assert vault.read(number) is None
        vault.put(number)
    assert vault.store.counters["quarantined"] == N_FLIPS
    assert [vault.read(number) for number in range(len(CHUNKS))] == [payload(number) for number in range(len(CHUNKS))]


def test_a_flipped_bit_in_the_head_of_a_record_in_memory_changes_nothing() -> None:
    """It is not read there, and a copy that is made of it later is verified by whoever reads that one."""
    vault, rng = MemoryVault(), random.Random(3)
    expected = [payload(number) for number in range(len(CHUNKS))]
    for number in range(len(CHUNKS)):
        vault.put(number)
    for _ in range(N_HARMLESS):
        number = rng.randrange(len(CHUNKS))
        bit = rng.choice(vault.head(number))
        vault.flip(number, bit)
        assert vault.read(number) == expected[number]
        vault.flip(number, bit)
    assert vault.store.counters["quarantined"] == 0
    vault.service.close()


def test_a_flipped_bit_in_memory_is_answered_from_disk(tmp_path: Path) -> None:
    """The reader gets the right bytes and does not notice; the damaged copy is quarantined, counted and replaced by the sound one."""
    vault, rng = MemoryVault(DiskTier(tmp_path, 1 << 20, fsync="never")), random.Random(4)
    expected = [payload(number) for number in range(len(CHUNKS))]
    for number in range(len(CHUNKS)):
        vault.put(number)
    for _ in range(N_HARMLESS):
        assert vault.store.drain()
        number = rng.randrange(len(CHUNKS))
        vault.flip(number, rng.choice(vault.bits(number)))
        assert vault.read(number) == expected[number]
    assert vault.store.counters["quarantined"] == N_HARMLESS
    vault.service.close()
