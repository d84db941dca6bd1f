"""What the second store in rank was asked for in vain a moment ago, so that it is not asked again at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from kvstore.core.api import Hit, Status
from kvstore.core.key import ChunkKey

_MOST_KEYS = 1 << 16


class Lacking:
    """Remembers misses of stores for a short while. Thread-safe, bounded.

    A request asks for every form in which a passage may be stored, and most are stored nowhere: without this, each lookup would go to
    every store twice. What is put lies on the first store in rank from then on, and is found there. What another client put to the second,
    while the first was away for less than this counts, is missed until then; this must not be used for keys whose first store is away.

    Parameters
    ----------
    for_s : float
        How long a miss counts.
    """

    def __init__(self, for_s: float, clock: Callable[[], float]) -> None:
        self._for_s, self._clock = for_s, clock
        self._misses: OrderedDict[tuple[str, ChunkKey], tuple[float, Hit]] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, store: str, hit: Hit) -> None:
        """Take in a miss; anything else is nothing to remember."""
        if hit.status is Status.ABSENT:
            with self._lock:
                self._misses[store, hit.key] = self._clock() + self._for_s, hit
                self._misses.move_to_end((store, hit.key))
                while len(self._misses) > _MOST_KEYS:
                    self._misses.popitem(last=False)

    def forget(self, store: str, key: ChunkKey) -> None:
        """Take in that a store was given a chunk."""
        with self._lock:
            self._misses.pop((store, key), None)

    def find(self, store: str, key: ChunkKey) -> Hit | None:
        """Return the miss, if it is fresh."""
        with self._lock:
            until_s, hit = self._misses.get((store, key), (0.0, None))
            return hit if until_s > self._clock() else None
