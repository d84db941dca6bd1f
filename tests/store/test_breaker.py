"""The breaker: a tier that does not answer is asked once, then left alone for a while."""

from __future__ import annotations

import pytest

from kvstore.core.errors import CapacityError, CorruptError, DeadlineError, TierUnavailableError
from kvstore.core.landing import Landing
from kvstore.store.breaker import BreakerTier, BusyError
from kvstore.store.counted import CountedTier
from kvstore.store.counters import Counters
from kvstore.store.memory import MemoryTier
from tests.store.faulty import FaultyTier

KEY = bytes(32)


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def ask(breaker: BreakerTier, times: int = 1) -> None:
    """Read a key so many times, whatever comes of it."""
    for _ in range(times):
        with pytest.raises((TierUnavailableError, DeadlineError)):
            breaker.get(KEY)


@pytest.mark.parametrize("error", [TierUnavailableError("down"), DeadlineError("slow")])
def test_after_enough_failures_in_a_row_nothing_is_asked(error: Exception) -> None:
    """Down costs the deadline so many times as the setting says, and then nothing."""
    inner = FaultyTier(MemoryTier(1000))
    breaker = BreakerTier(inner, failures=3, cool_down_s=10.0, clock=Clock())
    inner.error = error  # type: ignore[assignment]
    ask(breaker, times=20)
    assert inner.calls == 3


def test_a_success_in_between_starts_the_count_again() -> None:
    """Failures count in a row only."""
    inner = FaultyTier(MemoryTier(1000))
    breaker = BreakerTier(inner, failures=2, clock=Clock())
    for _ in range(3):
        inner.error = TierUnavailableError("down")
        ask(breaker)
        inner.error = None
        assert breaker.get(KEY) is None


def test_one_probe_per_cool_down_decides() -> None:
    """A failed probe costs one deadline per cool-down; a good one lets everything pass."""
    inner, clock = FaultyTier(MemoryTier(1000)), Clock()
    breaker = BreakerTier(inner, cool_down_s=10.0, clock=clock)
    inner.error = TierUnavailableError("down")
    ask(breaker, times=3)
    clock.now_s = 10.0
    ask(breaker, times=3)
    assert inner.calls == 2
    inner.error, clock.now_s = None, 20.0
    assert [breaker.get(KEY) for _ in range(3)] == [None] * 3


def test_while_a_probe_is_under_way_others_are_refused() -> None:
    """A slow tier must not be asked by everybody at the end of each cool-down."""
    inner, clock = FaultyTier(MemoryTier(1000)), Clock()
    breaker = BreakerTier(inner, cool_down_s=10.0, clock=clock)
    inner.error = TierUnavailableError("down")
    ask(breaker)
    clock.now_s = 10.0
    probed: list[int] = []

    def probe(key: bytes) -> None:
        ask(breaker)  # another caller, while the first one waits for its answer
        probed.append(inner.calls)

    inner.get = probe  # type: ignore[method-assign]
    breaker.get(KEY)
    assert probed == [1]


def test_a_full_tier_is_not_a_dead_one() -> None:
    """Other errors say nothing about whether the tier answers."""
    inner = FaultyTier(MemoryTier(1000))
    breaker = BreakerTier(inner, clock=Clock())
    inner.error = CapacityError("full")
    for _ in range(3):
        with pytest.raises(CapacityError):
            breaker.put(KEY, [b""])
    assert inner.calls == 3


class Stalling(Landing):
    """One byte is there; the next ones raise `error`, or come one at a time."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__(memoryview(bytearray(4)), 1)
        self._error = error

    def _receive(self, room: memoryview) -> int:
        if self._error is not None:
            raise self._error
        return 1


def landing_through(breaker: BreakerTier, inner: FaultyTier, error: Exception | None) -> Landing:
    """Return what a breaker hands out when its tier gives a landing that goes on with `error`."""
    inner.get = lambda key: Stalling(error)  # type: ignore[method-assign]
    landing = breaker.get(KEY)
    assert landing is not None
    return landing


@pytest.mark.parametrize("error", [TierUnavailableError("down"), DeadlineError("slow")])
def test_a_failure_while_bytes_land_counts(error: Exception) -> None:
    """A tier that answers `get` and then stalls is as dead as one that does not answer."""
    inner = FaultyTier(MemoryTier(1000))
    breaker = BreakerTier(inner, cool_down_s=10.0, clock=Clock())
    landing = landing_through(breaker, inner, error)
    with pytest.raises(type(error)):
        landing.fill(4)
    ask(breaker, times=3)


@pytest.mark.parametrize("error", [CorruptError("damaged"), BusyError("all lent")])
def test_other_failures_while_bytes_land_do_not_count(error: Exception) -> None:
    """They say nothing about whether the tier answers."""
    inner = FaultyTier(MemoryTier(1000))
    breaker = BreakerTier(inner, clock=Clock())
    landing = landing_through(breaker, inner, error)
    with pytest.raises(type(error)):
        landing.fill(4)
    assert breaker.get(KEY) is not None


def test_a_deadline_of_the_readers_own_does_not_count() -> None:
    """An impatient reader must not cut off everybody."""
    inner = FaultyTier(MemoryTier(1000))
    breaker = BreakerTier(inner, clock=Clock())
    landing = landing_through(breaker, inner, None)
    landing.deadline = 0.0
    with pytest.raises(DeadlineError):
        landing.fill(4)
    assert breaker.get(KEY) is not None


def test_bytes_that_land_start_the_count_again() -> None:
    """As any other answer does."""
    inner = FaultyTier(MemoryTier(1000))
    breaker = BreakerTier(inner, failures=2, clock=Clock())
    landing = landing_through(breaker, inner, None)
    inner.error = TierUnavailableError("down")
    with pytest.raises(TierUnavailableError):
        breaker.put(KEY, [b""])
    landing.fill(4)
    with pytest.raises(TierUnavailableError):
        breaker.put(KEY, [b""])
    inner.error = None
    assert breaker.get(KEY) is not None


def test_bytes_are_counted_as_they_land() -> None:
    """Seconds too; what is never read is not counted."""
    inner, counters = FaultyTier(MemoryTier(1000)), Counters()
    inner.get = lambda key: Stalling(None)  # type: ignore[method-assign]
    landing = CountedTier(inner, counters).get(KEY)
    assert landing is not None
    landing.fill(3)
    counts = counters.snapshot()
    assert (counts["tier.memory.hits"], counts["tier.memory.read_bytes"]) == (1, 3)
