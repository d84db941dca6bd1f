"""A record on its way out of Redis: pieces that land in order, while the next ones are asked for already."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from kvstore.core.errors import CorruptError
from kvstore.core.landing import PIECE_NBYTES, Landing
from kvstore.store.redis.node import Leases, Node
from kvstore.store.redis.resp import Refusal
from kvstore.store.redis.route import Route


class PiecesLanding(Landing):
    """Receives pieces straight into the record's buffer: one copy, the kernel's, and at most 16 KiB per piece more.

    Each server has its own connection and window: what other servers send ahead waits in their sockets until its turn has come. A landing
    that is closed, or dropped, before it is whole gives its connections back, where those that still have replies coming are closed.

    Parameters
    ----------
    room : memoryview
        Writable room for the whole record.
    names : sequence of bytes
        The keys of the pieces, in order.
    owners : sequence of Node
        The server of each piece.
    leases : Leases
        A connection to each of them; the first `n_asked` pieces were asked for already. This object gives them back.
    window : int
        Pieces asked for ahead of the awaited one, per server.
    forget : callable
        Removes the record; called when a piece is missing.
    """

    def __init__(
        self, room: memoryview, names: Sequence[bytes], owners: Sequence[Node], leases: Leases, n_asked: int,
        route: Route, window: int, forget: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(room)
        self._names, self._owners, self._leases, self._route, self._forget = names, owners, leases, route, forget
        self._next = 0
        self._unasked: dict[Node, deque[bytes]] = {owner: deque() for owner in owners}
        for owner, name in list(zip(owners, names, strict=True))[n_asked:]:
            self._unasked[owner].append(name)
        for owner in self._unasked:
            self._ask(owner, window)

    def __del__(self) -> None:
        self._leases.close()

    def _receive(self, room: memoryview) -> int:
        """Receive the next piece; raises CorruptError when it is missing or has another length, TierUnavailableError or DeadlineError."""
        owner, piece = self._owners[self._next], room[:PIECE_NBYTES]
        self._ask(owner, 1)
        outcome = self._leases[owner].land(piece)
        if isinstance(outcome, Refusal):
            outcome = self._receive_elsewhere(owner, outcome, piece)
        if not outcome:
            self._leases.close()
            self._forget()
            raise CorruptError(f"redis: piece {self._next} of {len(self._names)} is missing: it expired or was evicted")
        self._next += 1
        return piece.nbytes

    def _end(self) -> None:
        self._leases.close()

    def _ask(self, owner: Node, count: int) -> None:
        """Ask a server for so many more of its pieces."""
        unasked, connection = self._unasked[owner], self._leases[owner]
        for _ in range(min(count, len(unasked))):
            connection.ask(b"GET", unasked.popleft())
        connection.flush()

    def _receive_elsewhere(self, owner: Node, refusal: Refusal, piece: memoryview) -> bool:
        """Receive a piece from the node that its owner points to."""
        other = self._route.redirect(owner, refusal)
        leases = Leases([other])
        leases.require()
        try:
            connection = leases[other]
            if refusal.code == "ASK":
                connection.ask(b"ASKING")
            connection.ask(b"GET", self._names[self._next])
            if refusal.code == "ASK":
                connection.reply()
            outcome = connection.land(piece)
        finally:
            leases.close()
        if isinstance(outcome, Refusal):
            raise outcome.error(f"redis at {other.address}")
        return outcome


def discard(leases: Leases, owner: Node) -> None:
    """Take the reply to a piece of a record that is not there, and give the connection back, or close it if the piece is there."""
    with suppress(CorruptError):
        leases[owner].land(memoryview(bytearray()))
    leases.close()
