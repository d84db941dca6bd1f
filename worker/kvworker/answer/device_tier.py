"""The tier nearest to the model: decoded passages in device memory, under a byte budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock

from kvstore.core.errors import InvalidInputError
from kvstore.core.key import ChunkKey
from kvworker.chunk import PassageKV

TenantKey = tuple[str, ChunkKey]
"""Whose chunk, and which: a tenant never finds another's, not even faster."""


@dataclass(frozen=True)
class DeviceTierStats:
    """What the tier holds and what it was asked for since it was made."""

    n_passages: int
    used_bytes: int
    capacity_bytes: int
    hits: int
    misses: int
    evictions: int


class DeviceTier:
    """Least recently used passages leave first; the budget is never exceeded. Thread-safe.

    A passage that was got stays valid after it left the tier: its memory is free once nobody holds it. That memory is not in the budget.
    """

    def __init__(self, capacity_bytes: int) -> None:
        if capacity_bytes < 0:
            raise InvalidInputError(f"the device tier's capacity must be 0 B or more, got {capacity_bytes} B")
        self._capacity_bytes = capacity_bytes
        self._passages: OrderedDict[TenantKey, PassageKV] = OrderedDict()
        self._used_bytes = self._hits = self._misses = self._evictions = 0
        self._lock = Lock()

    def takes(self, nbytes: int) -> bool:
        """Whether a passage of this size is kept at all."""
        return nbytes <= self._capacity_bytes

    def get(self, key: TenantKey) -> PassageKV | None:
        """Return a passage and make it the most recently used, or None; either is counted."""
        with self._lock:
            passage = self._passages.get(key)
            if passage is None:
                self._misses += 1
            else:
                self._hits += 1
                self._passages.move_to_end(key)
            return passage

    def nbytes(self, key: TenantKey) -> int:
        """Return the size of a passage, 0 if it is not here, without counting or touching it."""
        with self._lock:
            return _nbytes(self._passages.get(key, ()))

    def put(self, key: TenantKey, passage: PassageKV) -> bool:
        """Keep a passage, evicting others as needed; return False when it is larger than the whole budget."""
        nbytes = _nbytes(passage)
        with self._lock:
            if nbytes > self._capacity_bytes:
                return False
            self._remove(key)
            while self._used_bytes + nbytes > self._capacity_bytes:
                self._remove(next(iter(self._passages)))
                self._evictions += 1
            self._passages[key] = passage
            self._used_bytes += nbytes
            return True

    def drop(self, keys: Iterable[TenantKey]) -> None:
        """Forget these passages; unknown keys are ignored."""
        with self._lock:
            for key in keys:
                self._remove(key)

    def clear(self) -> None:
        """Forget every passage."""
        with self._lock:
            self._passages.clear()
            self._used_bytes = 0

    def stats(self) -> DeviceTierStats:
        """Return one consistent reading of all counters."""
        with self._lock:
            return DeviceTierStats(len(self._passages), self._used_bytes, self._capacity_bytes, self._hits, self._misses, self._evictions)

    def _remove(self, key: TenantKey) -> None:
        """Remove a passage if it is here; the lock is held."""
        passage = self._passages.pop(key, None)
        if passage is not None:
            self._used_bytes -= _nbytes(passage)


def _nbytes(passage: PassageKV) -> int:
    return sum(chunk.nbytes for chunk in passage)
