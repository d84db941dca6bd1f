"""The attempts of one call, which all end at the same deadline."""

from __future__ import annotations

from kvclient.retry import Deadline, Retry
from kvstore.core.errors import KVError


class Attempts:
    """Counts the attempts of one call and says whether another one may help."""

    def __init__(self, retry: Retry, deadline: Deadline) -> None:
        self._retry, self._deadline = retry, deadline
        self._failed = 0

    def left_s(self) -> float:
        """Return the seconds left for an attempt; raises DeadlineError when there are none."""
        return self._deadline.left_s()

    def pause_s(self, failure: KVError) -> float:
        """Return how long to wait before the next attempt; raises `failure` where another one can't help or would come too late."""
        self._failed += 1
        pause_s = max(self._retry.pause_s(self._failed), failure.retry_after_s)
        if not failure.retryable or self._failed >= self._retry.attempts or pause_s >= self._deadline.at_s - self._deadline.clock():
            raise failure
        return pause_s
