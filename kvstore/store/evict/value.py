"""Evict what is expected to save the fewest seconds of computing per byte it takes."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Set
from typing import ClassVar, NamedTuple

from kvstore.store.evict.heap import RankHeap
from kvstore.store.evict.policy import Item, Policy

_HALF_LIFE = 12.0  # reads per item that is held; measured: 8 follows changes a little sooner, 16 a stable trace a little closer
_GHOSTS = 4  # remembered victims per item that is held; with 2, one-shot traffic as large as the rest costs half as many hits again
_UNREAD = 0.5  # reads that a new item counts as: most of what is asked for once is never asked for again
_FEWEST = 16  # items that both are sized for at least


class _Reads(NamedTuple):
    """How often a key was read: `times` as it was at `clock`, halved by every unit of the clock since."""

    times: float
    clock: float


class Value(Policy):
    """Lowest value first: decayed reads x recompute seconds / bytes, so big, cheap and rarely read chunks go first.

    Reads are counted with a half-life of 12 reads per item held, so what was read often long ago falls behind what is read now, and nothing
    that is merely inserted ages the others. The counts of evicted keys are remembered, four per item held (about 250 B each): a key that
    comes back goes on where it was, while one that is asked for once stays at half a read and is the next to go. So one-shot traffic
    replaces itself and not what is read again. Refusing such newcomers altogether was measured and saved nothing more.

    All items decay alike, so the order between two of them changes with their own reads only, and log2(value) + clock is a rank that lasts.
    Among equals, and among chunks whose cost nobody measured, which go before all others, the least recently used goes first. Every call
    takes amortized O(log n).

    Where `recompute_s` tells what a chunk costs at its place, the head of a text that is read as a whole goes before its tail.

    Papers: Cherkasova 1998 (Greedy-Dual-Size-Frequency) and RAGCache (2404.12457, its PGDSF) for frequency x cost / size; Lee et al. 2001
    (LRFU) for counts that halve; Pensieve (2312.05516) for dropping the head, which is cheap to compute, and keeping the tail.
    """

    name: ClassVar[str] = "value"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._heap = RankHeap()
        self._reads: dict[bytes, _Reads] = {}
        self._ghosts: OrderedDict[bytes, _Reads] = OrderedDict()  # oldest victim first
        self._clock = 0.0  # in half-lives
        self._tick = 0

    def _inserted(self, item: Item) -> None:
        before = self._ghosts.pop(item.key, None)
        self._note(item, before, 1.0 if before else _UNREAD)

    def _hit(self, item: Item) -> None:
        self._note(item, self._reads[item.key], 1.0)

    def _removed(self, item: Item) -> None:
        del self._reads[item.key]
        self._heap.remove(item.key)

    def _pop_victim(self, pinned: Set[bytes]) -> Item:
        key, _ = self._heap.pop(pinned)
        self._ghosts[key] = self._reads.pop(key)
        while len(self._ghosts) > _GHOSTS * self._size():
            self._ghosts.popitem(last=False)
        return self._items[key]

    def _size(self) -> int:
        return max(len(self._items), _FEWEST)

    def _note(self, item: Item, before: _Reads | None, times: float) -> None:
        """Add reads to those from before and rank the item again."""
        self._clock += 1 / (_HALF_LIFE * self._size())
        self._tick += 1
        if before:
            times += before.times * 2 ** (before.clock - self._clock)
        self._reads[item.key] = _Reads(times, self._clock)
        worth = times * item.recompute_s / max(item.nbytes, 1)
        self._heap.set(item.key, (math.log2(worth) + self._clock if worth > 0 else -math.inf, self._tick))
