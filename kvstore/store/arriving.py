"""Records that are arriving from a slow tier, so that many who want the same one at the same time receive it once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from weakref import WeakValueDictionary

from kvstore.core.errors import DeadlineError
from kvstore.core.landing import Landing

Place = tuple[bytes, int]  # a storage key and the position of a tier


class Arriving:
    """Hands out a landing of its own to each reader; all of them pull from one, which is closed with the last of them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Both are kept alive by those who use them: callers that begin or wait, and readers.
        self._opening: WeakValueDictionary[Place, _Opening] = WeakValueDictionary()
        self._shared: WeakValueDictionary[Place, _Shared] = WeakValueDictionary()

    def join(self, place: Place, begin: Callable[[], Landing | None], deadline: float) -> Landing | None:
        """Return a landing of the record at `place`; `begin` starts one when none is arriving, by one caller at a time.

        Who waits meanwhile gets what it returned, None included, but not its error. No wait for another caller and no receive of this
        landing begins behind `deadline`, which leaves other readers alone; DeadlineError tells of it.
        """
        with self._lock:
            opening = self._opening.setdefault(place, _Opening())
        if not opening.turn.acquire(timeout=min(max(deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX)):
            raise DeadlineError("another read of the same record did not begin in time")
        try:
            if opening.is_absent:
                return None
            landing = self._enter(place, opening) or self._begin(place, opening, begin)
        finally:
            opening.turn.release()
        if landing is not None:
            landing.deadline = deadline
        return landing

    def forget(self, place: Place) -> None:
        """Let nobody join what is arriving from `place`, since it is damaged; those who read it read on."""
        with self._lock:
            self._opening.pop(place, None)
            self._shared.pop(place, None)

    def leave(self, place: Place, shared: _Shared) -> None:
        """Note that a reader is done; the last one closes what they read."""
        with self._lock:
            shared.n_readers -= 1
            is_last = not shared.n_readers
            if is_last and self._shared.get(place) is shared:
                del self._shared[place]
        if is_last:
            shared.whole.close()

    def _enter(self, place: Place, opening: _Opening) -> Landing | None:
        """Return a landing of a record that is arriving, or that arrived while the caller waited."""
        with self._lock:
            shared = opening.shared or self._shared.get(place)
            if shared is None or not shared.can_be_joined:
                return None
            shared.n_readers += 1
        return _Reader(self, place, shared)

    def _begin(self, place: Place, opening: _Opening, begin: Callable[[], Landing | None]) -> Landing | None:
        whole = begin()
        with self._lock:
            self._opening.pop(place, None)  # who comes now has not waited for this
            opening.is_absent = whole is None
            if whole is None:
                return None
            shared = opening.shared = self._shared[place] = _Shared(whole)
        return _Reader(self, place, shared)


class _Opening:
    """Whose turn it is to begin, and what came of it."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.is_absent = False
        self.shared: _Shared | None = None


class _Shared:
    """A landing and how many read it."""

    def __init__(self, whole: Landing) -> None:
        self.whole = whole
        self.n_readers = 1

    @property
    def can_be_joined(self) -> bool:
        """Whether all of it is there, or somebody keeps receiving."""
        return self.whole.filled == self.whole.nbytes or (self.n_readers > 0 and not self.whole.has_failed)


class _Reader(Landing):
    """One reader's view of a landing that is shared."""

    def __init__(self, arriving: Arriving, place: Place, shared: _Shared) -> None:
        super().__init__(shared.whole.view, shared.whole.filled)
        self._arriving, self._place, self._shared = arriving, place, shared
        self._is_in = True
        if self.filled == self.nbytes:
            self._end()

    def _receive(self, room: memoryview) -> int:
        self._shared.whole.fill(self.filled + 1)  # as much as comes with it, and no piece more
        return self._shared.whole.filled - self.filled

    def _end(self) -> None:
        if self._is_in:
            self._is_in = False
            self._arriving.leave(self._place, self._shared)
