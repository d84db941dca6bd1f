"""The tcp lane: chunks over plain or TLS sockets beside the gRPC channel that vouched for them."""

from __future__ import annotations

import secrets
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from kvclient.channel import is_loopback
from kvclient.lanes.body import land_in_row, split
from kvclient.lanes.connections import Connections
from kvclient.lanes.frames import Found, Kind, pack_keys, pack_put, pack_share, parse_count, parse_found, parse_receipt
from kvclient.lanes.lane import check_sizes
from kvclient.lanes.put_frames import NAME_NBYTES, Lent, pack_lent, pack_put_lent
from kvclient.lanes.share import Share
from kvclient.lanes.socket_frames import SocketFrames
from kvclient.lanes.stripes import PIECE_NBYTES, STRIPE_NBYTES, InTurn, Striped
from kvstore.core.api import PutNote, PutReceipt, Status
from kvstore.core.blob import Buffer
from kvstore.core.errors import DeadlineError, FormatError, KVError, TierUnavailableError
from kvstore.core.key import ChunkKey
from kvstore.core.landing import Landing
from kvstore.core.pool import BufferPool

CONNECTIONS = 8
LOOPBACK_BUFFER_BYTES = 256 << 10  # both ends: what is under way stays in the processor's cache
C = TypeVar("C", bound=SocketFrames)
T = TypeVar("T")
_CONNECT_S = 5.0  # a firewall that swallows what it is sent must not cost a whole deadline


@dataclass(frozen=True)
class TcpSettings:
    """How a tcp lane dials.

    Parameters
    ----------
    host, port : str, int
        Where the store listens.
    socket_buffer_bytes : int
        Send and receive buffer of a connection; 0 leaves it to the system. 256 KiB keeps a loopback in the processor's cache; a network
        wants at least bandwidth times round trip.
    stripes : int
        Connections that carry a large chunk together. On one machine they gain nothing.
    tls : ssl.SSLContext or None
        None sends plain text.
    server_name : str
        Name in the server's certificate.
    """

    host: str
    port: int
    socket_buffer_bytes: int = 0
    stripes: int = 1
    tls: ssl.SSLContext | None = None
    server_name: str = ""


