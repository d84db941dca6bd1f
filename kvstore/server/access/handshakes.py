"""Connections of a gRPC server that end before their first call: all that can be seen of a TLS handshake that failed.

gRPC asks for its certificates before each handshake, and tells nobody how that one ended. So whoever is connected is read from the system
when one begins. Who leaves without a call had no certificate that is accepted, spoke no TLS, or went away, and leaves an audit line.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from kvstore.core.errors import AuthError
from kvstore.server.access.audit import AuditLog
from kvstore.server.peer import spell

CALL = "TLS handshake"
_LISTED_S = 0.05  # the least between two readings, which cost some microseconds for each connection
_LOOKED_S = 0.25
_TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
_ESTABLISHED = "01"


class Handshakes:
    """Knows who is connected and has not called yet; `run` on a thread of its own. Thread-safe.

    In a flood of connections, those that last less than `_LOOKED_S` may be missed; the audit log would leave most of them out too.

    Parameters
    ----------
    connected : callable
        Returns the peers of all connections that are open now, spelled as gRPC does.
    clock : callable
        Monotonic seconds.
    """

    def __init__(self, audit: AuditLog, connected: Callable[[], Collection[str]], clock: Callable[[], float] = time.monotonic) -> None:
        self._audit, self._connected, self._clock = audit, connected, clock
        self._lock = threading.Lock()
        self._waiting: set[str] = set()
        self._called: set[str] = set()
        self._listed_at = -_LISTED_S
        self._is_behind = False  # a handshake began that nobody looked at
        self._stopped = threading.Event()

    @property
    def is_watching(self) -> bool:
        """Whether it matters who calls."""
        return bool(self._waiting) or self._is_behind

    def begin(self) -> None:
        """Note that somebody connected."""
        if self._clock() - self._listed_at < _LISTED_S:
            self._is_behind = True
        else:
            self.look()

    def called(self, peer: str) -> None:
        """Note that somebody was let in."""
        with self._lock:
            self._waiting.discard(peer)
            self._called.add(peer)

    def look(self) -> None:
        """Note who came and who went; one who went without a call leaves an audit line."""
        with self._lock:
            self._listed_at, self._is_behind = self._clock(), False
            now = set(self._connected())
            gone, self._called = self._waiting - now, self._called & now
            self._waiting = now - self._called
        for peer in sorted(gone):
            why = "no call came over the connection: no certificate that server.tls.client_ca signed, no TLS, or it went away"
            self._audit.refused(CALL, peer, AuthError(why))

    def run(self) -> None:
        """Look while somebody has not called yet, until `stop`."""
        while not self._stopped.wait(_LOOKED_S):
            if self.is_watching:
                self.look()

    def stop(self) -> None:
        """End `run`."""
        self._stopped.set()


def peers_of(port: int, tables: Collection[Path] = _TABLES) -> list[str]:
    """Return who is connected to a TCP port of this machine, as "ipv4:host:port" or "ipv6:%5Bhost%5D:port"; nobody without the tables."""
    found = []
    for table in tables:
        with suppress(OSError):  # another system
            rows = [line.split(maxsplit=4) for line in table.read_text().splitlines()[1:]]
            found += [_spelled(remote) for _, local, remote, state, _ in rows if state == _ESTABLISHED and local.endswith(f":{port:04X}")]
    return found


def _spelled(place: str) -> str:
    """Return a place as gRPC spells it; the table has 32-bit words in this machine's order, which is little-endian, and the port in hex."""
    words, _, port = place.partition(":")
    address = b"".join(bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
    return spell(IPv4Address(address) if len(address) == 4 else IPv6Address(address), int(port, 16))
