"""Who may see the console where it is not on loopback, and what is written down of it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from kvstore.core.errors import AuthError, ForbiddenError
from kvstore.server.access.audit import AuditLog
from kvstore.server.access.auth import Authenticate, Identity
from kvstore.server.observe.web import Visitor

KNOWN_FOR_S = 900.0


class Admins:
    """Tells whether a visitor shows the token of an admin. Thread-safe.

    Whoever shows another one leaves an audit line. So does an admin who looks, and again as long as it goes on each quarter of an hour: a
    page that is open asks every few seconds.
    """

    def __init__(self, authenticate: Authenticate, audit: AuditLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._authenticate, self._audit, self._clock = authenticate, audit, clock
        self._noted_at_s: dict[tuple[Identity, str], float] = {}  # by caller and address, ports aside
        self._lock = threading.Lock()

    def __call__(self, visitor: Visitor) -> bool:
        """Let a visitor in or not."""
        try:
            caller = self._authenticate((("authorization", visitor.authorization),))
        except AuthError as error:
            self._audit.refused("console", visitor.peer, error)
            return False
        if not caller.is_admin:
            self._audit.refused("console", visitor.peer, ForbiddenError("the console needs the token of an admin"), caller)
        elif self._is_news(caller, visitor.peer):
            self._audit.acted(caller, "console", "", visitor.peer, "OK")
        return caller.is_admin

    def _is_news(self, caller: Identity, peer: str) -> bool:
        """Tell whether nothing was noted of a caller at an address for a while, and note it."""
        who, now_s = (caller, peer.rpartition(":")[0]), self._clock()
        with self._lock:
            if now_s - self._noted_at_s.get(who, -math.inf) < KNOWN_FOR_S:
                return False
            self._noted_at_s = {each: at_s for each, at_s in self._noted_at_s.items() if now_s - at_s < KNOWN_FOR_S}
            self._noted_at_s[who] = now_s
            return True
