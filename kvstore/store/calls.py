"""Calls that may hang, bounded in number and in time; and calls that many want at once, made once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

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
            future = self._threads.submit(self._release_behind, function)
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


class SingleFlight(Generic[T]):
    """Makes one call for all who want the same key at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[bytes, Future[T]] = {}

    def call(self, key: bytes, function: Callable[[], T], timeout_s: float) -> T:
        """Return the function's result, or that of whoever calls it for the key right now; waiting longer raises DeadlineError."""
        with self._lock:
            flight = self._flights.get(key)
            is_first = flight is None
            if flight is None:
                flight = self._flights[key] = Future()
        if not is_first:
            try:
                return flight.result(max(timeout_s, 0.0))
            except TimeoutError as error:
                raise DeadlineError(f"another read of the same record took longer than {timeout_s:.3f} s") from error
        try:
            flight.set_result(function())
        except BaseException as error:
            flight.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._flights[key]
        return flight.result()
