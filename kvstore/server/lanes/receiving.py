"""Where the bytes of a put come from: a socket, several in turn, or a staging ring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kvclient.lanes.socket_frames import SocketFrames
from kvclient.lanes.stripes import InTurn
from kvstore.core.landing import COPIED_NBYTES, Landing
from kvstore.server.guard import Call, SilenceWatch
from kvstore.server.lanes.ring import Ring

SENT_NBYTES = Landing.step_nbytes


class Supply(Protocol):
    """The body of one put; `step_nbytes` of it are digested at a time."""

    step_nbytes: int

    def take(self, room: memoryview, deadline: float) -> int:
        """Receive at least one of the next bytes to the front of `room`; return how many."""

    def is_lost(self) -> bool:
        """Tell whether what comes next is not known any more."""


class FromSockets:
    """Bytes that follow on one socket, or in turn on several."""

    step_nbytes = SENT_NBYTES

    def __init__(self, source: SocketFrames | InTurn) -> None:
        self._source = source
        self._carriers = source.carriers if isinstance(source, InTurn) else (source,)

    def take(self, room: memoryview, deadline: float) -> int:
        return self._source.receive_into(room, deadline)

    def is_lost(self) -> bool:
        return any(carrier.is_closed for carrier in self._carriers)


class FromRing:
    """Bytes that the peer announces as it writes them to the ring."""

    step_nbytes = COPIED_NBYTES

    def __init__(self, ring: Ring, frames: SocketFrames) -> None:
        self._ring, self._frames = ring, frames
        ring.rewind()

    def take(self, room: memoryview, deadline: float) -> int:
        return self._ring.take(room, self._frames, deadline)

    def is_lost(self) -> bool:
        return self._frames.is_closed


class Receiving(Landing):
    """A blob that comes from a peer; the wait for each piece is watched, since it holds memory and budget."""

    def __init__(
        self, supply: Supply, buffer: memoryview, filled: int, call: Call, watch: SilenceWatch, deadline: Callable[[], float]
    ) -> None:
        super().__init__(buffer, filled)
        self.step_nbytes = supply.step_nbytes
        self._supply, self._call, self._watch, self._next_deadline = supply, call, watch, deadline
        self._first = filled

    @property
    def received_nbytes(self) -> int:
        """Bytes that came from the peer."""
        return self.filled - self._first

    def _receive(self, room: memoryview) -> int:
        self._watch.begin(self._call)
        try:
            return self._supply.take(room[: self._wanted - self.filled], self._next_deadline())
        finally:
            self._watch.end(self._call)
