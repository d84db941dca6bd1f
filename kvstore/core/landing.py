"""Bytes on their way into one buffer, pulled by whoever needs them: the one shape in which every tier and every lane hands out a chunk."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from kvstore.core.errors import ClosedError, CorruptError, DeadlineError, FormatError, KVError

PIECE_NBYTES = 1 << 20
COPIED_NBYTES = 512 << 10  # a step from memory to memory; measured: more falls out of the second-level cache, less costs more calls


class Landing(ABC):
    """One buffer that fills from its front. Thread-safe; no thread of its own.

    Whoever needs the first `end` bytes calls `fill(end)`, which receives until they are there. What stands behind them may still be on
    the way, so a reader uses the first layer group while the last one travels. Bytes are not verified here: `PartReader` does that.

    Parameters
    ----------
    buffer : memoryview
        Writable room for all bytes; `view` is the same memory, read-only.
    filled : int
        Bytes that are there already.
    """

    step_nbytes: int = 256 << 10  # digested at a time, right behind their landing, while they are in the processor's cache

    def __init__(self, buffer: memoryview, filled: int = 0) -> None:
        self._room = buffer
        self.view = buffer.toreadonly()
        self.nbytes = buffer.nbytes
        self.deadline = float("inf")  # on time.monotonic; no receive begins behind it
        self.filled = filled
        self._wanted = 0  # where the caller's need ends: who copies no further leaves its bytes in the processor's cache to be digested
        self._failure: Exception | None = None
        self._is_closed = False
        self._lock = threading.Lock()
        self._when_whole: list[Callable[[], None]] = []

    @property
    def has_failed(self) -> bool:
        """Whether nothing more will be received though not all is there."""
        return self._failure is not None and self.filled < self.nbytes

    @abstractmethod
    def _receive(self, room: memoryview) -> int:
        """Write the next bytes to the front of `room`, at least one and about `PIECE_NBYTES` at most, and return how many.

        Raises CorruptError when no more come, TierUnavailableError, or DeadlineError past `deadline`.
        """

    def _end(self) -> None:
        """Let go of what the bytes come from; called once, when the buffer is full, or by the first failure or `close`."""
        return

    def fill(self, end: int) -> None:
        """Receive until the first `end` bytes are there. A failure is final: every later call that needs more raises it again."""
        if self.filled >= end:
            return
        self._check_end(end)
        with self._lock:
            whole = self._fill(end)
        self._end_if_closed()
        if whole:
            calls, self._when_whole = self._when_whole, []
            for call in calls:
                call()

    def when_whole(self, call: Callable[[], None]) -> None:
        """Have `call` called once, by the thread that receives the last byte, or now when the bytes are there already."""
        with self._lock:
            is_whole = self.filled == self.nbytes
            if not is_whole:
                self._when_whole.append(call)
        self._end_if_closed()
        if is_whole:
            call()

    def tail(self, skipped: int) -> Landing:
        """Return what stands behind the first `skipped` bytes; closing it closes this landing."""
        return Tail(self, skipped)

    def close(self) -> None:
        """Receive no more; views of what is there stay valid. Safe to call again, and while another thread receives."""
        self._is_closed = True
        if self._lock.acquire(blocking=False):
            try:
                self._give_up(ClosedError("the chunk was closed"))
            finally:
                self._lock.release()

    def _end_if_closed(self) -> None:
        """Finish a `close` that came while this thread had the lock: it did not wait. Called without the lock."""
        if self._is_closed:
            Landing.close(self)

    def _fill(self, end: int) -> bool:
        """Receive with the lock held; return whether this call received the last byte."""
        if self.filled >= end:
            return False
        self._wanted = end
        try:
            while self.filled < end:
                self._check()
                count = self._receive(self._room[self.filled :])
                if not 0 < count <= self.nbytes - self.filled:
                    raise CorruptError(f"{count} B came behind {self.filled} of {self.nbytes} B")
                self.filled += count
        except Exception as error:
            self._give_up(error)
            raise
        if self.filled == self.nbytes:
            self._give_up(ClosedError("the chunk is whole"))
            return True
        return False

    def _check_end(self, end: int) -> None:
        if end > self.nbytes:
            raise FormatError(f"{end} B were asked for of {self.nbytes} B")

    def _check(self) -> None:
        if self._failure is not None:
            raise _without_traceback(self._failure)
        if self._is_closed:
            raise ClosedError("the chunk was closed")
        if time.monotonic() > self.deadline:
            raise DeadlineError(f"the deadline passed with {self.filled} of {self.nbytes} B received")

    def _give_up(self, why: Exception) -> None:
        """Note the first reason why nothing more is received, and let go of the source."""
        if self._failure is None:
            self._failure = _without_traceback(why)
            self._end()


def _without_traceback(error: Exception) -> Exception:
    """Return an equal error of ours: the frames of a traceback would keep the buffer until the next garbage collection."""
    return type(error)(*error.args) if isinstance(error, KVError) else error


class Landed(Landing):
    """Bytes that are all there."""

    step_nbytes = 1 << 40  # they are where they are

    def __init__(self, view: memoryview) -> None:
        # Nothing is ever received, so there is nothing to guard: opening a chunk in memory is the shortest path of all.
        self.view = view
        self.nbytes = self.filled = view.nbytes
        self.deadline = float("inf")

    @property
    def has_failed(self) -> bool:
        """Whether nothing more will be received though not all is there: never."""
        return False

    def fill(self, end: int) -> None:
        """Check that so many bytes are there."""
        self._check_end(end)

    def when_whole(self, call: Callable[[], None]) -> None:
        """Call at once."""
        call()

    def tail(self, skipped: int) -> Landed:
        """Return what stands behind the first `skipped` bytes."""
        return Landed(self.view[skipped:])

    def close(self) -> None:
        """Do nothing: views stay valid."""

    def _receive(self, room: memoryview) -> int:
        raise CorruptError(f"there are no more than {self.nbytes} B")


class Copied(Landing):
    """Bytes of another buffer, copied a step at a time, so that whoever digests them finds them in the processor's cache."""

    step_nbytes = COPIED_NBYTES

    def __init__(self, source: memoryview, buffer: memoryview, filled: int = 0) -> None:
        super().__init__(buffer, filled)
        self._source = source

    def _receive(self, room: memoryview) -> int:
        count = min(COPIED_NBYTES, self._wanted - self.filled)
        room[:count] = self._source[self.filled : self.filled + count]
        return count


class Tail(Landing):
    """What stands behind the first `offset` bytes of another landing; shares its memory and its lock-free progress."""

    def __init__(self, whole: Landing, offset: int) -> None:
        super().__init__(whole.view[offset:], max(0, whole.filled - offset))
        self._whole, self._offset = whole, offset

    def _receive(self, room: memoryview) -> int:
        behind = self._offset + self.filled
        self._whole.fill(behind + 1)  # as much as comes with it, and no piece more
        return min(self._whole.filled - behind, room.nbytes)

    def close(self) -> None:
        """Close the whole landing too."""
        super().close()
        self._whole.close()
