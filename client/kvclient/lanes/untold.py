"""Reads that a store does not see by itself: counted here, and told together."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from kvstore.core.key import ChunkKey

TOLD_S = 0.05  # while chunks are read, the store hears of it at least as often, so that it is known to be alive
MOST_UNTOLD = 256


class Untold:
    """Counts the reads that the store has not been told of; thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._reads: Counter[ChunkKey] = Counter()
        self._n_reads = 0
        self._told_at = clock()

    def add(self, key: ChunkKey) -> None:
        """Count a read."""
        with self._lock:
            self._reads[key] += 1
            self._n_reads += 1

    def is_due(self) -> bool:
        """Tell whether the store has to hear of reads before the next one."""
        return self._n_reads >= MOST_UNTOLD or self._clock() - self._told_at > TOLD_S

    def take(self) -> Counter[ChunkKey]:
        """Return what is to be told now."""
        with self._lock:
            reads, self._reads, self._n_reads, self._told_at = self._reads, Counter(), 0, self._clock()
            return reads
