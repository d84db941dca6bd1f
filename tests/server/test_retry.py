"""Trying again."""

from __future__ import annotations

import pytest

from kvclient.retry import Deadline, Retry
from kvstore.core.errors import AuthError, CapacityError, ConfigError, DeadlineError, KVError, TierUnavailableError


class FakeTime:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.pauses_s: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let time pass at once."""
        self.now_s += seconds
        self.pauses_s.append(seconds)


class Flaky:
    """An operation that fails a few times."""

    def __init__(self, *failures: KVError) -> None:
        self.failures = list(failures)
        self.calls = 0

    def __call__(self, left_s: float) -> str:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return "done"


@pytest.fixture
def time() -> FakeTime:
    """The clock of a test."""
    return FakeTime()


def retry_with(time: FakeTime, attempts: int = 4) -> Retry:
    """Return a seeded retry that sleeps on the fake clock."""
    return Retry(attempts, first_pause_s=0.1, longest_pause_s=0.4, seed=3, sleep=time.sleep)


def test_a_retryable_failure_is_tried_again(time: FakeTime) -> None:
    """Until it works."""
    operation = Flaky(TierUnavailableError("down"), CapacityError("full"))
    assert retry_with(time).call(operation, Deadline.after(10, time)) == "done"
    assert operation.calls == 3


@pytest.mark.parametrize("error", [AuthError("no"), DeadlineError("late"), KVError("broken")], ids=lambda e: type(e).__name__)
def test_other_failures_are_not_tried_again(time: FakeTime, error: KVError) -> None:
    """They would fail the same way."""
    operation = Flaky(error)
    with pytest.raises(type(error)):
        retry_with(time).call(operation, Deadline.after(10, time))
    assert operation.calls == 1


def test_the_last_failure_is_raised_when_the_attempts_are_used_up(time: FakeTime) -> None:
    """Four tries are four calls."""
    operation = Flaky(*(TierUnavailableError(str(n)) for n in range(9)))
    with pytest.raises(TierUnavailableError, match="3"):
        retry_with(time).call(operation, Deadline.after(10, time))
    assert operation.calls == 4


def test_pauses_grow_up_to_the_longest_and_jitter_by_half(time: FakeTime) -> None:
    """So that clients that failed together do not come back together."""
    pauses_s = [retry_with(time).pause_s(attempt) for attempt in range(1, 8)]
    for pause_s, most_s in zip(pauses_s, [0.1, 0.2, 0.4, 0.4, 0.4, 0.4, 0.4], strict=True):
        assert most_s / 2 <= pause_s <= most_s


def test_equal_seeds_give_equal_pauses(time: FakeTime) -> None:
    """A test can tell what will happen."""
    assert [r.pause_s(1) for r in (retry_with(time),) * 1] == [retry_with(FakeTime()).pause_s(1)]


def test_no_pause_goes_beyond_the_deadline(time: FakeTime) -> None:
    """The failure is raised while the caller can still do something else."""
    operation = Flaky(*(TierUnavailableError("down") for _ in range(9)))
    with pytest.raises(TierUnavailableError):
        retry_with(time).call(operation, Deadline.after(0.12, time))
    assert time.now_s < 0.12


def test_a_deadline_that_passed_calls_nothing(time: FakeTime) -> None:
    """Work that nobody waits for is not begun."""
    operation = Flaky()
    with pytest.raises(DeadlineError):
        retry_with(time).call(operation, Deadline.after(0, time))
    assert operation.calls == 0


def test_an_operation_is_told_how_much_time_is_left(time: FakeTime) -> None:
    """Each try gets less."""
    seen: list[float] = []

    def operation(left_s: float) -> None:
        seen.append(left_s)
        time.now_s += 1.0
        if len(seen) < 3:
            raise TierUnavailableError("down")

    retry_with(time).call(operation, Deadline.after(10, time))
    assert seen[0] == 10
    assert sorted(seen, reverse=True) == seen
    assert seen[2] < 8


@pytest.mark.parametrize("fields", [{"attempts": 0}, {"first_pause_s": 0.0}, {"longest_pause_s": -1.0}], ids=str)
def test_a_retry_that_cannot_be_is_refused(fields: dict[str, float]) -> None:
    """When it is made."""
    with pytest.raises(ConfigError):
        Retry(**fields)  # type: ignore[arg-type]
