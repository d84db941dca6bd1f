"""One chunk over several connections, each with its share."""

from __future__ import annotations

from collections.abc import Sequence

from kvclient.lanes.connections import Connections
from kvclient.lanes.socket_frames import SocketFrames

STRIPE_NBYTES = 4 << 20  # with less of a chunk for each, it travels by fewer connections
PIECE_NBYTES = 256 << 10  # of one connection, before the next one's turn


class InTurn:
    """Sends or receives one body over connections that carry it together, the first piece by the first of them; copies nothing.

    One thread serves all of them: while it waits for one, the system goes on with the others as far as their buffers reach.
    """

    def __init__(self, carriers: Sequence[SocketFrames], piece_nbytes: int = PIECE_NBYTES) -> None:
        self.carriers = carriers
        self._piece_nbytes = piece_nbytes
        self._at = 0

    def receive_into(self, room: memoryview, deadline: float) -> int:
        """Receive at least one of the next bytes to the front of `room`; return how many."""
        carrier, nbytes = self._next()
        count = carrier.receive_into(room[:nbytes], deadline)
        self._at += count
        return count

    def send(self, body: memoryview, deadline: float) -> None:
        """Send all of a body."""
        while self._at < body.nbytes:
            carrier, nbytes = self._next()
            carrier.send_body(body[self._at : self._at + nbytes], deadline)
            self._at += nbytes

    def _next(self) -> tuple[SocketFrames, int]:
        """Return whose turn it is, and how many bytes of its piece are left."""
        piece, within = divmod(self._at, self._piece_nbytes)
        return self.carriers[piece % len(self.carriers)], self._piece_nbytes - within


class Striped(InTurn):
    """Implements `kvclient.lanes.body.Source` over connections that go back when the body has been received."""

    def __init__(self, carriers: Sequence[SocketFrames], connections: Connections[SocketFrames]) -> None:
        super().__init__(carriers)
        self._connections = connections

    def done(self) -> None:
        for carrier in self.carriers:
            carrier.owes_answer = False
        self.abandon()

    def abandon(self) -> None:
        for carrier in self.carriers:
            self._connections.give(carrier)
