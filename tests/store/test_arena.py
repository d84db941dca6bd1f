"""The allocator of the memory tier, against the plainest oracle."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.core.errors import InvalidInputError
from kvstore.store.arena import Arena

CAPACITY_BYTES = 64 * 40


def longest_gap(taken: dict[int, int]) -> int:
    """Return the longest free run between the blocks, in bytes."""
    ends = [0, *(offset + length for offset, length in sorted(taken.items()))]
    starts = [*sorted(taken), CAPACITY_BYTES]
    return max(start - end for start, end in zip(starts, ends, strict=True))


@settings(derandomize=True, max_examples=150)
@given(st.lists(st.one_of(st.integers(0, 700), st.integers(-30, -1)), max_size=60))
def test_blocks_never_overlap_and_no_byte_is_lost(steps: list[int]) -> None:
    """Lengths allocate, negative numbers free; after each step free and used bytes are what the oracle counts."""
    arena, taken = Arena(CAPACITY_BYTES), {}
    for step in steps:
        if step < 0 and taken:
            offset = sorted(taken)[step % len(taken)]
            arena.free(offset)
            del taken[offset]
        elif step >= 0:
            need = max(-(-step // 64) * 64, 64)
            offset = arena.allocate(step)
            assert (offset is None) == (need > longest_gap(taken))
            if offset is not None:
                assert offset % 64 == 0
                taken[offset] = need
        blocks = sorted(taken.items())
        assert all(a + n <= b for (a, n), (b, _) in pairwise(blocks))
        assert all(offset + length <= CAPACITY_BYTES for offset, length in blocks)
        assert (arena.used_bytes, arena.largest_free_bytes) == (sum(taken.values()), longest_gap(taken))


def test_the_shortest_free_block_that_is_long_enough_is_taken() -> None:
    """Best fit leaves the long blocks whole."""
    arena = Arena(CAPACITY_BYTES)
    first, gap, _, hole, _ = (arena.allocate(64 * n) for n in (1, 3, 1, 2, 1))
    assert first == 0
    arena.free(gap or 0)
    arena.free(hole or 0)
    assert arena.allocate(128) == hole


def test_a_block_is_freed_once() -> None:
    """A double free would hand one block to two records."""
    arena = Arena(CAPACITY_BYTES)
    offset = arena.allocate(1) or 0
    arena.free(offset)
    with pytest.raises(KeyError):
        arena.free(offset)


def test_an_arena_without_room_for_one_block_is_refused() -> None:
    """The message says what it would take."""
    with pytest.raises(InvalidInputError, match="at least 64 B, got 63 B"):
        Arena(63)
