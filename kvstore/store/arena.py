"""Where a block of an arena goes: best fit over aligned free blocks, neighbours joined when one is freed. Holds no memory itself."""

from __future__ import annotations

from bisect import bisect_left, insort

from kvstore.core.blob import ALIGNMENT, align
from kvstore.core.errors import InvalidInputError


class Arena:
    """Offsets of non-overlapping blocks within `capacity_bytes`; not thread-safe.

    Every block begins at a multiple of 64 and takes its length rounded up to one. Allocating and freeing take O(log n) comparisons in the
    number of free blocks, and one move within a list of them.
    """

    def __init__(self, capacity_bytes: int) -> None:
        if capacity_bytes < ALIGNMENT:
            raise InvalidInputError(f"an arena needs at least {ALIGNMENT} B, got {capacity_bytes} B")
        self.capacity_bytes = capacity_bytes // ALIGNMENT * ALIGNMENT
        self.used_bytes = 0
        self._taken: dict[int, int] = {}  # offset -> length
        self._by_size: list[tuple[int, int]] = []  # free blocks as (length, offset), sorted
        self._length_at: dict[int, int] = {}  # free blocks: offset -> length
        self._start_of_end: dict[int, int] = {}  # free blocks: end -> offset
        self._add_free(0, self.capacity_bytes)

    @property
    def largest_free_bytes(self) -> int:
        """The longest block that could be allocated now."""
        return self._by_size[-1][0] if self._by_size else 0

    def allocate(self, nbytes: int) -> int | None:
        """Return the offset of a new block, or None when no free block is long enough."""
        need = max(align(nbytes), ALIGNMENT)
        index = bisect_left(self._by_size, (need, 0))
        if index == len(self._by_size):
            return None
        length, offset = self._by_size[index]
        self._drop_free(offset, length)
        if length > need:
            self._add_free(offset + need, length - need)
        self._taken[offset] = need
        self.used_bytes += need
        return offset

    def free(self, offset: int) -> None:
        """Give a block back, joined with the free blocks beside it; an offset that is not allocated raises KeyError."""
        length = self._taken.pop(offset)
        self.used_bytes -= length
        start, end = offset, offset + length
        if end in self._length_at:
            behind = self._length_at[end]
            self._drop_free(end, behind)
            end += behind
        if start in self._start_of_end:
            before = self._start_of_end[start]
            self._drop_free(before, start - before)
            start = before
        self._add_free(start, end - start)

    def _add_free(self, offset: int, length: int) -> None:
        insort(self._by_size, (length, offset))
        self._length_at[offset] = length
        self._start_of_end[offset + length] = offset

    def _drop_free(self, offset: int, length: int) -> None:
        del self._by_size[bisect_left(self._by_size, (length, offset))]
        del self._length_at[offset]
        del self._start_of_end[offset + length]
