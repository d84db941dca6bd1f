"""Reading chunks in a store's memory without a word to the store: found in its directory, copied out, and looked up once more."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kvclient.lanes.frames import DirectoryPlace, Found, Place
from kvstore.core.api import Status
from kvstore.core.directory import BUCKET_NBYTES, ENTRY_NBYTES, Listed, bucket_of, find_entry, fingerprint, parse_entry
from kvstore.core.errors import FormatError, TierUnavailableError
from kvstore.core.key import ChunkKey
from kvstore.core.landing import COPIED_NBYTES, Landed, Landing
from kvstore.core.pool import SMALL_NBYTES, BufferPool

Bytes = npt.NDArray[np.uint8]


class Window:
    """A store's memory, mapped for reading; thread-safe.

    The words at its front tell whether a block is still the one that was leased. Through the directory chunks are read without a lease.

    Parameters
    ----------
    descriptor : int
        Of the memory; it may be closed behind this. Raises TierUnavailableError when it can't be mapped.
    place : DirectoryPlace
        Raises FormatError when it is not within the memory.
    """

    def __init__(self, descriptor: int, place: DirectoryPlace, pool: BufferPool, max_blob_nbytes: int) -> None:
        try:
            pages = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
            self.memory: Bytes = np.frombuffer(pages, np.uint8)
        except (OSError, ValueError) as error:
            raise TierUnavailableError(f"the store's memory can't be mapped: {error}") from error
        if not 0 < place.n_buckets <= (self.memory.nbytes - place.offset) // BUCKET_NBYTES:
            raise FormatError(f"a directory of {place.n_buckets} buckets at {place.offset} is not within {self.memory.nbytes} B")
        self._bytes = memoryview(pages)
        self._words = self._bytes[: self.memory.nbytes // 8 * 8].cast("Q")
        self._place, self._pool, self._max_blob_nbytes = place, pool, max_blob_nbytes

    def block(self, nbytes: int, place: Place) -> Bytes:
        """Return the memory of a leased block; one that does not lie within it raises FormatError."""
        if place.offset + nbytes > self.memory.nbytes or place.word >= len(self._words):
            raise FormatError(f"a block at {place.offset} of {nbytes} B is not within the memory of {self.memory.nbytes} B")
        return self.memory[place.offset : place.offset + nbytes]

    def is_current(self, place: Place) -> bool:
        """Tell whether a block is still the one that was leased."""
        return bool(self._words[place.word] == place.generation)

    def check(self, place: Place) -> None:
        """Raise TierUnavailableError when a block is no longer the one that was leased."""
        if not self.is_current(place):
            raise TierUnavailableError("the lease ended before the chunk was read; ask for it again")

    def find(self, key: ChunkKey) -> tuple[Listed, Unchanged] | None:
        """Return what the directory lists of a chunk, and what tells whether it still does."""
        found_by = fingerprint(self._place.salt, key)
        start = self._place.offset + bucket_of(found_by, self._place.n_buckets) * BUCKET_NBYTES
        bucket = bytes(self._bytes[start : start + BUCKET_NBYTES])
        at = find_entry(bucket, found_by)
        if at < 0:
            return None
        entry = bucket[at : at + ENTRY_NBYTES]
        listed = parse_entry(entry)
        if listed is None or listed.stamp <= self._words[0] or not self._holds(listed.offset, listed.nbytes):
            return None
        return listed, Unchanged(self._bytes[start + at : start + at + ENTRY_NBYTES], entry)

    def read(self, key: ChunkKey, ask: Callable[[], Landing | None]) -> tuple[Found, Landing] | None:
        """Return a chunk that the directory lists, None for any other. A small one is copied now.

        `ask` opens the same chunk by a request to the store: done when the block becomes another before all of a large chunk was copied.
        """
        entry = self.find(key)
        if entry is None:
            return None
        listed, is_same = entry
        source = self._bytes[listed.offset : listed.offset + listed.nbytes]
        found = Found(Status.READY, listed.tier, listed.nbytes)
        if listed.nbytes > SMALL_NBYTES:
            return found, CopiedByEntry(source, self._pool.take(listed.nbytes), is_same, ask)
        copy = bytes(source)
        return (found, Landed(memoryview(copy))) if is_same() else None

    def _holds(self, offset: int, nbytes: int) -> bool:
        return nbytes <= self._max_blob_nbytes and offset + nbytes <= self.memory.nbytes


class Unchanged:
    """Tells whether an entry is still what it was."""

    def __init__(self, now: memoryview, before: bytes) -> None:
        self._now, self._before = now, before

    def __call__(self) -> bool:
        return bytes(self._now) == self._before


class CopiedByEntry(Landing):
    """A chunk that is copied a piece at a time, each of which counts only while its entry is the same behind it.

    When it is not, the chunk is asked for, and what was handed out must be the front of what comes.
    """

    step_nbytes = COPIED_NBYTES

    def __init__(self, source: memoryview, buffer: memoryview, is_same: Unchanged, ask: Callable[[], Landing | None]) -> None:
        super().__init__(buffer)
        self._source: Bytes = np.frombuffer(source, np.uint8)
        self._target: Bytes = np.frombuffer(buffer, np.uint8)
        self._is_same, self._ask = is_same, ask
        self._asked: Landing | None = None

    def _receive(self, room: memoryview) -> int:
        end = min(self._wanted, self.filled + COPIED_NBYTES)
        if self._asked is None:
            np.copyto(self._target[self.filled : end], self._source[self.filled : end])
            if self._is_same():
                return end - self.filled
            self._asked = self._open_again()
        self._asked.fill(end)
        room[: end - self.filled] = self._asked.view[self.filled : end]
        return end - self.filled

    def _open_again(self) -> Landing:
        """Return the chunk as the store sends it now; raises TierUnavailableError when it is gone, or is another."""
        landing = self._ask()
        if landing is not None and landing.nbytes == self.nbytes:
            landing.fill(self.filled)
            if np.array_equal(np.frombuffer(landing.view, np.uint8)[: self.filled], self._target[: self.filled]):
                return landing
        if landing is not None:
            landing.close()
        raise TierUnavailableError("the chunk was removed while it was read; ask for it again")

    def _end(self) -> None:
        if self._asked is not None:
            self._asked.close()
