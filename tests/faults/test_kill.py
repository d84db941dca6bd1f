"""kill -9 at any moment: what is visible afterwards verifies, and every durable put that was acknowledged is there."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

from kvstore.store.disk import DiskTier
from kvstore.store.memory import MemoryTier
from kvstore.store.tiered import TieredStore
from tests.store.chunks import make_chunk
from tests.store.stores import blob_of

N_PUTS = 200
CAPACITY_BYTES = 256 << 20

# A process that puts chunks first, first + 1, ... and says so the moment each is acknowledged.
WRITER = """
import os, signal, sys
from pathlib import Path
from kvstore.store.disk import DiskTier
from kvstore.store.memory import MemoryTier
from kvstore.store.tiered import TieredStore
from tests.faults.test_kill import CAPACITY_BYTES, N_PUTS, chunk

directory, first, call, when, left = Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:5], int(sys.argv[5])

def die_in(function):
    def dying(*args, **kwargs):
        global left
        left -= 1
        if left == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return dying

store = TieredStore([MemoryTier(8 << 20), DiskTier(directory, CAPACITY_BYTES)])
if call:
    setattr(os, call, die_in(getattr(os, call)))
for seed in range(first, N_PUTS):
    store.put(*chunk(seed), durable=True)
    os.write(1, b"%d\\n" % seed)
"""


@cache
def chunk(seed: int) -> tuple[bytes, object, bytes]:
    """Return storage key, meta and blob of a chunk of up to 300 kB."""
    return make_chunk(seed, random.Random(seed).choice([100, 5_000, 60_000, 300_000]))


def start_writer(directory: Path, first: int, call: str = "", when: str = "", left: int = 0) -> subprocess.Popen[bytes]:
    """Start the writer; with a call named, it dies in that call of the operating system."""
    command = [sys.executable, "-c", WRITER, str(directory), str(first), call, when, str(left)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])


def acknowledged(writer: subprocess.Popen[bytes], at_most: int = N_PUTS) -> list[int]:
    """Read the seeds that the writer acknowledged, until it ends or so many came."""
    assert writer.stdout is not None
    seeds = []
    while len(seeds) < at_most and (line := writer.stdout.readline()).endswith(b"\n"):
        seeds.append(int(line))
    return seeds


def check_store(directory: Path, durable: set[int]) -> None:
    """Open the store as a restart does and read everything that is visible."""
    store = TieredStore([MemoryTier(8 << 20), DiskTier(directory, CAPACITY_BYTES)])
    expected = {chunk(seed)[0]: seed for seed in range(max(durable, default=0) + 2)}
    visible = {entry.storage_key for entry in store.entries()}
    assert {key for key, seed in expected.items() if seed in durable} <= visible <= set(expected)
    for key in visible:
        assert blob_of(store.get(key)) == chunk(expected[key])[2]
    assert store.counters["quarantined"] == 0
    assert list((directory / "quarantine").iterdir()) == []
    store.close()


def test_a_store_killed_at_random_moments_of_200_puts_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    """Each round goes on where the one before was killed, in the middle of a put or between two."""
    rng = random.Random(9)
    durable: set[int] = set()
    kills = 0
    while len(durable) < N_PUTS:
        writer = start_writer(tmp_path, len(durable))
        durable |= set(acknowledged(writer, rng.randint(5, 35)))
        time.sleep(rng.random() * 0.005)
        kills += writer.poll() is None
        writer.send_signal(signal.SIGKILL)
        durable |= set(acknowledged(writer))
        writer.communicate()
        assert durable == set(range(len(durable)))
        check_store(tmp_path, durable)
    assert kills >= 6


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("call", "left"), [("write", 2), ("fsync", 1), ("fsync", 3), ("replace", 1)])
def test_a_store_killed_within_a_step_of_a_put_leaves_a_whole_chunk_or_none(tmp_path: Path, call: str, when: str, left: int) -> None:
    """The moments that chance rarely hits: around the write of the blob, the sync of file and directory, and the rename."""
    writer = start_writer(tmp_path, 0, call, when, left)
    durable = set(acknowledged(writer))
    assert writer.wait() == -signal.SIGKILL
    writer.communicate()
    check_store(tmp_path, durable)
