"""The calls that a server answers: how many run, how long they take and how they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kvstore.core.errors import KVError
from kvstore.core.histogram import Histogram

OK = "OK"


class CallLog:
    """Counts calls by lane and name; both come from our own code, so there are few. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._times: dict[tuple[str, str], Histogram] = {}
        self._ends: dict[tuple[str, str, str], int] = {}
        self._n_running = 0

    @property
    def n_running(self) -> int:
        """Calls that have begun and not ended."""
        return self._n_running

    def begin(self) -> float:
        """Note that a call begins; give `end` what this returns."""
        with self._lock:
            self._n_running += 1
        return self._clock()

    def end(self, lane: str, call: str, began: float, code: str = OK) -> None:
        """Note that a call ended, and with which status."""
        seconds = self._clock() - began
        with self._lock:
            self._n_running -= 1
            self._ends[lane, call, code] = self._ends.get((lane, call, code), 0) + 1
            times = self._times.get((lane, call))
            if times is None:
                times = self._times[lane, call] = Histogram()
        times.add(seconds)

    @contextmanager
    def timed(self, lane: str, call: str) -> Iterator[None]:
        """Time the block as a call; an error that passes is its status."""
        began, code = self.begin(), OK
        try:
            yield
        except BaseException as error:
            code = error.code if isinstance(error, KVError) else "INTERNAL"
            raise
        finally:
            self.end(lane, call, began, code)

    def times(self) -> dict[tuple[str, str], Histogram]:
        """Return the seconds of calls, by lane and call."""
        with self._lock:
            return dict(self._times)

    def ends(self) -> dict[tuple[str, str, str], int]:
        """Return how many calls ended, by lane, call and status."""
        with self._lock:
            return dict(self._ends)
