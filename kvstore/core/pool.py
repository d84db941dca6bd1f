"""Buffers that are used again: a fresh page costs more than copying into a warm one."""

from __future__ import annotations

import ctypes
import mmap
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress

SMALL_NBYTES = 64 << 10  # below this the allocator's own memory is warm already


class BufferPool:
    """Lends page-aligned memory; a buffer comes back by itself when the last view of it is dropped. Thread-safe.

    A fresh 4 KiB page costs about as much as copying 40 KiB, so memory that was lent before is lent again, still warm. Sizes are rounded
    up to a power of two or one and a half of it, so that at most a third of a buffer is unused.

    Parameters
    ----------
    capacity_bytes : int
        The most that is kept for later; what comes back beyond it is given to the system.
    pin : callable or None
        Called once with each new block, such as to register it with a GPU's driver for fast copies.
    """

    def __init__(self, capacity_bytes: int, pin: Callable[[memoryview], None] | None = None) -> None:
        self._capacity_bytes = capacity_bytes
        self._pin = pin
        self._lock = threading.Lock()
        self._free: dict[int, list[mmap.mmap]] = {}
        self._free_nbytes = 0
        # A lent block is wrapped in an object that every view keeps alive; its weak reference tells when the last of them is gone. That can
        # happen inside any thread's locked section, so the block is only noted here and taken back by the next call.
        self._refs: set[_Lent] = set()
        self._returned: deque[_Lent] = deque()

    @property
    def free_nbytes(self) -> int:
        """Bytes that are kept for later."""
        with self._lock:
            self._take_back()
            return self._free_nbytes

    @property
    def lent_nbytes(self) -> int:
        """Bytes of blocks that somebody holds."""
        with self._lock:
            self._take_back()
            return sum(len(ref.block) for ref in self._refs)

    def take(self, nbytes: int) -> memoryview:
        """Return writable memory of `nbytes`; its content is whatever was there before. Copies nothing."""
        if nbytes < SMALL_NBYTES:
            return memoryview(bytearray(nbytes))
        size = size_class(nbytes)
        with self._lock:
            self._take_back()
            free = self._free.get(size)
            block = free.pop() if free else None
            self._free_nbytes -= size if block is not None else 0
        if block is None:
            block = self._map(size)
        lent = (ctypes.c_ubyte * size).from_buffer(block)
        ref = _Lent(lent, self._returned.append)
        ref.block = block
        with self._lock:
            self._refs.add(ref)
        return memoryview(lent).cast("B")[:nbytes]

    def close(self) -> None:
        """Give what is kept to the system; buffers that are lent stay valid."""
        with self._lock:
            self._take_back()
            self._free.clear()
            self._free_nbytes = 0

    def _map(self, size: int) -> mmap.mmap:
        # Private: a first touch costs a third of what it costs in shared memory, and no forked child writes into it.
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without huge pages
                block.madvise(mmap.MADV_HUGEPAGE)
        if self._pin:
            self._pin(memoryview(block))
        return block

    def _take_back(self) -> None:
        """Keep or drop the blocks that nobody refers to any more. Called with the lock held."""
        while self._returned:
            ref = self._returned.popleft()
            self._refs.discard(ref)
            size = len(ref.block)
            if self._free_nbytes + size <= self._capacity_bytes:
                self._free.setdefault(size, []).append(ref.block)
                self._free_nbytes += size


class _Lent(weakref.ref["ctypes.Array[ctypes.c_ubyte]"]):
    """A weak reference that remembers which block was lent; hashed by identity, since its object goes first."""

    block: mmap.mmap

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def size_class(nbytes: int) -> int:
    """Return the length of the block that holds `nbytes`: a power of two, or one and a half of it."""
    power = 1 << (nbytes - 1).bit_length()
    return power // 4 * 3 if nbytes <= power // 4 * 3 else power
