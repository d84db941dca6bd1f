"""The open connections of a lane: made when needed, used by one caller at a time, kept for the next."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from kvstore.core.errors import ClosedError, DeadlineError


class Connection(Protocol):
    """What is pooled."""

    is_closed: bool
    owes_answer: bool

    def is_sound(self) -> bool:
        """Tell whether the other side has not closed it, as far as one can see."""
        ...

    def close(self) -> None:
        """Close it at once."""
        ...


IDLE_S = 0.1  # a connection that was idle for longer may have been closed by the other side
C = TypeVar("C", bound=Connection)


class Connections(Generic[C]):
    """At most `capacity` connections; who finds all of them in use waits until one comes back.

    Parameters
    ----------
    dial : callable
        Opens one within the deadline it is given.
    """

    def __init__(self, dial: Callable[[float], C], capacity: int) -> None:
        self._dial = dial
        self._capacity = capacity
        self._lock = threading.RLock()  # a landing that the garbage collector finds may give a connection back in the middle of anything
        self._changed = threading.Condition(self._lock)
        self._n_waiting = 0
        self._idle: list[tuple[C, float]] = []  # since when; the last one was used last
        self._used: set[C] = set()
        self._n_dialing = 0
        self._is_closed = False
        self._is_retired = False

    def take(self, deadline: float) -> C:
        """Return a connection for the caller's use; raises DeadlineError when none came back in time."""
        with self._lock:
            while not self._is_free():
                self._wait(deadline)
            if kept := self._take_idle():
                return kept
        return self._open(deadline)

    def take_free(self, deadline: float) -> C | None:
        """Return a connection for the caller's use, or None when all of them are in use: never waits for one to come back."""
        with self._lock:
            if not self._is_free():
                return None
            if kept := self._take_idle():
                return kept
        return self._open(deadline)

    def _is_free(self) -> bool:
        """Tell whether a connection is idle, or one more may be made. Called with the lock held."""
        if self._is_closed:
            raise ClosedError("the lane is closed")
        return bool(self._idle) or len(self._used) + self._n_dialing < self._capacity

    def _take_idle(self) -> C | None:
        """Return one that was idle and is sound; None where one has to be made, which is counted. Called with the lock held."""
        while self._idle:
            kept, since = self._idle.pop()
            if not kept.is_closed and (time.monotonic() - since < IDLE_S or kept.is_sound()):
                self._used.add(kept)
                return kept
            kept.close()
        self._n_dialing += 1
        return None

    def give(self, connection: C) -> None:
        """Bring a connection back; one that is closed, or in the middle of an answer, is not used again."""
        with self._lock:
            self._used.discard(connection)
            if self._is_closed or self._is_retired or connection.owes_answer:
                connection.close()
            elif not connection.is_closed:
                self._idle.append((connection, time.monotonic()))
            if self._n_waiting:
                self._changed.notify()

    def retire(self) -> bool:
        """Close each connection as soon as it is not in use any more; tell whether one still is."""
        with self._lock:
            self._is_retired = True
            idle, self._idle = self._idle, []
            is_used = bool(self._used) or self._n_dialing > 0
        for connection, _ in idle:
            connection.close()
        return is_used

    def close(self) -> None:
        """Close all of them, those in use too."""
        with self._lock:
            self._is_closed = True
            connections = [*(connection for connection, _ in self._idle), *self._used]
            self._idle.clear()
            self._changed.notify_all()
        for connection in connections:
            connection.close()

    def _wait(self, deadline: float) -> None:
        """Wait until one comes back. Called with the lock held."""
        self._n_waiting += 1
        try:
            if not self._changed.wait(deadline - time.monotonic()):
                raise DeadlineError(f"all {self._capacity} connections of the lane were in use; read or close what was opened")
        finally:
            self._n_waiting -= 1

    def _open(self, deadline: float) -> C:
        made: C | None = None
        try:
            made = self._dial(deadline)
        finally:
            with self._lock:
                self._n_dialing -= 1
                if made is not None:
                    self._used.add(made)
                self._changed.notify()
        return made
