"""Tickets: what lets a connection in that was vouched for over an authenticated call."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from kvstore.core.errors import AuthError, CapacityError
from kvstore.server.access.auth import Identity

TICKET_NBYTES = 32
LIFETIME_S = 10.0
MAX_TICKETS = 65536


class Tickets:
    """Issues random tickets that stand for a caller, once and for a short time. Thread-safe."""

    def __init__(self, lifetime_s: float = LIFETIME_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._lock = threading.Lock()
        self._issued: OrderedDict[bytes, tuple[Identity, float]] = OrderedDict()  # oldest first

    def issue(self, caller: Identity) -> bytes:
        """Return a new ticket; raises CapacityError when too many are waiting to be used."""
        ticket = secrets.token_bytes(TICKET_NBYTES)
        with self._lock:
            self._forget_old()
            if len(self._issued) >= MAX_TICKETS:
                raise CapacityError(f"{MAX_TICKETS} tickets wait to be used; connect before asking for more")
            self._issued[ticket] = (caller, self._clock() + self._lifetime_s)
        return ticket

    def redeem(self, ticket: bytes) -> Identity:
        """Return the caller of a ticket, which is worth nothing from now on; raises AuthError."""
        with self._lock:
            self._forget_old()
            found = self._issued.pop(bytes(ticket), None)
        if found is None:
            raise AuthError("the ticket is unknown, used or too old; ask for another one")
        return found[0]

    def _forget_old(self) -> None:
        now = self._clock()
        while self._issued and next(iter(self._issued.values()))[1] <= now:
            self._issued.popitem(last=False)
