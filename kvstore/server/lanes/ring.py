"""The staging ring of one connection: a peer writes a chunk into it, the store takes it out."""

from __future__ import annotations

import mmap

import numpy as np

from kvclient.lanes.frames import Kind, pack_count, parse_count
from kvclient.lanes.socket_frames import SocketFrames
from kvstore.core.errors import FormatError
from kvstore.core.landing import COPIED_NBYTES


class Ring:
    """Takes bytes out in the order in which they were announced. The peer may write at any time, so nothing in it is trusted."""

    def __init__(self, pages: mmap.mmap) -> None:
        self._memory = np.frombuffer(pages, np.uint8)
        self.rewind()

    def rewind(self) -> None:
        """Begin at the front, as every put does."""
        self._taken = self._announced = self._untold = 0

    def take(self, room: memoryview, frames: SocketFrames, deadline: float) -> int:
        """Copy the next bytes to the front of `room`, waiting for them to be announced; the peer is told of each half of the ring."""
        if not self._announced:
            self._announced = parse_count(frames.expect(Kind.LANDED, deadline)[0])
            if not 0 < self._announced <= self._memory.nbytes:
                frames.close()  # nobody knows what else would come of this put
                raise FormatError(f"{self._announced} B were announced in a ring of {self._memory.nbytes} B")
        start = self._taken % self._memory.nbytes
        count = min(self._announced, room.nbytes, COPIED_NBYTES, self._memory.nbytes - start)
        np.copyto(np.frombuffer(room, np.uint8)[:count], self._memory[start : start + count])
        self._taken += count
        self._announced -= count
        self._untold += count
        if 2 * self._untold >= self._memory.nbytes:
            frames.send(Kind.LANDED, pack_count(self._untold), deadline)
            self._untold = 0
        return count
