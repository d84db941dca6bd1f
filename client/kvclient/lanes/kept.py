"""Leases of views that were closed: kept for a moment, so that the same chunk is viewed again without a word to the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

from kvclient.lanes.frames import Place

L = TypeVar("L")

MOST = 32
_KEPT_S = 2.0  # behind the last view; what is kept cannot make room for others
_REUSED_S = 10.0  # from when the store was asked: of its 30 seconds, a view has 20 at least


class Lease(NamedTuple, Generic[L]):
    """A lease, the connection it belongs to, and when it was asked for."""

    line: L
    place: Place
    asked_at: float


class KeptLeases(Generic[L]):
    """At most `MOST` leases that nobody uses now, by where their blocks begin. Thread-safe without a lock: a view may be closed anywhere.

    `end` tells the store that a lease is over.
    """

    def __init__(self, end: Callable[[Lease[L]], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._end, self._clock = end, clock
        self._kept: dict[int, tuple[Lease[L], float]] = {}

    def take(self, offset: int) -> Lease[L] | None:
        """Return the lease of the block at `offset`, which nobody else gets then; one that is too old ends."""
        found = self._kept.pop(offset, None)
        if found is None:
            return None
        if self._clock() - found[0].asked_at < _REUSED_S:
            return found[0]
        self._end(found[0])
        return None

    def give(self, lease: Lease[L]) -> None:
        """Keep a lease whose view was closed; the one that was kept for longest ends where there are too many."""
        before = self._kept.pop(lease.place.offset, None)
        self._kept[lease.place.offset] = (lease, self._clock() + _KEPT_S)
        self._drop([before] if before else [])
        self._drop(self._kept.pop(offset, None) for offset in list(self._kept)[:-MOST])

    def sweep(self) -> None:
        """End what was not used for a while."""
        now = self._clock()
        self._drop(self._kept.pop(offset, None) for offset, (_, until) in list(self._kept.items()) if until < now)

    def _drop(self, gone: Iterable[tuple[Lease[L], float] | None]) -> None:
        for entry in gone:
            if entry is not None:
                self._end(entry[0])
