"""Evict what was not read for the longest time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Set
from typing import ClassVar

from kvstore.store.evict.policy import Item, Policy


class Lru(Policy):
    """Least recently used first. Every call takes O(1); evicting also passes over each pinned item older than the victim."""

    name: ClassVar[str] = "lru"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._order: OrderedDict[bytes, Item] = OrderedDict()  # oldest first

    def _inserted(self, item: Item) -> None:
        self._order[item.key] = item

    def _hit(self, item: Item) -> None:
        self._order.move_to_end(item.key)

    def _removed(self, item: Item) -> None:
        del self._order[item.key]

    def _pop_victim(self, pinned: Set[bytes]) -> Item:
        key = next(key for key in self._order if key not in pinned)
        return self._order.pop(key)
