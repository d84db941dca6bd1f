"""The breaker: a tier that does not answer is asked once, then left alone for a while."""

from __future__ import annotations

import pytest

from kvstore.core.errors import CapacityError, DeadlineError, TierUnavailableError
from kvstore.store.breaker import BreakerTier
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

    inner.get = probe  # type: ignore[method-assign,assignment]
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
