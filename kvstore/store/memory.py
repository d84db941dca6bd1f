"""Records in one preallocated arena of this process; a get is a view and copies nothing."""

from __future__ import annotations

import mmap
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from kvstore.core.blob import Buffer
from kvstore.core.errors import CapacityError
from kvstore.store.arena import Arena
from kvstore.store.record import parse_head
from kvstore.store.tier import Listed, Tier, TierInfo

_Block = np.ndarray[tuple[int], np.dtype[np.uint8]]


class _BlockRef(weakref.ref[_Block]):
    """A weak reference that remembers where its block lies."""

    offset: int = 0


class MemoryTier(Tier):
    """Keeps records in an arena that is mapped once and reused, so that no put or get pays for fresh pages twice.

    Copies: put one, get none. A view that was handed out keeps its block: a record that is deleted meanwhile disappears from the tier at
    once, and its block is free again when the last view is dropped. Until then the bytes count as used, so the capacity is never exceeded.

    Parameters
    ----------
    capacity_bytes : int
        Size of the arena, at least 64.
    """

    def __init__(self, capacity_bytes: int, name: str = "memory") -> None:
        self._arena = Arena(capacity_bytes)
        self._info = TierInfo(name, self._arena.capacity_bytes)
        self._memory: _Block = np.frombuffer(_map_pages(self._arena.capacity_bytes), dtype=np.uint8)
        self._lock = threading.Lock()
        self._blocks: dict[bytes, _Block] = {}
        # A block is a slice of the arena that the index and every view of it keep alive. Its weak reference tells when the last of them is
        # gone; that can happen inside any thread's locked section, so the reference is only noted here and freed by the next call.
        self._refs: dict[int, _BlockRef] = {}
        self._dropped: deque[_BlockRef] = deque()

    @property
    def info(self) -> TierInfo:
        return self._info

    @property
    def used_bytes(self) -> int:
        """Bytes of blocks that hold a record or are still being read."""
        with self._lock:
            self._reclaim()
            return self._arena.used_bytes

    def get(self, key: bytes) -> memoryview | None:
        """Return a read-only view of the record in the arena; copies nothing."""
        with self._lock:
            block = self._blocks.get(key)
        return None if block is None else block.data.toreadonly()

    def put(self, key: bytes, pieces: Sequence[Buffer]) -> None:
        """Copy the pieces into one block; the copy runs without the lock."""
        nbytes = sum(len(piece) for piece in pieces)
        with self._lock:
            if key in self._blocks:
                return
            block = self._reserve(nbytes)
        at = 0
        for piece in pieces:
            block[at : at + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
            at += len(piece)
        with self._lock:
            self._blocks.setdefault(key, block)

    def delete(self, key: bytes) -> bool:
        with self._lock:
            return self._blocks.pop(key, None) is not None

    def find(self, keys: Sequence[bytes]) -> list[int | None]:
        with self._lock:
            blocks = [self._blocks.get(key) for key in keys]
        return [None if block is None else block.nbytes for block in blocks]

    def scan(self) -> Iterator[Listed]:
        with self._lock:
            blocks = list(self._blocks.items())
        for key, block in blocks:
            yield Listed(key, block.nbytes, parse_head(block.data).meta)

    def close(self) -> None:
        with self._lock:
            self._blocks.clear()

    def _reserve(self, nbytes: int) -> _Block:
        """Return a new block of exactly `nbytes`; raises CapacityError. Called with the lock held."""
        self._reclaim()
        offset = self._arena.allocate(nbytes)
        if offset is None:
            most = self._arena.largest_free_bytes
            raise CapacityError(f"tier {self._info.name}: {nbytes} B do not fit, {most} B are free in one piece; raise its capacity")
        block = self._memory[offset : offset + nbytes]
        ref = self._refs[offset] = _BlockRef(block, self._dropped.append)
        ref.offset = offset
        return block

    def _reclaim(self) -> None:
        """Free the blocks that nobody refers to any more. Called with the lock held."""
        while self._dropped:
            offset = self._dropped.popleft().offset
            del self._refs[offset]
            self._arena.free(offset)


def _map_pages(nbytes: int) -> mmap.mmap:
    """Map anonymous memory, in huge pages where the system offers them: a page is paid for on its first touch only."""
    pages = mmap.mmap(-1, nbytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages
