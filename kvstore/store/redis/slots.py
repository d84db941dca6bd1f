"""A bounded number of things that are lent, first come first served."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")
_LOOK_AGAIN_S = 0.01


class Slots(Generic[T]):
    """Lends what it was given. Thread-safe, without a lock: the garbage collector may give something back in the middle of any call."""

    def __init__(self, things: list[T]) -> None:
        self._free = deque(things)
        self._waiting: deque[SimpleQueue[T]] = deque()

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiting)

    def take(self, timeout_s: float, press: Callable[[], None]) -> T:
        """Return a thing, behind those who waited before; raises queue.Empty after `timeout_s`.

        Calls `press` again and again while there is none.
        """
        hand: SimpleQueue[T] = SimpleQueue()
        self._waiting.append(hand)
        self._serve()
        until = time.monotonic() + timeout_s
        while (left_s := until - time.monotonic()) > 0:
            with suppress(Empty):
                return hand.get(timeout=min(left_s, _LOOK_AGAIN_S))
            press()
        return self._leave(hand)

    def put(self, thing: T) -> None:
        """Give a thing back."""
        self._free.append(thing)
        self._serve()

    def drain(self) -> list[T]:
        """Return what nobody has, and keep it no longer."""
        found: list[T] = []
        with suppress(IndexError):
            while True:
                found.append(self._free.popleft())
        return found

    def _serve(self) -> None:
        """Hand over what is free as long as somebody waits. Whoever leaves the row holds something already."""
        while self._waiting:
            try:
                thing = self._free.popleft()
            except IndexError:
                return
            try:
                self._waiting.popleft().put(thing)
            except IndexError:  # nobody waits any more
                self._free.append(thing)

    def _leave(self, hand: SimpleQueue[T]) -> T:
        """Wait no longer; returns what was handed over in the last moment, else raises queue.Empty."""
        try:
            self._waiting.remove(hand)
        except ValueError:
            return hand.get()
        raise Empty
