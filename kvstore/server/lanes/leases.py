"""What one connection reads in place: blocks that stay as they are until it says so, or too much time has passed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from kvclient.lanes.frames import Place
from kvstore.store.memory import BlockLanding
from kvstore.store.shared_blocks import SharedBlocks

LEASE_S = 30.0
MAX_LEASES = 1 << 16  # of one connection


class Leases:
    """Keeps blocks alive for a reader in another process. Thread-safe: time runs out on another thread than the connection's."""

    def __init__(self, blocks: SharedBlocks, lease_s: float = LEASE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._blocks = blocks
        self._lease_s = lease_s
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[int, tuple[BlockLanding, float]] = {}
        self._last = 0

    def grant(self, landing: BlockLanding) -> Place | None:
        """Keep a block for the reader and say where it lies; None when no more can be kept."""
        generation = self._blocks.share(landing.block_offset)
        if generation is None:
            return None
        with self._lock:
            if len(self._held) >= MAX_LEASES:
                return None
            self._last += 1
            self._held[self._last] = (landing, self._clock() + self._lease_s)
            return Place(self._blocks.arena_offset + landing.offset, generation.value, self._last, generation.word)

    def end(self, leases: Iterable[int]) -> None:
        """Let go of blocks; a lease that is not known ended before."""
        with self._lock:
            for lease in leases:
                self._held.pop(lease, None)

    def expire(self) -> int:
        """Let go of what was kept for too long; return how many."""
        now = self._clock()
        with self._lock:
            old = [lease for lease, (_, until) in self._held.items() if until <= now]
            for lease in old:
                del self._held[lease]
        return len(old)

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._held.clear()
