"""A landing whose receives somebody else wants to see: for a breaker, for counters."""

from __future__ import annotations

from collections.abc import Callable

from kvstore.core.landing import Landing, Tail


class Watched(Tail):
    """Passes every receive of another landing through `around`, which makes the call and returns what it returned. Copies nothing.

    The caller's own deadline ends here, outside of `around`: that it passed says nothing about where the bytes come from.
    """

    def __init__(self, whole: Landing, around: Callable[[Callable[[], int]], int]) -> None:
        super().__init__(whole, 0)
        self._around = around

    def _receive(self, room: memoryview) -> int:
        return self._around(self._receive_one)

    def _receive_one(self) -> int:
        """Have the other landing receive once."""
        self._whole.fill(self.filled + 1)
        return self._whole.filled - self.filled
