"""Ask several servers side by side: as long as the slowest of them takes, and one that fails spoils nothing for the others."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from kvstore.core.errors import ClosedError, KVError

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass(frozen=True)
class Outcomes(Generic[K, T]):
    """What each call returned, and what each of the others raised."""

    results: Mapping[K, T]
    errors: Mapping[K, KVError]


class Together:
    """Makes calls on a few threads of its own and on the caller's. Thread-safe."""

    def __init__(self, n_threads: int = 16) -> None:
        self._threads = ThreadPoolExecutor(n_threads, thread_name_prefix="larder-stores")

    def call(self, calls: Mapping[K, Callable[[], T]]) -> Outcomes[K, T]:
        """Make all calls and wait for all; one of them alone takes no other thread. Raises nothing but what is no KVError."""
        results: dict[K, T] = {}
        errors: dict[K, KVError] = {}
        if calls:
            *others, (last, own) = calls.items()
            waited = [(key, self._start(call)) for key, call in others]
            for key, result in [(last, own), *waited]:
                try:
                    results[key] = result()
                except KVError as error:
                    errors[key] = error
        return Outcomes(results, errors)

    def _start(self, call: Callable[[], T]) -> Callable[[], T]:
        """Begin a call on another thread and return what waits for it."""
        try:
            return self._threads.submit(call).result
        except RuntimeError as error:
            raise ClosedError("the client of the stores is closed") from error

    def behind(self, call: Callable[[], None]) -> bool:
        """Make a call that nobody waits for; return False once closed."""
        try:
            self._threads.submit(call)
        except RuntimeError:
            return False
        return True

    def close(self) -> None:
        """Make no more calls; those under way end by their deadlines."""
        self._threads.shutdown(wait=False, cancel_futures=True)
