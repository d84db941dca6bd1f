"""Records in one preallocated arena; a get is a view and copies nothing, and other processes may read it in place."""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from kvstore.core.blob import Buffer
from kvstore.core.errors import CapacityError
from kvstore.core.landing import Landed
from kvstore.store.arena import Arena
from kvstore.store.pages import map_private, map_shared
from kvstore.store.record import parse_head
from kvstore.store.shared_blocks import SharedBlocks
from kvstore.store.tier import Listed, Room, Tier, TierInfo

_Block = np.ndarray[tuple[int], np.dtype[np.uint8]]


class _BlockRef(weakref.ref[_Block]):
    """A weak reference that remembers where its block lies."""

    offset: int = 0


class BlockLanding(Landed):
    """A block of the arena, all there; `offset` is where its view begins in the arena's memory, in bytes."""

    def __init__(self, view: memoryview, block_offset: int, offset: int) -> None:
        super().__init__(view)
        self.block_offset, self.offset = block_offset, offset

    def tail(self, skipped: int) -> BlockLanding:
        """Return what stands behind the first `skipped` bytes."""
        return BlockLanding(self.view[skipped:], self.block_offset, self.offset + skipped)


class MemoryTier(Tier):
    """Keeps records in an arena that is mapped once and reused, so that no put or get pays for fresh pages twice.

    Copies: put one, or none into a room that was reserved; get none. A view that was handed out keeps its block: a record that is deleted
    meanwhile disappears from the tier at once, and its block is free again when the last view is dropped. Until then the bytes count as
    used, so the capacity is never exceeded.

    Parameters
    ----------
    capacity_bytes : int
        Size of the arena, at least 64.
    is_shared : bool
        Map it so that other processes can read blocks in place; `shared` is None where the system can't.
    """

    def __init__(self, capacity_bytes: int, name: str = "memory", is_shared: bool = False) -> None:
        self._arena = Arena(capacity_bytes)
        self._info = TierInfo(name, self._arena.capacity_bytes, is_verified=True)
        self.shared: SharedBlocks | None = None
        self._pages = self._map(is_shared)
        first = self.shared.arena_offset if self.shared else 0
        self._memory: _Block = np.frombuffer(self._pages, np.uint8)[first : first + self._arena.capacity_bytes]
        self._lock = threading.Lock()
        self._blocks: dict[bytes, tuple[_Block, int]] = {}
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

    def get(self, key: bytes) -> BlockLanding | None:
        """Return the record in the arena; copies nothing."""
        found = self._blocks.get(key)
        return None if found is None else BlockLanding(found[0].data.toreadonly(), found[1], found[1])

    def put(self, key: bytes, pieces: Sequence[Buffer]) -> None:
        """Copy the pieces into one block; the copy runs without the lock."""
        if key in self._blocks:
            return
        room = self.reserve(sum(len(piece) for piece in pieces))
        at = 0
        for piece in pieces:
            room.view[at : at + len(piece)] = memoryview(piece).cast("B")
            at += len(piece)
        self.publish(key, room)

    def reserve(self, nbytes: int) -> Room:
        """Return a new block of exactly `nbytes` that nobody sees yet; raises CapacityError. Dropping the room frees it."""
        with self._lock:
            self._reclaim()
            offset = self._arena.allocate(nbytes)
            if offset is None:
                most = self._arena.largest_free_bytes
                raise CapacityError(f"tier {self._info.name}: {nbytes} B do not fit, {most} B are free in one piece; raise its capacity")
            block = self._memory[offset : offset + nbytes]
            ref = self._refs[offset] = _BlockRef(block, self._dropped.append)
            ref.offset = offset
        return Room(block.data, offset)

    def publish(self, key: bytes, room: Room) -> None:
        """Make a filled room the record of `key`; a record that is there already stays. Copies nothing."""
        block = room.view.obj
        assert isinstance(block, np.ndarray)
        with self._lock:
            self._blocks.setdefault(key, (block, room.offset))

    def delete(self, key: bytes) -> bool:
        with self._lock:
            found = self._blocks.pop(key, None)
            if found is not None and self.shared:
                self.shared.directory.remove(found[1])
            return found is not None

    def find(self, keys: Sequence[bytes]) -> list[int | None]:
        with self._lock:
            found = [self._blocks.get(key) for key in keys]
        return [None if block is None else block[0].nbytes for block in found]

    def scan(self) -> Iterator[Listed]:
        with self._lock:
            found = list(self._blocks.items())
        for key, (block, _) in found:
            yield Listed(key, block.nbytes, parse_head(block.data).meta)

    def close(self) -> None:
        with self._lock:
            self._blocks.clear()
        if self.shared:
            self.shared.close()

    def _map(self, is_shared: bool) -> mmap.mmap:
        """Map the arena, behind a table of generations when it is shared."""
        if is_shared:
            head_nbytes = SharedBlocks.head_nbytes(self._arena.capacity_bytes)
            mapped = map_shared(head_nbytes + self._arena.capacity_bytes, f"larder-{os.getpid()}")
            if mapped:
                self.shared = SharedBlocks(*mapped, head_nbytes)
                return mapped[0]
        return map_private(self._arena.capacity_bytes)

    def _reclaim(self) -> None:
        """Free the blocks that nobody refers to any more. Called with the lock held."""
        while self._dropped:
            offset = self._dropped.popleft().offset
            del self._refs[offset]
            if self.shared:
                self.shared.retire(offset)
            self._arena.free(offset)
