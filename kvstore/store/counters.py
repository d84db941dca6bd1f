"""Named counters that many threads add to."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable

Sums = dict[str, float]


class Counters:
    """A map from name to a sum; a name that was never added to is 0.

    Each thread adds to sums of its own, so adding needs no lock; whoever reads adds up those of all threads. What threads counted that
    have ended is kept.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended: Sums = {}
        self._running: list[tuple[weakref.ref[threading.Thread], Sums]] = []
        self._local = threading.local()

    def add(self, name: str, amount: float = 1, reason: str = "") -> None:
        """Add to one counter, and with a reason to `name.reason` too."""
        sums = self._own()
        sums[name] = sums.get(name, 0) + amount
        if reason:
            sums[f"{name}.{reason}"] = sums.get(f"{name}.{reason}", 0) + amount

    def add_all(self, amounts: Iterable[tuple[str, float]]) -> None:
        """Add to several counters."""
        sums = self._own()
        for name, amount in amounts:
            sums[name] = sums.get(name, 0) + amount

    def __getitem__(self, name: str) -> float:
        return self.snapshot().get(name, 0)

    def snapshot(self) -> dict[str, float]:
        """Return a copy of all counters, sorted by name."""
        with self._lock:
            total = dict(self._ended)
            for _, sums in self._running:
                _merge(total, sums)
        return dict(sorted(total.items()))

    def _own(self) -> Sums:
        """Return this thread's sums."""
        try:
            return self._local.sums  # type: ignore[no-any-return]
        except AttributeError:
            return self._begin()

    def _begin(self) -> Sums:
        """Make sums for this thread, and keep what threads counted that have ended since the last one began."""
        sums = self._local.sums = Sums()
        with self._lock:
            running = []
            for thread, counted in self._running:
                if (alive := thread()) is not None and alive.is_alive():
                    running.append((thread, counted))
                else:
                    _merge(self._ended, counted)
            self._running = [*running, (weakref.ref(threading.current_thread()), sums)]
        return sums


def _merge(into: Sums, sums: Sums) -> None:
    """Add sums to others; a copy is taken first, in one step, since their thread goes on."""
    for name, amount in sums.copy().items():
        into[name] = into.get(name, 0) + amount