class TcpLane:
    """Implements `Lane`. Copies in this process: get none (the system writes into pooled memory), put none; under TLS one each.

    A request is sent whole before its answer is read, and the answer of a batch is one stream: the next chunk is on its way while the last
    one is being read.
    """

    name: ClassVar[str] = "tcp"

    def __init__(self, settings: TcpSettings, ticket: Callable[[float], bytes], pool: BufferPool, max_blob_nbytes: int) -> None:
        self._settings = settings
        self._ticket = ticket
        self._pool = pool
        self._max_blob_nbytes = max_blob_nbytes
        self._connections: Connections[SocketFrames] = Connections(self._dial, CONNECTIONS)
        self._last_nbytes = 0  # of the last chunk that was asked for alone: the next one may be as large

    def get(self, keys: Sequence[ChunkKey], deadline: float) -> list[tuple[Found, Landing | None]]:
        """Ask for chunks in one round trip; one that is expected to be large, over several connections."""
        if len(keys) != 1:
            return self._get_whole(keys, deadline)
        stripes = self._stripes(self._last_nbytes)
        answer = self._get_striped(keys[0], stripes, deadline) if stripes > 1 else None
        answer = answer or self._get_whole(keys, deadline)[0]
        self._last_nbytes = answer[0].nbytes
        return [answer]

    def _stripes(self, nbytes: int) -> int:
        """Return by how many connections a chunk of so many bytes travels."""
        return min(self._settings.stripes, nbytes // STRIPE_NBYTES)

    def _get_striped(self, key: ChunkKey, stripes: int, deadline: float) -> tuple[Found, Landing | None] | None:
        """Ask for a chunk over the connections that are free; None when it has to be asked for as a whole.

        That is when only one is free, when the chunk is not there, or when another one took its place between two shares.
        """
        carriers: list[SocketFrames] = []
        try:
            self._take_free(carriers, stripes, deadline)
            shares = _shares(carriers)
            if len(carriers) > 1:
                for carrier, share in zip(carriers, shares, strict=True):
                    carrier.ask(Kind.GET_SHARE, pack_share(key, share), deadline)
                found = [_expect_share(*each, self._max_blob_nbytes, deadline) for each in zip(carriers, shares, strict=True)]
                if found[0].status is Status.READY and len(set(found)) == 1:
                    return found[0], land_in_row(Striped(carriers, self._connections), [found[0].nbytes], self._pool, deadline)[0]
        except BaseException:
            self._give(carriers)
            raise
        self._give(carriers)
        return None

    def _take_free(self, carriers: list[SocketFrames], count: int, deadline: float) -> None:
        """Add connections that are free until there are so many."""
        while len(carriers) < count and (carrier := self._connections.take_free(deadline)):
            carriers.append(carrier)

    def _give(self, carriers: Sequence[SocketFrames]) -> None:
        for carrier in carriers:
            self._connections.give(carrier)

    def _get_whole(self, keys: Sequence[ChunkKey], deadline: float) -> list[tuple[Found, Landing | None]]:
        frames = self._connections.take(deadline)
        try:
            frames.ask(Kind.GET, pack_keys(keys), deadline)
            head, body_nbytes = frames.expect(Kind.FOUND, deadline)
            found = parse_found(head, len(keys))
            check_sizes(found, self._max_blob_nbytes)
            sizes = [each.nbytes for each in found if each.status is Status.READY]
            check_body(body_nbytes, sum(sizes))
        except BaseException:
            self._connections.give(frames)
            raise
        landings = iter(land_answer(frames, self._connections, body_nbytes, sizes, self._pool, deadline))
        return [(each, next(landings) if each.status is Status.READY else None) for each in found]

    def put(self, blob: Buffer, header_nbytes: int, note: PutNote, deadline: float) -> PutReceipt:
        """Send a blob straight from the caller's memory."""
        view = memoryview(blob).cast("B")
        header, body = view[:header_nbytes], view[header_nbytes:]
        carriers = [self._connections.take(deadline)]
        try:
            self._take_free(carriers, self._stripes(body.nbytes), deadline)
            if len(carriers) > 1:
                _send_striped(carriers, header, body, note, deadline)
            else:
                carriers[0].ask(Kind.PUT, pack_put(note, header), deadline, body)
            receipt = parse_receipt(carriers[0].expect(Kind.STORED, deadline)[0])
            for carrier in carriers:
                carrier.owes_answer = False
            return receipt
        finally:
            self._give(carriers)

    def retire(self) -> bool:
        """Close each connection that is not in use, and the others when they come back; tell whether there are such."""
        return self._connections.retire()

    def close(self) -> None:
        """Close every connection."""
        self._connections.close()

    def _dial(self, deadline: float) -> SocketFrames:
        """Open a connection with a fresh ticket."""
        settings = self._settings
        ticket = self._ticket(deadline)
        timeout_s = max(0.001, min(deadline - time.monotonic(), _CONNECT_S))
        connection: socket.socket | None = None
        try:
            connection = socket.create_connection((settings.host, settings.port), timeout_s)
            tune(connection, settings.socket_buffer_bytes)
            if settings.tls is not None:
                connection = settings.tls.wrap_socket(connection, server_hostname=settings.server_name or settings.host)
        except OSError as error:
            if connection is not None:
                connection.close()
            raise TierUnavailableError(f"{settings.host}:{settings.port}: {error}") from error
        frames = SocketFrames(connection, f"{settings.host}:{settings.port}")
        greet(frames, ticket, deadline, parse_count)
        return frames


class _Answer(Generic[C]):
    """Implements `kvclient.lanes.body.Source` over a connection, which goes back when the body has been received."""

    def __init__(self, frames: C, connections: Connections[C]) -> None:
        self._frames, self._connections = frames, connections

    def receive_into(self, room: memoryview, deadline: float) -> int:
        return self._frames.receive_into(room, deadline)

    def done(self) -> None:
        self._frames.owes_answer = False
        self._connections.give(self._frames)

    def abandon(self) -> None:
        self._connections.give(self._frames)


def _shares(carriers: Sequence[SocketFrames]) -> list[Share]:
    """Return what each of the connections carries."""
    return [Share(index, len(carriers), PIECE_NBYTES) for index in range(len(carriers))]


def _send_striped(carriers: Sequence[SocketFrames], header: memoryview, body: memoryview, note: PutNote, deadline: float) -> None:
    """Announce a put by the first connection, lend it the others, and send the body over all of them."""
    name, (own, *others) = secrets.token_bytes(NAME_NBYTES), _shares(carriers)
    for carrier, share in zip(carriers[1:], others, strict=True):
        carrier.send(Kind.LEND, pack_lent(Lent(name, share)), deadline)
    carriers[0].ask(Kind.PUT_LENT, pack_put_lent(Lent(name, own), note, header), deadline, body_nbytes=body.nbytes)
    InTurn(carriers).send(body, deadline)


def _expect_share(carrier: SocketFrames, share: Share, max_blob_nbytes: int, deadline: float) -> Found:
    """Receive the head of the answer to a request for a share."""
    head, body_nbytes = carrier.expect(Kind.FOUND, deadline)
    (found,) = parse_found(head, 1)
    check_sizes([found], max_blob_nbytes)
    check_body(body_nbytes, share.nbytes(found.nbytes))
    carrier.owes_answer = bool(body_nbytes)
    return found


def land_answer(
    frames: C, connections: Connections[C], body_nbytes: int, sizes: Sequence[int], pool: BufferPool, deadline: float
) -> Sequence[Landing]:
    """Return a landing for each of the chunks in an answer's body; the connection goes back when all of it has been received."""
    whole = frames.take_whole(body_nbytes)
    if whole is None:
        return land_in_row(_Answer(frames, connections), sizes, pool, deadline)
    connections.give(frames)
    return split(whole, sizes)


def greet(frames: SocketFrames, ticket: bytes, deadline: float, parse: Callable[[bytes], T]) -> T:
    """Show the ticket and return what the welcome says.

    Raises DeadlineError, or TierUnavailableError where the ticket is not accepted or something else answers.
    A balancer may send the connection to another store than the one that gave the ticket: no way for this client, but not its fault.
    """
    try:
        frames.send(Kind.HELLO, ticket, deadline)
        welcome = parse(frames.expect(Kind.WELCOME, deadline)[0])
        frames.owes_answer = False
    except BaseException as error:
        frames.close()
        if isinstance(error, KVError) and not isinstance(error, DeadlineError):
            raise TierUnavailableError(f"the lane did not let this client in: {error}") from error
        raise
    return welcome


def tune(connection: socket.socket, buffer_bytes: int) -> None:
    """Send small messages at once, and set the buffers before anything travels."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF) if buffer_bytes else ():
        connection.setsockopt(socket.SOL_SOCKET, option, buffer_bytes)


def near_buffer_bytes(connection: socket.socket) -> int:
    """Return the buffer of a connection within this machine; 0, the system's own choice, where it leads to another one."""
    return LOOPBACK_BUFFER_BYTES if is_loopback(f"{connection.getpeername()[0]}:0") else 0


def check_body(body_nbytes: int, expected_nbytes: int) -> None:
    """Raise FormatError when an answer's body is not as long as the chunks that it announces."""
    if body_nbytes != expected_nbytes:
        raise FormatError(f"an answer announced {expected_nbytes} B of chunks in a body of {body_nbytes} B")
