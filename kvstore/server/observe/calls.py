"""The calls that a server answers: how many, how long they take and how they end."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from kvstore.core.histogram import SECONDS

OK = "OK"


class Times:
    """The seconds and statuses of one call's runs. One thread adds at a time; a reader may miss the last one.

    Cheaper than a histogram with a lock, since a chunk of 4 KiB is served in less than 100 us.
    """

    def __init__(self) -> None:
        self.bounds: tuple[float, ...] = SECONDS
        self.ends: Counter[str] = Counter()
        self._counts = [0] * (len(SECONDS) + 1)
        self._total = 0.0

    def add(self, seconds: float, code: str) -> None:
        """Count one run."""
        self._counts[bisect_left(SECONDS, seconds)] += 1
        self._total += seconds
        self.ends[code] += 1

    def merge(self, other: Times) -> None:
        """Add what another counted."""
        self._counts = [own + more for own, more in zip(self._counts, other._counts, strict=True)]
        self._total += other._total
        self.ends.update(other.ends)

    def snapshot(self) -> tuple[list[int], float]:
        """Return how many runs took at most each bound, all of them last, and their seconds."""
        return list(accumulate(self._counts)), self._total

    def quantile(self, share: float) -> float:
        """Return the bound that a share of all runs did not exceed; 0 without any, the last bound for those above it."""
        counts, _ = self.snapshot()
        return SECONDS[min(bisect_left(counts, share * counts[-1]), len(SECONDS) - 1)] if counts[-1] else 0.0


class Sheet(dict[str, Times]):
    """The times of calls by name, written by one thread at a time."""

    def __missing__(self, call: str) -> Times:
        return self.setdefault(call, Times())


class CallLog:
    """Collects the sheets of threads and connections, by lane. Thread-safe.

    Names of lanes and calls come from our own code, so there are few.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done: dict[str, Sheet] = {}
        self._open: list[tuple[str, Sheet]] = []
        self._local = threading.local()
        self.under_way: set[object] = set()  # whoever has begun and not ended; adding and discarding need no lock

    def open(self, lane: str) -> Sheet:
        """Return a new sheet; give it back to `close`."""
        sheet = Sheet()
        with self._lock:
            self._open.append((lane, sheet))
        return sheet

    def close(self, sheet: Sheet) -> None:
        """Take a sheet back, with what it holds. Safe to call again."""
        with self._lock:
            lane = next((lane for lane, each in self._open if each is sheet), None)
            if lane is not None:
                self._open = [(name, each) for name, each in self._open if each is not sheet]
                _merge(self._done.setdefault(lane, Sheet()), sheet)

    def mine(self, lane: str) -> Sheet:
        """Return the sheet of this thread, which lives as long as the log."""
        sheet: Sheet | None = getattr(self._local, lane, None)
        if sheet is None:
            sheet = self.open(lane)
            setattr(self._local, lane, sheet)
        return sheet

    def times(self) -> dict[tuple[str, str], Times]:
        """Return the times of all calls, by lane and call."""
        with self._lock:
            sheets: Sequence[tuple[str, Sheet]] = [*self._done.items(), *self._open]
        merged: dict[str, Sheet] = {}
        for lane, sheet in sheets:
            _merge(merged.setdefault(lane, Sheet()), sheet)
        return {(lane, call): times for lane, sheet in merged.items() for call, times in sheet.items()}


def _merge(into: Sheet, sheet: Sheet) -> None:
    for call, times in list(sheet.items()):
        into[call].merge(times)
