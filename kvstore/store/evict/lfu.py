"""Evict what was read least often."""

from __future__ import annotations

from collections.abc import Set
from typing import ClassVar

from kvstore.store.evict.heap import RankHeap
from kvstore.store.evict.policy import Item, Policy


class Lfu(Policy):
    """Least frequently used first, the least recently used among equals. Every call takes amortized O(log n).

    The count of an item starts at 1 and is forgotten with the item.
    """

    name: ClassVar[str] = "lfu"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._heap = RankHeap()
        self._count: dict[bytes, int] = {}
        self._tick = 0

    def _inserted(self, item: Item) -> None:
        self._count[item.key] = 0
        self._hit(item)

    def _hit(self, item: Item) -> None:
        self._tick += 1
        self._count[item.key] += 1
        self._heap.set(item.key, (self._count[item.key], self._tick))

    def _removed(self, item: Item) -> None:
        del self._count[item.key]
        self._heap.remove(item.key)

    def _pop_victim(self, pinned: Set[bytes]) -> Item:
        key, _ = self._heap.pop(pinned)
        del self._count[key]
        return self._items[key]
