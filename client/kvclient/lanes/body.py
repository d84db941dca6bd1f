"""The bytes behind one answer: several chunks in a row, each landing in a buffer of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from kvstore.core.errors import CapacityError, ClosedError, CorruptError, KVError
from kvstore.core.landing import Landed, Landing
from kvstore.core.pool import BufferPool


class Source(Protocol):
    """Where the bytes come from."""

    def receive_into(self, room: memoryview, deadline: float) -> int:
        """Write at least one byte to the front of `room` and return how many; raises DeadlineError past `deadline`."""
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
    is abandoned, which wakes whoever receives. Each landing refers to its body, and the body to the landings that are not full: memory is
    free again as soon as its last reader drops it.
    """

    def __init__(self, source: Source, n_landings: int, deadline: float) -> None:
        self._source = source
        self._deadline = deadline
        self._receiving = threading.Lock()
        self._changing = threading.Lock()  # never held while bytes are received
        self._failure: KVError | None = None
        self._current: BodyLanding | None = None
        self._n_open = n_landings
        self._is_over = False

    def begin(self, first: BodyLanding | None) -> None:
        """Take the first of the landings, which leads to the others."""
        self._current = first
        self._skip_full()

    def pull(self, landing: BodyLanding, end: int) -> None:
        """Receive until the first `end` bytes of a landing are there; a failure is final for all of them."""
        with self._receiving:
            while landing.filled < end:
                current = self._current
                if landing.is_closed or current is None:
                    raise _again(self._failure or ClosedError("the chunk was closed"))
                try:
                    self._receive(current, end if current is landing else current.nbytes)
                except KVError as error:
                    raise _again(self._end(error)) from error

    def leave(self) -> None:
        """Note that one landing is read no more; the last one that leaves gives up what has not come."""
        with self._changing:
            self._n_open -= 1
            is_last = not self._n_open
        if is_last:
            self._end(ClosedError("the chunk was closed"))

    def _receive(self, current: BodyLanding, end: int) -> None:
        """Receive once, and not beyond `end`: who asked for so much digests it while it is in the processor's cache."""
        room = current.room(end)
        count = self._source.receive_into(room, self._deadline)
        if not 0 < count <= room.nbytes:
            raise CorruptError(f"{count} B came behind {current.filled} of {current.nbytes} B")
        current.filled += count
        if current.filled == current.nbytes:
            self._skip_full()

    def _skip_full(self) -> None:
        while (current := self._current) is not None and current.filled == current.nbytes:
            self._current, current.behind = current.behind, None
        if self._current is None:
            self._end(None)

    def _end(self, failure: KVError | None) -> KVError:
        """Tell the source once how it ended; return the first reason why nothing more is received."""
        with self._changing:
            is_first, self._is_over = not self._is_over, True
            if is_first:
                self._failure = _again(failure) if failure else None
        self._current = None
        if is_first and failure:
            self._source.abandon()
        elif is_first:
            self._source.done()
        return self._failure or ClosedError("the chunk was closed")


class BodyLanding(Landing):
    """One chunk of a body."""

    def __init__(self, body: Body, buffer: memoryview, behind: BodyLanding | None) -> None:
        super().__init__(buffer)
        self._body = body
        self.behind = behind
        self.is_closed = False

    def room(self, end: int) -> memoryview:
        """Return what is still to be filled of the first `end` bytes."""
        return self._room[self.filled : end]

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


def split(whole: bytes | memoryview, sizes: Sequence[int]) -> list[Landing]:
    """Return a landing for each of the chunks that came together, read-only; copies nothing."""
    view = memoryview(whole)
    return [Landed(view[end - nbytes : end]) for nbytes, end in zip(sizes, accumulate(sizes), strict=True)]


def land_in_row(source: Source, sizes: Sequence[int], pool: BufferPool, deadline: float) -> Sequence[Landing]:
    """Return a landing for each of the chunks that come from a source, one behind the other; raises CapacityError without memory."""
    body = Body(source, len(sizes), deadline)
    landings: list[BodyLanding] = []
    try:
        for nbytes in reversed(sizes):
            landings.append(BodyLanding(body, pool.take(nbytes), landings[-1] if landings else None))
    except (OSError, MemoryError) as error:
        source.abandon()
        raise CapacityError(f"no memory for {len(sizes)} chunks of {sum(sizes)} B together: {error}; ask for fewer at once") from error
    landings.reverse()
    body.begin(landings[0] if landings else None)
    return landings


def _again(error: KVError) -> KVError:
    """Return an equal error without the frames of its traceback, which would keep memory alive."""
    return type(error)(*error.args)
