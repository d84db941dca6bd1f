"""Stop asking a tier that does not answer, so that it costs its deadline once and then nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from kvstore.core.blob import Buffer
from kvstore.core.errors import DeadlineError, TierUnavailableError
from kvstore.store.tier import Listed, Tier, WrappedTier

T = TypeVar("T")


class BreakerTier(WrappedTier):
    """Refuses calls for a while after failures in a row.

    Closed: calls pass. After `failures` calls in a row that raised TierUnavailableError or DeadlineError it opens: calls raise
    TierUnavailableError at once. `cool_down_s` later one call passes as a probe while the others are still refused; its outcome closes
    the breaker or opens it for as long again.

    Parameters
    ----------
    failures : int
        Failures in a row that open it, at least 1.
    cool_down_s : float
        Seconds between probes.
    clock : callable
        Monotonic seconds.
    """

    def __init__(self, tier: Tier, failures: int = 1, cool_down_s: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(tier)
        self._failures = failures
        self._cool_down_s = cool_down_s
        self._clock = clock
        self._lock = threading.Lock()
        self._failed_in_a_row = 0
        self._refuses_until = 0.0

    @property
    def used_bytes(self) -> int:
        return self._call(lambda: self._tier.used_bytes)

    def get(self, key: bytes) -> memoryview | None:
        return self._call(lambda: self._tier.get(key))

    def put(self, key: bytes, pieces: Sequence[Buffer]) -> None:
        self._call(lambda: self._tier.put(key, pieces))

    def delete(self, key: bytes) -> bool:
        return self._call(lambda: self._tier.delete(key))

    def find(self, keys: Sequence[bytes]) -> list[int | None]:
        return self._call(lambda: self._tier.find(keys))

    def scan(self) -> Iterator[Listed]:
        return iter(self._call(lambda: list(self._tier.scan())))

    def quarantine(self, key: bytes) -> bool:
        return self._call(lambda: self._tier.quarantine(key))

    def _call(self, call: Callable[[], T]) -> T:
        """Make the call if the breaker lets it pass, and learn from its outcome; other errors than the two say nothing about health."""
        self._check()
        try:
            result = call()
        except (TierUnavailableError, DeadlineError):
            self._fail()
            raise
        with self._lock:
            self._failed_in_a_row = 0
        return result

    def _check(self) -> None:
        """Raise TierUnavailableError unless a call may pass; a call that passes an open breaker is the probe of this cool-down."""
        with self._lock:
            if self._failed_in_a_row < self._failures:
                return
            now = self._clock()
            if now < self._refuses_until:
                wait_s = self._refuses_until - now
                raise TierUnavailableError(f"tier {self.info.name}: did not answer; it is asked again in {wait_s:.1f} s")
            self._refuses_until = now + self._cool_down_s

    def _fail(self) -> None:
        with self._lock:
            self._failed_in_a_row += 1
            self._refuses_until = self._clock() + self._cool_down_s
