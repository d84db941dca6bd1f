"""Calls that may hang, bounded in number and in time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from kvstore.core import tracing
from kvstore.core.errors import DeadlineError, TierUnavailableError

T = TypeVar("T")


class BoundedCalls:
    """Makes calls on a few threads of its own, so that a call that hangs costs its caller the timeout and no more.

    When all threads are busy, a further call raises TierUnavailableError at once instead of waiting behind calls that hang.
    """

    def __init__(self, n_threads: int) -> None:
        self._free = threading.Semaphore(n_threads)
        self._threads = ThreadPoolExecutor(n_threads, thread_name_prefix="larder-remote")

    def call(self, function: Callable[[], T], timeout_s: float) -> T:
        """Return the function's result; raises DeadlineError after `timeout_s`, while the call itself runs on."""
        if not self._free.acquire(blocking=False):
            raise TierUnavailableError("every thread for remote tiers waits for an answer; raise remote_threads or lower the timeouts")
        try:
            future = self._threads.submit(self._release_behind, tracing.carried(function))
        except RuntimeError as error:
            self._free.release()
            raise TierUnavailableError("the store is closing and asks no remote tier any more") from error
        try:
            return future.result(max(timeout_s, 0.0))
        except TimeoutError as error:
            raise DeadlineError(f"no answer within {timeout_s:.3f} s") from error

    def _release_behind(self, function: Callable[[], T]) -> T:
        """Make the call and count its thread as free before the caller learns of the result, who may call again at once."""
        try:
            return function()
        finally:
            self._free.release()

    def close(self) -> None:
        """Make no more calls; does not wait for those under way."""
        self._threads.shutdown(wait=False, cancel_futures=True)
