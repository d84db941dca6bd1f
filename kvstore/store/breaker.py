"""Stop asking whoever does not answer, so that it costs its deadline once and then nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from kvstore.core.blob import Buffer
from kvstore.core.errors import DeadlineError, TierUnavailableError
from kvstore.core.landing import Landing
from kvstore.store.tier import Listed, Tier, WrappedTier
from kvstore.store.watched import Watched

T = TypeVar("T")


class BusyError(TierUnavailableError):
    """All connections are lent; it says nothing about the health of what they lead to."""


class RestingError(TierUnavailableError):
    """It did not answer before and is not asked now."""


class Breaker:
    """Remembers failures in a row. Thread-safe.

    Closed: calls pass. After `failures` in a row it opens: `check` raises RestingError at once. `cool_down_s` later one call passes
    as a probe while the others are still refused; its outcome closes the breaker or opens it for as long again.

    Parameters
    ----------
    name : str
        What does not answer, for messages.
    failures : int
        Failures in a row that open it, at least 1.
    cool_down_s : float
        Seconds between probes.
    clock : callable
        Monotonic seconds.
    """

    def __init__(self, name: str, failures: int = 1, cool_down_s: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._failures = failures
        self._cool_down_s = cool_down_s
        self._clock = clock
        self._lock = threading.RLock()  # what the collector ends while it is held may have something to report
        self._failed_in_a_row = 0
        self._refuses_until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether calls are refused, but for one probe per cool-down."""
        return self._failed_in_a_row >= self._failures

    def check(self) -> None:
        """Raise RestingError unless a call may pass; a call that passes an open breaker is the probe of this cool-down."""
        with self._lock:
            if not self.is_open:
                return
            now = self._clock()
            if now < self._refuses_until:
                wait_s = self._refuses_until - now
                raise RestingError(f"{self._name}: did not answer; it is asked again in {wait_s:.1f} s")
            self._refuses_until = now + self._cool_down_s

    def fail(self) -> None:
        """Count a call that was not answered."""
        with self._lock:
            self._failed_in_a_row += 1
            self._refuses_until = self._clock() + self._cool_down_s

    def succeed(self) -> None:
        """Note a call that was answered: the count begins again."""
        with self._lock:
            self._failed_in_a_row = 0


class BreakerTier(WrappedTier):
    """Refuses calls for a while after failures in a row: a TierUnavailableError or DeadlineError of a call, or of a landing's receive.

    Parameters are those of `Breaker`.
    """

    def __init__(self, tier: Tier, failures: int = 1, cool_down_s: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(tier)
        self._breaker = Breaker(f"tier {tier.info.name}", failures, cool_down_s, clock)

    @property
    def used_bytes(self) -> int:
        return self._call(lambda: self._tier.used_bytes)

    @property
    def n_resting(self) -> int:
        return int(self._breaker.is_open) + self._tier.n_resting

    def get(self, key: bytes) -> Landing | None:
        """Begin to read; what the landing receives later counts too, and is not refused once it has begun."""
        landing = self._call(lambda: self._tier.get(key))
        if landing is None or landing.filled == landing.nbytes:
            return landing
        return Watched(landing, self._learn)

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
        """Make the call if the breaker lets it pass, and learn from its outcome."""
        self._breaker.check()
        return self._learn(call)

    def _learn(self, call: Callable[[], T]) -> T:
        """Make the call and learn from its outcome; other errors than the two, and a busy tier, say nothing about health."""
        try:
            result = call()
        except BusyError:
            raise
        except (TierUnavailableError, DeadlineError):
            self._breaker.fail()
            raise
        self._breaker.succeed()
        return result
