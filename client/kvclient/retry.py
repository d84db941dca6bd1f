"""Trying again: only what may be tried again, with growing pauses, and never beyond the caller's deadline."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from kvstore.core.errors import ConfigError, DeadlineError, KVError

T = TypeVar("T")


@dataclass(frozen=True)
class Deadline:
    """A moment on a clock by which something must be done."""

    at_s: float
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        """Return the deadline `timeout_s` from now."""
        return cls(clock() + timeout_s, clock)

    def left_s(self) -> float:
        """Return the seconds left; raises DeadlineError when there are none."""
        left_s = self.at_s - self.clock()
        if left_s <= 0:
            raise DeadlineError("the deadline passed; give the call more time or try again later")
        return left_s


@dataclass
class Retry:
    """How often and how fast to try again; an error that says when to come again is waited for at least as long.

    The pause before try n + 1 is drawn between half of and all of `first_pause_s` * 2 ** (n - 1), at most `longest_pause_s`.

    Parameters
    ----------
    attempts : int
        Tries in all; 1 never tries again.
    seed : int or None
        Seed of the jitter, for tests.
    """

    attempts: int = 4
    first_pause_s: float = 0.05
    longest_pause_s: float = 1.0
    seed: int | None = None
    sleep: Callable[[float], None] = time.sleep
    _random: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_pause_s <= 0 or self.longest_pause_s <= 0:
            raise ConfigError(f"a retry needs at least one attempt and pauses above 0, got {self}")
        self._random = random.Random(self.seed)

    def call(self, operation: Callable[[float], T], deadline: Deadline) -> T:
        """Return what `operation(seconds left)` returns, trying again after a retryable KVError while the deadline allows the pause."""
        for attempt in range(1, self.attempts):
            left_s = deadline.left_s()
            try:
                return operation(left_s)
            except KVError as error:
                pause_s = max(self.pause_s(attempt), error.retry_after_s)
                if not error.retryable or pause_s >= deadline.at_s - deadline.clock():
                    raise
            self.sleep(pause_s)
        return operation(deadline.left_s())

    def pause_s(self, attempt: int) -> float:
        """Draw the pause behind a failed attempt, counted from 1."""
        most_s = min(self.longest_pause_s, self.first_pause_s * 2.0 ** (attempt - 1))
        return most_s * self._random.uniform(0.5, 1.0)
