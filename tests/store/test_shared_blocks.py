"""Memory that other processes read in place: they see what is there, can't touch it, and learn when a block became another."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys

import pytest

from kvstore.core.errors import CapacityError
from kvstore.store.memory import BlockLanding, MemoryTier
from kvstore.store.pages import map_shared
from kvstore.store.shared_blocks import Generation, SharedBlocks
from tests.store.chunks import make_record

ARENA_NBYTES = 1 << 20

# Stands for a reader that was handed the descriptor: stdlib only, like one that has never heard of us.
READER = """
import json, mmap, os, struct, sys
descriptor, nbytes, offset, count, word = map(int, sys.argv[1:])
pages = mmap.mmap(descriptor, nbytes, prot=mmap.PROT_READ)
def generation():
    return struct.unpack_from("<Q", pages, 8 * word)[0]
def refused(call):
    try:
        call()
    except (OSError, TypeError) as error:
        return type(error).__name__
    return ""
print(json.dumps({
    "bytes": pages[offset:offset + count].hex(),
    "generation": generation(),
    "map_writable": refused(lambda: mmap.mmap(descriptor, nbytes)),
    "map_again_writable": refused(lambda: mmap.mmap(os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR), nbytes)),
    "assign": refused(lambda: pages.__setitem__(offset, 1)),
    "write": refused(lambda: os.pwrite(descriptor, b"x", offset)),
    "shrink": refused(lambda: os.ftruncate(descriptor, 0)),
    "grow": refused(lambda: os.ftruncate(descriptor, 2 * nbytes)),
}), flush=True)
sys.stdin.readline()
print(json.dumps({"generation": generation()}), flush=True)
"""


def shared_of(tier: MemoryTier) -> SharedBlocks:
    """Return the table of a tier; memory can be shared wherever these tests run on Linux."""
    assert tier.shared is not None
    return tier.shared


def put_and_share(tier: MemoryTier, seed: int, nbytes: int = 1000) -> tuple[bytes, BlockLanding, Generation]:
    """Put a record and return its key, a landing that keeps its block, and the block's generation."""
    key, record = make_record(seed, nbytes)
    tier.put(key, [record])
    landing = tier.get(key)
    assert landing is not None
    generation = shared_of(tier).share(landing.block_offset)
    assert generation is not None
    return key, landing, generation


def word(tier: MemoryTier, generation: Generation) -> int:
    """Return what a reader finds in the word of a generation."""
    return int(shared_of(tier)._words[generation.word])


@pytest.fixture
def tier() -> MemoryTier:
    """A shared memory tier; the test closes it or drops it."""
    return MemoryTier(ARENA_NBYTES, is_shared=True)


def test_another_process_sees_the_bytes_and_can_change_nothing(tier: MemoryTier) -> None:
    """It maps the descriptor for reading only; it can't write, shrink or grow, by any way that the system offers."""
    key, landing, generation = put_and_share(tier, 1)
    shared = shared_of(tier)
    numbers = (shared.descriptor, shared.nbytes, shared.arena_offset + landing.offset, landing.nbytes, generation.word)
    with subprocess.Popen(
        [sys.executable, "-c", READER, *map(str, numbers)],
        pass_fds=[shared.descriptor], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as reader:  # fmt: skip
        assert reader.stdout is not None
        first = json.loads(reader.stdout.readline())
        assert bytes.fromhex(first.pop("bytes")) == make_record(1, 1000)[1]
        assert first.pop("generation") == generation.value
        assert all(first.values()), first
        tier.delete(key)
        del landing
        assert tier.used_bytes == 0
        out, _ = reader.communicate("\n", timeout=30.0)
        assert json.loads(out) == {"generation": 0}
    tier.close()


def test_a_blocks_generation_changes_before_the_block_is_used_again(tier: MemoryTier) -> None:
    """A reader that checks it behind its copy can't have mixed two records."""
    key, landing, generation = put_and_share(tier, 2)
    offset = landing.block_offset
    tier.delete(key)
    del landing
    before = bytes(tier._memory[offset : offset + 1000])
    room = tier.reserve(1000)
    assert room.offset == offset
    assert word(tier, generation) != generation.value
    assert room.view == before


def test_a_block_that_is_held_keeps_its_generation(tier: MemoryTier) -> None:
    """Whatever happens to its record meanwhile, and however full the arena gets."""
    key, landing, generation = put_and_share(tier, 3, 700_000)
    tier.delete(key)
    with pytest.raises(CapacityError):
        tier.reserve(700_000)
    assert (word(tier, generation), landing.view) == (generation.value, make_record(3, 700_000)[1])
    del landing
    tier.reserve(700_000)
    assert word(tier, generation) == 0


def test_a_block_has_one_generation_until_it_is_retired(tier: MemoryTier) -> None:
    """Many readers may be told of it; the next block at the same place has another one, also in the same word."""
    shared = shared_of(tier)
    first = shared.share(64)
    assert (shared.share(64), shared.share(128) == first) == (first, False)
    shared.retire(64)
    shared.retire(64)
    again = shared.share(64)
    assert first is not None
    assert again is not None
    assert (again.word, again.value > first.value) == (first.word, True)


def test_no_more_blocks_are_shared_at_once_than_there_are_words(tier: MemoryTier) -> None:
    """The others are still served, by copy; a word that is free again is used again."""
    shared = shared_of(tier)
    given = [shared.share(64 * number) for number in range(ARENA_NBYTES // 4096 + 2)]
    assert (given[-1], None in given[:-1]) == (None, False)
    assert len({generation.word for generation in given if generation}) == len(given) - 1
    shared.retire(0)
    assert shared.share(64 * len(given)) is not None


def test_the_table_lies_in_front_of_the_arena(tier: MemoryTier) -> None:
    """A word can never be part of a record."""
    shared = shared_of(tier)
    assert 8 * len(shared._words) <= shared.arena_offset
    assert shared.nbytes == shared.arena_offset + ARENA_NBYTES
    room = tier.reserve(ARENA_NBYTES)
    room.view[:] = b"\xff" * ARENA_NBYTES
    assert not shared._words.any()


def test_closing_lets_go_of_the_descriptor_and_leaves_views_alone(tier: MemoryTier) -> None:
    """Safe to call again."""
    _, landing, _ = put_and_share(tier, 4)
    descriptor = shared_of(tier).descriptor
    tier.close()
    tier.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert landing.view == make_record(4, 1000)[1]


def test_a_system_that_can_not_share_memory_has_a_private_arena(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The tier works as before, and the log says why nobody else reads it."""

    def refuse(name: str, flags: int) -> int:
        raise PermissionError(1, "not here")

    monkeypatch.setattr(os, "memfd_create", refuse)
    tier = MemoryTier(ARENA_NBYTES, is_shared=True)
    key, record = make_record(5)
    tier.put(key, [record])
    landing = tier.get(key)
    assert landing is not None
    assert (tier.shared, landing.view) == (None, record)
    assert "can't be shared" in caplog.text


def test_a_kernel_that_does_not_seal_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that others could write is not handed out; its descriptor is closed again."""
    opened: list[int] = []
    create = os.memfd_create
    monkeypatch.setattr(os, "memfd_create", lambda name, flags: opened.append(create(name)) or opened[-1])
    assert map_shared(mmap.PAGESIZE, "test") is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])
