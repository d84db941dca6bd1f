"""One chunk over several connections, each with its share."""

from __future__ import annotations

from collections.abc import Sequence

from kvclient.lanes.connections import Connections
from kvclient.lanes.socket_frames import SocketFrames

STRIPE_NBYTES = 4 << 20  # a chunk with less than so much for each connection travels by one
PIECE_NBYTES = 256 << 10  # of one connection, before the next one's turn


class Striped:
    """Implements `kvclient.lanes.body.Source` over connections that carry one chunk together; copies nothing."""

    def __init__(self, carriers: Sequence[SocketFrames], connections: Connections[SocketFrames]) -> None:
        self._carriers, self._connections = carriers, connections
        self._at = 0

    def receive_into(self, room: memoryview, deadline: float) -> int:
        piece, within = divmod(self._at, PIECE_NBYTES)
        carrier = self._carriers[piece % len(self._carriers)]
        count = carrier.receive_into(room[: PIECE_NBYTES - within], deadline)
        self._at += count
        return count

    def done(self) -> None:
        for carrier in self._carriers:
            carrier.owes_answer = False
        self.abandon()

    def abandon(self) -> None:
        for carrier in self._carriers:
            self._connections.give(carrier)
