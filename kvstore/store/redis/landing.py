"""A record on its way out of Redis: ranges of its pieces that land in order, while the next ones are asked for already."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from kvstore.core.errors import CorruptError, EvictedError
from kvstore.core.landing import PIECE_NBYTES, Landing
from kvstore.store.redis.exchange import Command
from kvstore.store.redis.node import Leases, Node
from kvstore.store.redis.record import RANGE_NBYTES, ask_range
from kvstore.store.redis.resp import Refusal
from kvstore.store.redis.route import Route

_IDLE_S = 0.02


class PiecesLanding(Landing):
    """Receives ranges straight into the record's buffer: one copy, the kernel's, and at most 16 KiB per range more.

    It keeps a connection to each server that has some of the record. When somebody else waits for one, a landing that is read yields it
    behind what it has asked for, and one that nobody has read from for 20 ms at once; what was on its way is asked for again when the
    reader comes back. So a slow reader holds nobody up. A landing that is closed, or dropped, before it is whole gives its connections
    back, where those that still have replies coming are closed.

    Parameters
    ----------
    room : memoryview
        Writable room for the whole record.
    names : sequence of bytes
        The keys of the pieces, in order.
    route : Route
        Finds their servers.
    ahead_nbytes : int
        How much is asked for ahead of the awaited range, per server.
    forget : callable
        Removes the record; called when a piece is missing.
    leases : Leases or None
        A connection to the only server, on which range 0 was asked for already; this object gives it back. Raises as leasing does without.
    """

    def __init__(
        self, room: memoryview, names: Sequence[bytes], route: Route, ahead_nbytes: int, forget: Callable[[], None],
        leases: Leases | None = None,
    ) -> None:  # fmt: skip
        self._flow: _Flow | None = None
        super().__init__(room)
        self._names, self._route, self._ahead_nbytes, self._forget = names, route, ahead_nbytes, forget
        self._used = time.monotonic()
        self._flow = self._begin(0, leases)

    def __del__(self) -> None:
        self._end()

    def yield_idle(self) -> None:
        """Give the connections back unless somebody receives, or did a moment ago. Does not block."""
        if time.monotonic() - self._used > _IDLE_S and self._lock.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._lock.release()
            self._end_if_closed()

    def _receive(self, room: memoryview) -> int:
        """Receive the next range.

        Raises EvictedError when its piece is missing, CorruptError when it has another length, TierUnavailableError or DeadlineError.
        """
        number, span = self.filled // RANGE_NBYTES, room[:RANGE_NBYTES]
        if self._flow is not None and self._flow.gives_way(number):
            self._end()
        if self._flow is None:
            self._flow = self._begin(number, None)
        outcome = self._flow.land(number, span)
        if isinstance(outcome, Refusal):
            outcome = self._receive_elsewhere(self._flow.owner_of(number), outcome, ask_range(self._names, number), span)
        self._used = time.monotonic()
        if not outcome:
            self._end()
            self._forget()
            piece = number * RANGE_NBYTES // PIECE_NBYTES
            raise EvictedError(f"redis: piece {piece} of {len(self._names)} is missing: it expired or was evicted")
        return span.nbytes

    def _end(self) -> None:
        flow, self._flow = self._flow, None
        if flow is not None:
            flow.leases.close()

    def _begin(self, first: int, leases: Leases | None) -> _Flow:
        """Have the record flow from range `first` on."""
        owners = [self._route.node_of(name) for name in self._names]
        n_asked = 0 if leases is None else 1
        leases = leases or Leases(owners[first * RANGE_NBYTES // PIECE_NBYTES :])
        leases.require()
        flow = _Flow(self._names, owners, range(first, -(-self.nbytes // RANGE_NBYTES)), leases, n_asked)
        leases.lend_to(self)
        try:
            flow.ask_all(self._ahead_nbytes // RANGE_NBYTES)
        except BaseException:
            leases.close()
            raise
        return flow

    def _receive_elsewhere(self, owner: Node, refusal: Refusal, command: Command, span: memoryview) -> bool:
        """Receive a range from the node that its owner points to."""
        other = self._route.redirect(owner, refusal)
        leases = Leases([other])
        leases.require()
        try:
            connection = leases[other]
            if refusal.code == "ASK":
                connection.ask(b"ASKING")
            connection.ask(*command)
            if refusal.code == "ASK":
                connection.reply()
            outcome = connection.land(span)
        finally:
            leases.close()
        if isinstance(outcome, Refusal):
            raise outcome.error(f"redis at {other.address}")
        return outcome


class _Flow:
    """Ranges that are asked for ahead, each of the server that has its piece; the first `n_asked` were asked for already."""

    def __init__(self, names: Sequence[bytes], owners: Sequence[Node], ranges: range, leases: Leases, n_asked: int) -> None:
        self.leases = leases
        self._names = names
        self._owners = [owners[number * RANGE_NBYTES // PIECE_NBYTES] for number in ranges]
        self._first = ranges.start
        self._unasked: dict[Node, deque[int]] = {owner: deque() for owner in self._owners}
        for owner, number in list(zip(self._owners, ranges, strict=True))[n_asked:]:
            self._unasked[owner].append(number)

    def ask_all(self, count: int) -> None:
        """Ask each server for its next ranges."""
        for owner in self._unasked:
            self._ask(owner, count)

    def gives_way(self, number: int) -> bool:
        """Whether somebody waits for the connection and nothing is on its way, up to a range that is awaited now."""
        owner = self.owner_of(number)
        return owner.is_wanted and self._is_next(owner, number)

    def land(self, number: int, span: memoryview) -> bool | Refusal:
        """Receive a range, and ask for one more of the same server unless others wait for it."""
        owner = self.owner_of(number)
        if not owner.is_wanted or self._is_next(owner, number):
            self._ask(owner, 1)
        return self.leases[owner].land(span)

    def owner_of(self, number: int) -> Node:
        """Return the server of a range."""
        return self._owners[number - self._first]

    def _is_next(self, owner: Node, number: int) -> bool:
        """Whether a range was not asked for yet."""
        unasked = self._unasked[owner]
        return bool(unasked) and unasked[0] <= number

    def _ask(self, owner: Node, count: int) -> None:
        """Ask a server for so many more of its ranges."""
        unasked, connection = self._unasked[owner], self.leases[owner]
        for _ in range(min(count, len(unasked))):
            connection.ask(*ask_range(self._names, unasked.popleft()))
        connection.flush()


def discard(leases: Leases, owner: Node) -> None:
    """Take the reply to a range of a record that is not there, and give the connection back, or close it if there is something."""
    with suppress(CorruptError):
        leases[owner].land(memoryview(bytearray()))
    leases.close()
