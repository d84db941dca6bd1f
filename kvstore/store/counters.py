"""Named counters that many threads add to."""

from __future__ import annotations

import threading
from collections.abc import Iterable


class Counters:
    """A map from name to a sum; a name that was never added to is 0."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, float] = {}

    def add(self, name: str, amount: float = 1, reason: str = "") -> None:
        """Add to one counter, and with a reason to `name.reason` too."""
        with self._lock:
            self._sums[name] = self._sums.get(name, 0) + amount
            if reason:
                self._sums[f"{name}.{reason}"] = self._sums.get(f"{name}.{reason}", 0) + amount

    def add_all(self, amounts: Iterable[tuple[str, float]]) -> None:
        """Add to several counters at once."""
        with self._lock:
            for name, amount in amounts:
                self._sums[name] = self._sums.get(name, 0) + amount

    def __getitem__(self, name: str) -> float:
        with self._lock:
            return self._sums.get(name, 0)

    def snapshot(self) -> dict[str, float]:
        """Return a copy of all counters, sorted by name."""
        with self._lock:
            return dict(sorted(self._sums.items()))
