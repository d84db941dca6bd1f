"""Balance recency against frequency by what would have been hit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Set
from typing import ClassVar

from kvstore.store.evict.policy import Item, Policy


class _Queue(OrderedDict[bytes, Item]):
    """Items from least to most recently used, with the sum of their bytes."""

    nbytes = 0

    def add(self, item: Item) -> None:
        self[item.key] = item
        self.nbytes += item.nbytes

    def take(self, key: bytes) -> Item:
        item = self.pop(key)
        self.nbytes -= item.nbytes
        return item

    def oldest(self, pinned: Set[bytes] = frozenset()) -> Item | None:
        return next((item for key, item in self.items() if key not in pinned), None)


class Arc(Policy):
    """Adaptive replacement: what was read once and what was read again compete, and the keys of past victims move the border.

    Items read once since they came lie in `recent`, the others in `frequent`; the keys of their victims are kept as ghosts, which take no
    room in the tier. A ghost that comes back shows that its side was too small: `target` is the bytes that `recent` should have. Sizes
    are bytes where the paper counts pages of one size. Every call takes amortized O(1); evicting also passes over pinned items.

    Paper: Megiddo and Modha, FAST 2003, "ARC: a self-tuning, low overhead replacement cache", figure 4.
    """

    name: ClassVar[str] = "arc"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self.target = 0.0
        self._recent, self._frequent = _Queue(), _Queue()  # T1, T2
        self._recent_ghosts, self._frequent_ghosts = _Queue(), _Queue()  # B1, B2
        self._returning: dict[bytes, bool] = {}  # keys between on_miss and on_insert -> whether they were ghosts of `frequent`

    def on_miss(self, key: bytes) -> None:
        """Move the border when `key` is a ghost; the item goes to `frequent` when it is inserted."""
        recent, frequent = self._recent_ghosts, self._frequent_ghosts
        if key in recent:
            step = recent[key].nbytes * max(frequent.nbytes / recent.nbytes, 1)
            self.target = min(self.capacity_bytes, self.target + step)
            recent.take(key)
            self._returning[key] = False
        elif key in frequent:
            step = frequent[key].nbytes * max(recent.nbytes / frequent.nbytes, 1)
            self.target = max(0.0, self.target - step)
            frequent.take(key)
            self._returning[key] = True

    def on_remove(self, key: bytes) -> None:
        """Forget an item, and what was remembered for a key that does not come in after all."""
        self._returning.pop(key, None)
        super().on_remove(key)

    def _inserted(self, item: Item) -> None:
        returns = self._returning.pop(item.key, None) is not None
        (self._frequent if returns else self._recent).add(item)
        self._trim_ghosts()

    def _hit(self, item: Item) -> None:
        self._removed(item)
        self._frequent.add(item)

    def _removed(self, item: Item) -> None:
        (self._recent if item.key in self._recent else self._frequent).take(item.key)

    def _pop_victim(self, pinned: Set[bytes]) -> Item:
        recent, frequent = self._recent.oldest(pinned), self._frequent.oldest(pinned)
        if recent and (frequent is None or self._recent_is_over()):
            self._recent.take(recent.key)
            self._recent_ghosts.add(recent)
            return recent
        assert frequent is not None
        self._frequent.take(frequent.key)
        self._frequent_ghosts.add(frequent)
        return frequent

    def _recent_is_over(self) -> bool:
        """Tell whether `recent` has more than its target, or exactly that while a ghost of `frequent` returns."""
        return self._recent.nbytes > self.target or (self._recent.nbytes == self.target and any(self._returning.values()))

    def _trim_ghosts(self) -> None:
        """Forget the oldest ghosts: `recent` with its ghosts covers at most the capacity, everything together at most twice that."""
        while self._recent_ghosts and self._recent.nbytes + self._recent_ghosts.nbytes > self.capacity_bytes:
            self._recent_ghosts.take(next(iter(self._recent_ghosts)))
        while self._frequent_ghosts and self._total_nbytes() > 2 * self.capacity_bytes:
            self._frequent_ghosts.take(next(iter(self._frequent_ghosts)))

    def _total_nbytes(self) -> int:
        return self._recent.nbytes + self._frequent.nbytes + self._recent_ghosts.nbytes + self._frequent_ghosts.nbytes
