"""A table of generations in front of a shared arena: how a reader in another process knows that a block is still the one it was given.

    0                    words of 8 bytes, little-endian: the directory's, then one per block that was ever shared and is still in use
    directory_offset     the directory, by which readers find blocks by themselves
    arena_offset         the arena

The server gives a reader the number of a word and the generation in it. When the block is freed the word becomes another, before anything
is written to the block again. A reader that finds another generation than the one it was given holds a stale view.
"""

from __future__ import annotations

import mmap
import os
import threading
from dataclasses import dataclass

import numpy as np

from kvstore.store.directory import Directory
from kvstore.store.pages import touch

_BLOCK_NBYTES = 4096  # one word for so many bytes of arena: more blocks than that are never shared at once
_PAGE_NBYTES = 2 << 20


@dataclass(frozen=True)
class Generation:
    """Which word tells whether a block is still the same, and what it has to hold."""

    word: int
    value: int


class SharedBlocks:
    """Hands out generations of blocks; knows nothing of what they hold. Thread-safe."""

    def __init__(self, pages: mmap.mmap, descriptor: int, arena_offset: int) -> None:
        self.descriptor = descriptor
        self._pages = pages
        self.arena_offset = arena_offset
        self.nbytes = len(pages)
        n_words = _count_words(self.nbytes - arena_offset)
        self._words = np.frombuffer(pages, np.uint64, n_words)
        self.directory_offset = arena_offset - Directory.nbytes(self.nbytes - arena_offset)
        view = memoryview(pages)
        self.directory = Directory(view[self.directory_offset : arena_offset], view[:8].cast("Q"))
        self._lock = threading.Lock()
        self._free = list(range(n_words - 1, 0, -1))
        self._generations: dict[int, Generation] = {}
        self._last = 0

    @staticmethod
    def head_nbytes(capacity_bytes: int) -> int:
        """Return the bytes that words and directory take in front of an arena of this capacity."""
        return -(-(_count_words(capacity_bytes) * 8 + Directory.nbytes(capacity_bytes)) // _PAGE_NBYTES) * _PAGE_NBYTES

    def share(self, block_offset: int) -> Generation | None:
        """Return the generation of a block that the caller keeps alive; None when every word is in use."""
        with self._lock:
            known = self._generations.get(block_offset)
            if known is None and self._free:
                self._last += 1
                known = self._generations[block_offset] = Generation(self._free.pop(), self._last)
                self._words[known.word] = known.value
            return known

    def retire(self, block_offset: int) -> None:
        """Make every view of a block stale, before it is used again."""
        self.directory.retire(block_offset)
        with self._lock:
            gone = self._generations.pop(block_offset, None)
            if gone is not None:
                self._words[gone.word] = 0
                self._free.append(gone.word)

    def touch(self) -> None:
        """Have the system back the whole arena now, so that no put pays for fresh pages."""
        touch(self._pages)

    def close(self) -> None:
        """Close the descriptor; readers that have mapped the memory keep it, and find nothing in it any more."""
        self.directory.close()
        with self._lock:
            descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _count_words(capacity_bytes: int) -> int:
    """Return the number of words for an arena of this capacity: one of the directory, and one per block that can be shared."""
    return capacity_bytes // _BLOCK_NBYTES + 2
