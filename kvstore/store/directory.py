"""The store's side of the table by which readers in other processes find chunks in shared memory; `kvstore.core.directory` describes it."""

from __future__ import annotations

import threading

from kvstore.core.directory import (
    BUCKET_NBYTES,
    ENTRY_NBYTES,
    NO_ENTRY,
    Listed,
    bucket_of,
    find_entry,
    pack_entry,
)

LISTED_NBYTES = 16 << 10  # one entry for so many bytes of arena
CLOSED = (1 << 64) - 1


class Directory:
    """Lists blocks of an arena; an entry is cleared before its block can become another. Thread-safe.

    It is full of the latest ones: an entry that finds its bucket full takes the place of another, whose chunk is asked for again then.

    Parameters
    ----------
    table : memoryview
        Zeros, a multiple of `BUCKET_NBYTES` long.
    floor : memoryview
        One word of 8 bytes: stamps up to it are not believed any more.
    """

    def __init__(self, table: memoryview, floor: memoryview) -> None:
        self._table, self._floor = table, floor
        self.n_buckets = table.nbytes // BUCKET_NBYTES
        self._lock = threading.Lock()
        self._last_stamp = 0
        self._at: dict[int, int] = {}  # where the entry of a block begins
        self._listed: dict[int, tuple[int, int]] = {}  # by where an entry begins: its block, and its stamp
        self._removed: set[int] = set()  # blocks out of sight that somebody still reads

    @staticmethod
    def nbytes(capacity_bytes: int) -> int:
        """Return the length of the table for an arena of this capacity."""
        return max(1, capacity_bytes // LISTED_NBYTES * ENTRY_NBYTES // BUCKET_NBYTES) * BUCKET_NBYTES

    def stamp(self) -> int:
        """Return a new stamp: taken before a chunk is looked for, so that one that is invalidated meanwhile is not listed."""
        with self._lock:
            self._last_stamp += 1
            return self._last_stamp

    def lists(self, block_offset: int) -> bool:
        """Tell whether readers find a block; takes no lock."""
        listed = self._listed.get(self._at.get(block_offset, -1))
        return listed is not None and listed[0] == block_offset and listed[1] > self._floor[0]

    def enter(self, block_offset: int, found_by: bytes, listed: Listed) -> None:
        """List a block, unless it is listed already or was removed meanwhile."""
        with self._lock:
            if block_offset in self._removed or self.lists(block_offset):
                return
            at = self._place(found_by, listed.stamp)
            self._clear(at)
            self._table[at : at + ENTRY_NBYTES] = pack_entry(found_by, listed)
            self._at[block_offset] = at
            self._listed[at] = block_offset, listed.stamp

    def remove(self, block_offset: int) -> None:
        """Have nobody find a block from now on."""
        with self._lock:
            self._removed.add(block_offset)
            if block_offset in self._at:
                self._clear(self._at[block_offset])

    def retire(self, block_offset: int) -> None:
        """Note that a block becomes another."""
        with self._lock:
            self._removed.discard(block_offset)
            if block_offset in self._at:
                self._clear(self._at[block_offset])

    def invalidate(self) -> None:
        """Have nobody believe what was listed up to now, or is being looked for."""
        with self._lock:
            self._floor[0] = self._last_stamp

    def close(self) -> None:
        """Have nobody believe anything any more."""
        with self._lock:
            self._floor[0] = CLOSED

    def _place(self, found_by: bytes, stamp: int) -> int:
        """Return where an entry goes: where the key is already, else where none is, else where another one gives way."""
        start = bucket_of(found_by, self.n_buckets) * BUCKET_NBYTES
        bucket = bytes(self._table[start : start + BUCKET_NBYTES])
        at = find_entry(bucket, found_by)
        if at >= 0:
            return start + at
        places = range(start, start + BUCKET_NBYTES, ENTRY_NBYTES)
        return next((place for place in places if place not in self._listed), places[stamp % len(places)])

    def _clear(self, at: int) -> None:
        listed = self._listed.pop(at, None)
        if listed is not None:
            self._table[at : at + ENTRY_NBYTES] = NO_ENTRY
            del self._at[listed[0]]
