"""Count what a tier does: calls, bytes, seconds and errors, under `tier.<name>.`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from kvstore.core.blob import Buffer
from kvstore.core.errors import KVError
from kvstore.store.counters import Counters
from kvstore.store.tier import Tier, WrappedTier


class CountedTier(WrappedTier):
    """Adds to counters: `hits`, `misses`, `read_bytes`, `read_s`, `puts`, `written_bytes`, `write_s`, `errors`."""

    def __init__(self, tier: Tier, counters: Counters, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(tier)
        self._counters = counters
        self._clock = clock
        self._prefix = f"tier.{tier.info.name}."

    def get(self, key: bytes) -> memoryview | None:
        with self._timed("read_s"):
            data = self._tier.get(key)
        self._add("misses" if data is None else "hits")
        self._add("read_bytes", data.nbytes if data else 0)
        return data

    def put(self, key: bytes, pieces: Sequence[Buffer]) -> None:
        with self._timed("write_s"):
            self._tier.put(key, pieces)
        self._add("puts")
        self._add("written_bytes", sum(len(piece) for piece in pieces))

    def _add(self, name: str, amount: float = 1) -> None:
        self._counters.add(self._prefix + name, amount)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Add the seconds that the block takes, and an error if one passes."""
        start = self._clock()
        try:
            yield
        except KVError:
            self._add("errors")
            raise
        finally:
            self._add(name, self._clock() - start)
