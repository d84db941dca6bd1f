"""Any sequence of calls, against a model: capacities hold, reads are right or a miss, and durable chunks that were not evicted survive."""

from __future__ import annotations

import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from kvstore.core.errors import CapacityError
from kvstore.store.disk import DiskTier
from kvstore.store.memory import MemoryTier
from kvstore.store.results import Opened, StoreSettings
from kvstore.store.tiered import TieredStore
from tests.store.chunks import make_chunk
from tests.store.stores import blob_of
from tests.store.test_breaker import Clock

MEMORY_BYTES, DISK_BYTES = 6_000, 12_000
CHUNKS = {seed: make_chunk(seed, 300 * seed, recompute_s=seed % 3) for seed in range(12)}
seeds = st.integers(0, len(CHUNKS) - 1)


def sizes_of_files(directory: Path) -> dict[int, int]:
    """Return the bytes of each file but the lock, by inode, since a file may be renamed while it is counted."""
    sizes = {}
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and path.name != "lock":
                sizes[status.st_ino] = status.st_size
    return sizes


class StoreMachine(RuleBasedStateMachine):
    """Puts, reads, leases, deletes and restarts over a few chunks that do not all fit."""

    eviction = "value"

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="larder-capacity-"))
        self.clock = Clock()
        self.leased: dict[int, float] = {}
        self.deleted: set[int] = set()
        self.open()

    def open(self) -> None:
        """Open the store over the directory."""
        self.memory, self.disk = MemoryTier(MEMORY_BYTES), DiskTier(self.directory, DISK_BYTES, fsync="never")
        self.store = TieredStore([self.memory, self.disk], StoreSettings(eviction=self.eviction, write_queue_bytes=4_000), self.clock)

    @rule(seed=seeds)
    def put(self, seed: int) -> None:
        try:
            self.store.put(*CHUNKS[seed])
            self.deleted.discard(seed)
        except CapacityError:
            assert any(until > self.clock.now_s for until in self.leased.values()), "only leases may refuse a put"

    @rule(seed=seeds)
    def get(self, seed: int) -> None:
        outcome = self.store.get(CHUNKS[seed][0])
        if isinstance(outcome, Opened):
            assert blob_of(outcome) == CHUNKS[seed][2]
            assert seed not in self.deleted
        else:
            assert outcome.reason in ("never_stored", "evicted", "deleted")
            assert self.leased.get(seed, 0.0) <= self.clock.now_s, "a leased chunk was evicted"

    @rule(seed=seeds, lease_s=st.sampled_from([0.0, 2.0]))
    def lookup(self, seed: int, lease_s: float) -> None:
        found = self.store.lookup([CHUNKS[seed][0]], lease_s)[0]
        if found.tier and lease_s:
            self.leased[seed] = self.clock.now_s + lease_s

    @rule(seed=seeds)
    def delete(self, seed: int) -> None:
        self.store.delete(CHUNKS[seed][0])
        self.leased.pop(seed, None)
        self.deleted.add(seed)

    @rule()
    def wait(self) -> None:
        self.clock.now_s += 1.0

    @rule()
    def drain(self) -> None:
        self.store.drain()

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.leased.clear()
        self.open()

    @invariant()
    def capacities_hold(self) -> None:
        assert self.memory.used_bytes <= MEMORY_BYTES
        assert self.disk.used_bytes <= DISK_BYTES
        assert sum(sizes_of_files(self.directory).values()) <= DISK_BYTES

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)


@pytest.mark.parametrize("eviction", ["arc", "lfu", "lru", "value"])
def test_no_sequence_of_calls_exceeds_a_capacity_or_gives_a_wrong_answer(eviction: str) -> None:
    """Bytes are counted on the disk itself too, unfinished files included."""
    machine: Any = type("Machine", (StoreMachine,), {"eviction": eviction})
    run_state_machine_as_test(machine, settings=settings(derandomize=True, max_examples=25, stateful_step_count=30))
