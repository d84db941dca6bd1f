"""A budget of bytes that many transfers share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kvstore.core.errors import CapacityError


class ByteBudget:
    """Lends bytes up to a capacity and refuses what goes beyond it; nobody waits.

    Parameters
    ----------
    capacity_bytes : int
        The most that may be lent at once.
    relieve : callable
        Called when a loan is refused; it may free loans of others, so that a later try succeeds.
    """

    def __init__(self, capacity_bytes: int, relieve: Callable[[], object]) -> None:
        self._capacity_bytes = capacity_bytes
        self._relieve = relieve
        self._lock = threading.Lock()
        self._lent_bytes = 0

    @property
    def lent_bytes(self) -> int:
        """Bytes lent now."""
        return self._lent_bytes

    @contextmanager
    def lend(self, nbytes: int) -> Iterator[None]:
        """Hold `nbytes` within the block; raises CapacityError when they are not free."""
        with self._lock:
            free_bytes = self._capacity_bytes - self._lent_bytes
            if is_free := nbytes <= free_bytes:
                self._lent_bytes += nbytes
        if not is_free:
            self._relieve()
            raise CapacityError(f"{nbytes} B for a transfer, {free_bytes} B are free now; try again, or raise server.max_inflight_bytes")
        try:
            yield
        finally:
            with self._lock:
                self._lent_bytes -= nbytes
