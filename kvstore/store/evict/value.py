"""Evict what saves the fewest seconds of computing per byte it takes."""

from __future__ import annotations

from collections.abc import Set
from typing import ClassVar

from kvstore.store.evict.heap import RankHeap
from kvstore.store.evict.policy import Item, Policy


class Value(Policy):
    """Lowest value first: age + reads x recompute seconds / bytes, so big, cheap and unread chunks go before small, dear and read ones.

    The age is the value of the last victim: what was valuable long ago falls behind what is read now. Among equals, and among chunks whose
    cost nobody measured, the least recently used goes first. Every call takes amortized O(log n).

    Paper: Cherkasova 1998, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency caching policy"; the cost is ours.
    """

    name: ClassVar[str] = "value"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._heap = RankHeap()
        self._reads: dict[bytes, int] = {}
        self._age = 0.0
        self._tick = 0

    def _inserted(self, item: Item) -> None:
        self._reads[item.key] = 0
        self._hit(item)

    def _hit(self, item: Item) -> None:
        self._tick += 1
        self._reads[item.key] += 1
        worth = self._reads[item.key] * item.recompute_s / max(item.nbytes, 1)
        self._heap.set(item.key, (self._age + worth, self._tick))

    def _removed(self, item: Item) -> None:
        del self._reads[item.key]
        self._heap.remove(item.key)

    def _pop_victim(self, pinned: Set[bytes]) -> Item:
        key, (value, _) = self._heap.pop(pinned)
        self._age = max(self._age, value)  # a pinned item that was passed over may be worth less than the age when its pin ends
        del self._reads[key]
        return self._items[key]
