"""Records that are arriving from a slow tier, so that many who want the same one at the same time receive it once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from weakref import WeakValueDictionary

from kvstore.core.landing import PIECE_NBYTES, Landing

Place = tuple[bytes, int]  # a storage key and the position of a tier


class Arriving:
    """Hands out a landing of its own to each reader; all of them pull from one, which is closed with the last of them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opening: dict[Place, threading.Lock] = {}
        self._shared: WeakValueDictionary[Place, _Shared] = WeakValueDictionary()  # its readers keep it alive

    def join(self, place: Place, begin: Callable[[], Landing | None]) -> Landing | None:
        """Return a landing of the record at `place`; `begin` starts one when none is arriving, by one caller at a time."""
        with self._lock:
            opening = self._opening.setdefault(place, threading.Lock())
        with opening:
            with self._lock:
                shared = self._shared.get(place)
                if shared is not None and shared.n_readers and not shared.whole.has_failed:
                    shared.n_readers += 1
                    return _Reader(self, place, shared)
            whole = begin()
            with self._lock:
                self._opening.pop(place, None)
                if whole is None:
                    return None
                shared = self._shared[place] = _Shared(whole)
            return _Reader(self, place, shared)

    def leave(self, place: Place, shared: _Shared) -> None:
        """Note that a reader is done; the last one closes what they read."""
        with self._lock:
            shared.n_readers -= 1
            is_last = not shared.n_readers
            if is_last and self._shared.get(place) is shared:
                del self._shared[place]
        if is_last:
            shared.whole.close()


class _Shared:
    """A landing and how many read it."""

    def __init__(self, whole: Landing) -> None:
        self.whole = whole
        self.n_readers = 1


class _Reader(Landing):
    """One reader's view of a landing that is shared."""

    def __init__(self, arriving: Arriving, place: Place, shared: _Shared) -> None:
        super().__init__(shared.whole.view, shared.whole.filled)
        self._arriving, self._place, self._shared = arriving, place, shared
        self._is_in = True
        if self.filled == self.nbytes:
            self._end()

    def _receive(self, room: memoryview) -> int:
        self._shared.whole.fill(min(self.filled + PIECE_NBYTES, self.nbytes))
        return self._shared.whole.filled - self.filled

    def _end(self) -> None:
        if self._is_in:
            self._is_in = False
            self._arriving.leave(self._place, self._shared)
