"""A heap whose entries may change: old entries stay until they surface or outnumber the live ones."""

from __future__ import annotations

import heapq
from collections.abc import Set

Rank = tuple[float, int]  # lowest goes first; the second number settles ties, oldest first


class RankHeap:
    """Keys by rank. Setting, removing and popping take amortized O(log n), plus O(log n) for each pinned key that is passed over."""

    def __init__(self) -> None:
        self._ranks: dict[bytes, Rank] = {}
        self._heap: list[tuple[Rank, bytes]] = []

    def set(self, key: bytes, rank: Rank) -> None:
        """Give a key its rank, replacing an older one."""
        self._ranks[key] = rank
        heapq.heappush(self._heap, (rank, key))
        if len(self._heap) > 2 * len(self._ranks) + 64:
            self._heap = [(rank, key) for key, rank in self._ranks.items()]
            heapq.heapify(self._heap)

    def remove(self, key: bytes) -> None:
        """Drop a key; its entry is skipped when it surfaces."""
        self._ranks.pop(key, None)

    def pop(self, pinned: Set[bytes]) -> tuple[bytes, Rank]:
        """Drop and return the key of the lowest rank that is not pinned; raises IndexError when there is none."""
        passed: list[tuple[Rank, bytes]] = []
        try:
            while True:
                rank, key = heapq.heappop(self._heap)
                if self._ranks.get(key) != rank:
                    continue
                if key not in pinned:
                    del self._ranks[key]
                    return key, rank
                passed.append((rank, key))
        finally:
            for entry in passed:
                heapq.heappush(self._heap, entry)
