"""Listening sockets of the lanes: accept, check the ticket, and serve each connection on a thread of its own."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kvclient.lanes.frames import MAX_HEAD_NBYTES, Kind, pack_count, pack_directory, pack_error
from kvclient.lanes.socket_frames import SocketFrames
from kvclient.lanes.tcp import near_buffer_bytes, tune
from kvstore.core import calling
from kvstore.core.errors import AuthError, ConfigError, KVError
from kvstore.server.access.entrance import Entrance
from kvstore.server.budget import ByteBudget
from kvstore.server.guard import SilenceWatch
from kvstore.server.lanes.leases import Leases
from kvstore.server.lanes.listing import Listing
from kvstore.server.lanes.loans import Loans
from kvstore.server.lanes.session import Session
from kvstore.server.lanes.tickets import TICKET_NBYTES, Tickets
from kvstore.server.peer import peer_of
from kvstore.store.shared_blocks import SharedBlocks

logger = logging.getLogger(__name__)

GREETING_S = 5.0
_BACKLOG = 1024
_CREDENTIALS = struct.Struct("3i")


class Listener:
    """Serves one listening socket. What its clients can make it hold is bounded: `max_connections` threads, and bytes by `budget`.

    When one connection more comes, the one that said nothing for longest is closed, first among those that have not shown a ticket yet; a
    client opens another when it needs it. While all of them are at work, one more is refused.

    Parameters
    ----------
    listening : socket.socket
        Bound and listening.
    watch : SilenceWatch
        Hangs up on who is silent in the middle of a put while the server is busy, or out of budget.
    blocks : SharedBlocks or None
        Memory to share with clients of this socket, which is then a Unix socket whose peers have this process's user.
    tls : callable or None
        Returns the context that wraps a connection that comes now.
    patience_s : float
        Longest wait for a client in the middle of a message.
    """

    def __init__(
        self,
        listening: socket.socket,
        entrance: Entrance,
        tickets: Tickets,
        budget: ByteBudget,
        watch: SilenceWatch,
        patience_s: float,
        max_connections: int,
        socket_buffer_bytes: int = 0,
        blocks: SharedBlocks | None = None,
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        self._listening = listening
        self._entrance, self._tickets, self._budget, self._watch = entrance, tickets, budget, watch
        self._patience_s, self._max_connections, self._socket_buffer_bytes = patience_s, max_connections, socket_buffer_bytes
        self._blocks, self._tls = blocks, tls
        self._secret = secrets.token_bytes(32)
        self._loans = Loans()
        self._lock = threading.Lock()
        self._sessions: set[Session] = set()
        self._greeting: dict[socket.socket, None] = {}  # oldest first
        self._is_closed = False
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=run, name=f"lane-{run.__name__.strip('_')}", daemon=True) for run in (self._accept, self._expire)
        ]

    def start(self) -> None:
        """Accept connections from now on."""
        for thread in self._threads:
            thread.start()

    def close(self, drain_s: float = 0.0) -> None:
        """Accept no more, let requests finish for `drain_s`, and close every connection."""
        with self._lock:
            self._is_closed = True
            for connection in self._greeting:
                _hang_up(connection)
        self._closed.set()
        _hang_up(self._listening)  # wakes the thread that accepts, which closing does not
        self._listening.close()
        until = time.monotonic() + drain_s
        while time.monotonic() < until and any(not session.is_idle for session in self._all()):
            time.sleep(0.01)
        for session in self._all():
            session.close()
        until = time.monotonic() + 5.0
        while time.monotonic() < until and (self._all() or any(thread.is_alive() for thread in self._threads)):
            time.sleep(0.005)

    @property
    def n_connections(self) -> int:
        """Connections that are served now."""
        return len(self._all())

    @property
    def n_at_work(self) -> int:
        """Connections that are in the middle of a request."""
        return sum(not session.is_idle for session in self._all())

    def _all(self) -> list[Session]:
        with self._lock:
            return list(self._sessions)

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                connection, _ = self._listening.accept()
            except OSError as error:
                if self._is_closed:
                    return
                logger.warning("a lane could not accept a connection: %s", error)
                time.sleep(0.05)
                continue
            try:
                if self._tls is not None:
                    connection = self._tls().wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                if not self._admit(connection):
                    connection.close()
                    continue
            except (OSError, ValueError) as error:  # it went before it was wrapped
                logger.debug("a connection to a lane was refused: %s", error)
                connection.close()
                continue
            threading.Thread(target=self._run, args=(connection,), name="lane", daemon=True).start()

    def _admit(self, connection: socket.socket) -> bool:
        """Count a connection in, at the cost of the one that said nothing for longest when there are too many; False while all work."""
        with self._lock:
            if self._is_closed:
                return False
            if len(self._sessions) + len(self._greeting) >= self._max_connections:
                idle = [session for session in self._sessions if session.is_idle]
                if self._greeting:
                    silent = next(iter(self._greeting))
                    del self._greeting[silent]
                    _hang_up(silent)
                elif idle:
                    longest = min(idle, key=lambda session: session.idle_since)
                    self._sessions.discard(longest)
                    longest.close()
                else:
                    logger.warning("a lane refused a connection: %d are at work; raise lanes.max_connections", len(self._sessions))
                    return False
            self._greeting[connection] = None
            return True

    def _run(self, connection: socket.socket) -> None:
        """Greet a client and serve it until it goes."""
        session: Session | None = None
        try:
            session = self._greet(self._wrap(connection))
        except (KVError, OSError, ValueError) as error:  # ValueError: TLS on a connection that is closed
            logger.debug("a connection to a lane was refused: %s", error)
            self._note_refusal(connection, error)
        try:
            if session is not None and self._enter(connection, session):
                calling.work_for(session.caller.tenant)
                session.serve()
        except KVError as error:
            logger.debug("a connection of a lane ended: %s", error)
        except Exception:
            logger.exception("a connection of a lane failed")
        finally:
            if session is not None:
                session.close()
            connection.close()
            with self._lock:
                self._greeting.pop(connection, None)
                if session is not None:
                    self._sessions.discard(session)

    def _note_refusal(self, connection: socket.socket, error: Exception) -> None:
        """Leave an audit line of one who showed no ticket of ours, or no certificate; that somebody went away is no refusal."""
        if isinstance(error, ssl.SSLError):
            error = AuthError(f"the TLS handshake failed: {error.reason}")
        if isinstance(error, AuthError):
            self._entrance.audit.refused(f"lane {'shm' if self._blocks else 'tcp'}", peer_of(connection), error)

    def _enter(self, connection: socket.socket, session: Session) -> bool:
        """Note that a client showed its ticket; False when it was sent away meanwhile."""
        with self._lock:
            if self._is_closed or connection not in self._greeting:
                return False
            del self._greeting[connection]
            self._sessions.add(session)
            return True

    def _wrap(self, connection: socket.socket) -> SocketFrames:
        """Check who is there, and begin TLS where it is asked for."""
        connection.settimeout(GREETING_S)
        if self._blocks is not None:
            check_peer(connection)
        elif connection.family != socket.AF_UNIX:
            tune(connection, self._socket_buffer_bytes or near_buffer_bytes(connection))
        if isinstance(connection, ssl.SSLSocket):
            connection.do_handshake()
        return SocketFrames(connection, "client")

    def _greet(self, frames: SocketFrames) -> Session:
        """Redeem the ticket, and hand over the shared memory."""
        deadline = time.monotonic() + GREETING_S
        frames.max_head_nbytes = TICKET_NBYTES  # of whom nobody has vouched for
        try:
            ticket, _ = frames.expect(Kind.HELLO, deadline)
            caller = self._tickets.redeem(ticket)
            store = self._entrance.service.bind(caller.tenant)
        except KVError as error:
            if not frames.is_closed:
                frames.send(Kind.ERROR, pack_error(error), deadline)
            raise
        frames.max_head_nbytes = MAX_HEAD_NBYTES
        listing = Listing(self._blocks, self._secret, caller.tenant) if self._blocks is not None else None
        frames.send(Kind.WELCOME, pack_directory(listing.place) if listing else pack_count(0), deadline)
        if self._blocks is not None:
            frames.send_descriptor(self._blocks.descriptor, deadline)
        sharing = (Leases(self._blocks), listing) if self._blocks is not None and listing else None
        return Session(frames, store, sharing, self._budget, self._watch, self._patience_s, caller, self._loans)

    def _expire(self) -> None:
        """End leases that lasted too long, and connections of callers who would not be let in any more."""
        while not self._closed.wait(0.5):
            for session in self._all():
                if self._entrance.authenticate.still_accepts(session.caller):
                    session.expire()
                else:
                    session.close()


def _hang_up(connection: socket.socket) -> None:
    """Wake whoever waits at a socket; the thread that serves it closes it."""
    with suppress(OSError):  # it is not connected any more
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def listen_tcp(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket; an address that is taken raises ConfigError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(f"lanes: {host}:{port} can't be bound: {error}") from error


def listen_unix(path: Path) -> socket.socket:
    """Return a listening Unix socket that only this user can reach; a socket that nobody serves any more is replaced."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(before)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise ConfigError(f"lanes: the socket {path} can't be made: {error}") from error
    return listening


def check_peer(connection: socket.socket) -> None:
    """Raise AuthError unless the process at the other end has this process's user."""
    _, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if user != os.getuid():
        raise AuthError(f"user {user} may not use the memory of user {os.getuid()}")
