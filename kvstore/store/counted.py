"""Count what a tier does: calls, bytes, seconds and errors, under `tier.<name>.`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from kvstore.core.blob import Buffer
from kvstore.core.errors import EvictedError, KVError
from kvstore.core.landing import Landing
from kvstore.store.counters import Counters
from kvstore.store.tier import Tier, WrappedTier
from kvstore.store.watched import Watched


class CountedTier(WrappedTier):
    """Adds to counters: `hits`, `misses`, `read_bytes`, `read_s`, `puts`, `written_bytes`, `write_s`, `errors`.

    A hit is counted when a landing is opened; its bytes and seconds while they are received. One whose record was evicted meanwhile is
    counted as a miss too.
    """

    def __init__(self, tier: Tier, counters: Counters, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(tier)
        self._counters = counters
        self._clock = clock
        self._prefix = f"tier.{tier.info.name}."
        self._names = tuple(self._prefix + name for name in ("hits", "misses", "read_bytes", "read_s"))

    def get(self, key: bytes) -> Landing | None:
        start = self._clock()
        try:
            landing = self._tier.get(key)
        except KVError:
            self._add("errors")
            raise
        hits, misses, read_bytes, read_s = self._names
        if landing is None:
            self._counters.add_all(((misses, 1), (read_s, self._clock() - start)))
            return None
        self._counters.add_all(((hits, 1), (read_bytes, landing.filled), (read_s, self._clock() - start)))
        return landing if landing.filled == landing.nbytes else Watched(landing, self._receive)

    def put(self, key: bytes, pieces: Sequence[Buffer]) -> None:
        with self._timed("write_s"):
            self._tier.put(key, pieces)
        self._add("puts")
        self._add("written_bytes", sum(len(piece) for piece in pieces))

    def _receive(self, receive: Callable[[], int]) -> int:
        with self._timed("read_s"):
            count = receive()
        self._add("read_bytes", count)
        return count

    def _add(self, name: str, amount: float = 1) -> None:
        self._counters.add(self._prefix + name, amount)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Add the seconds that the block takes, and an error if one passes."""
        start = self._clock()
        try:
            yield
        except EvictedError:
            self._add("misses")
            raise
        except KVError:
            self._add("errors")
            raise
        finally:
            self._add(name, self._clock() - start)
