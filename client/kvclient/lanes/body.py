"""The bytes behind one answer: several chunks in a row, each landing in a buffer of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Protocol

from kvstore.core.errors import ClosedError, CorruptError, DeadlineError, KVError
from kvstore.core.landing import Landing
from kvstore.core.pool import BufferPool


class Source(Protocol):
    """Where the bytes come from."""

    def receive_into(self, room: memoryview, deadline: float) -> int:
        """Write at least one byte to the front of `room` and return how many."""
        ...

    def done(self) -> None:
        """Note that all bytes were received."""
        ...

    def abandon(self) -> None:
        """Note that the rest is not wanted."""
        ...


class Body:
    """Fills landings in their order, pulled by whoever needs bytes of one; what stands before them lands on the way.

    Copies nothing beyond what the source does. When the landings are full the source is done; when all of them were closed before that, it
    is abandoned.
    """

    def __init__(self, source: Source, sizes: Sequence[int], pool: BufferPool, deadline: float) -> None:
        self._source = source
        self._deadline = deadline
        self._lock = threading.Lock()
        self._failure: KVError | None = None
        self.landings = [BodyLanding(self, pool.take(nbytes)) for nbytes in sizes]
        self._current = 0
        self._n_open = len(self.landings)
        self._is_over = False
        with self._lock:
            self._skip_full()

    def pull(self, landing: BodyLanding, end: int) -> None:
        """Receive until the first `end` bytes of a landing are there; a failure is final for all of them."""
        with self._lock:
            while landing.filled < end:
                if self._failure is not None:
                    raise self._failure
                current = self.landings[self._current]
                if current is landing and landing.is_closed:
                    raise ClosedError("the chunk was closed")
                try:
                    self._receive(current)
                except KVError as error:
                    self._failure = error
                    self._finish()
                    raise

    def leave(self) -> None:
        """Note that one landing is read no more; the last one that leaves gives up what has not come."""
        with self._lock:
            self._n_open -= 1
            if not self._n_open:
                self._failure = self._failure or ClosedError("the chunk was closed")
                self._finish()

    def _receive(self, current: BodyLanding) -> None:
        if time.monotonic() > self._deadline:
            raise DeadlineError(f"the deadline passed with {current.filled} of {current.nbytes} B received")
        count = self._source.receive_into(current.room, self._deadline)
        if not 0 < count <= current.nbytes - current.filled:
            raise CorruptError(f"{count} B came behind {current.filled} of {current.nbytes} B")
        current.filled += count
        self._skip_full()

    def _skip_full(self) -> None:
        while self._current < len(self.landings) and self.landings[self._current].filled == self.landings[self._current].nbytes:
            self._current += 1
        if self._current == len(self.landings):
            self._finish()

    def _finish(self) -> None:
        """Tell the source once how it ended."""
        if not self._is_over:
            self._is_over = True
            if self._current == len(self.landings):
                self._source.done()
            else:
                self._source.abandon()


class BodyLanding(Landing):
    """One chunk of a body."""

    def __init__(self, body: Body, buffer: memoryview) -> None:
        super().__init__(buffer)
        self._body = body
        self.is_closed = False

    @property
    def room(self) -> memoryview:
        """What is still to be filled."""
        return self._room[self.filled :]

    def fill(self, end: int) -> None:
        """Receive until the first `end` bytes are there."""
        if self.filled < end:
            self._check_end(end)
            self._body.pull(self, end)

    def close(self) -> None:
        """Read no more of it; the chunks behind it can still be read."""
        if not self.is_closed:
            self.is_closed = True
            self._body.leave()

    def __del__(self) -> None:
        self.close()

    def _receive(self, room: memoryview) -> int:
        raise NotImplementedError("a body receives for all its landings")
