"""Servers that lie: by gRPC, and by the sockets of the lanes."""

from __future__ import annotations

import array
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc

from kvclient import wire
from kvclient.lanes.choice import LaneName, machine_id
from kvclient.lanes.frames import (
    FRAME,
    DirectoryPlace,
    Found,
    Kind,
    Place,
    pack_count,
    pack_directory,
    pack_found,
    pack_frame,
    pack_placed,
    parse_frame,
)
from kvclient.lanes.grpc_lane import SERVICE
from kvclient.remote import RemoteStore
from kvclient.retry import Retry
from kvproto.v1 import store_pb2 as pb
from kvproto.v1 import store_pb2_grpc as pb_grpc
from kvstore.core.api import Hit, Status
from kvstore.core.errors import KVError, TierUnavailableError
from tests.server.chunks import key, make_blob

BLOB = make_blob(part_nbytes=400)
TOKEN = "t" * 20
DIRECTORY = DirectoryPlace(256, 1, bytes(16))  # empty, in the first 4 KiB
WELCOMES = {
    "shm": pack_frame(Kind.WELCOME, len(pack_directory(DIRECTORY)), 0) + pack_directory(DIRECTORY),
    "tcp": pack_frame(Kind.WELCOME, 8, 0) + pack_count(0),
}


class Liar(pb_grpc.StoreServiceServicer):
    """Answers a get with the messages it was given, then stalls if told so."""

    def __init__(self) -> None:
        self.fetched = fetched(pack_found([ready()]))
        self.messages: list[bytes] = []
        self.failures = 0
        self.stalls = False
        self.end = threading.Event()
        self.offer = pb.OpenLaneResponse()

    def add_to(self, server: grpc.Server) -> None:
        """Serve both services."""
        pb_grpc.add_StoreServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call]
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Fetch": grpc.unary_unary_rpc_method_handler(self._fetch),
            "Get": grpc.unary_stream_rpc_method_handler(self._get),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))

    def _fetch(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        return self.fetched

    def _get(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        if self.failures:
            self.failures -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        yield from self.messages
        if self.stalls:
            self.end.wait(10)

    def OpenLane(self, request: pb.OpenLaneRequest, context: grpc.ServicerContext) -> pb.OpenLaneResponse:  # noqa: N802
        """Lead to where the test wants it."""
        return self.offer

    def Lookup(self, request: pb.LookupRequest, context: grpc.ServicerContext) -> pb.LookupResponse:  # noqa: N802
        """Answer for a key that nobody asked for."""
        return pb.LookupResponse(hits=[wire.hit_to_wire(Hit(key(make_blob(5)), Status.READY, "memory", 1))])


class SocketLiar(threading.Thread):
    """Welcomes one connection after the other and answers each request with the same bytes, then stalls or hangs up.

    Attributes
    ----------
    welcome : bytes
        Sent for the greeting.
    descriptor : int
        Handed over behind the welcome, and once more for a staging ring; -1 for none.
    answers : list of bytes
        Sent for the first, second, ... message of a connection.
    stalls : bool
        Stay connected when all was said.
    """

    def __init__(self, listening: socket.socket) -> None:
        super().__init__(name="lane-liar", daemon=True)
        self._listening = listening
        self._connections: list[socket.socket] = []
        self.welcome = b""
        self.descriptor = -1
        self.answers: list[bytes] = []
        self.stalls = False
        self.n_connections = 0

    def run(self) -> None:
        """Serve until closed."""
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.n_connections += 1
                self._connections.append(connection)
                with suppress(OSError, KVError):
                    self._serve(connection)
                if not self.stalls:
                    connection.close()

    def close(self) -> None:
        """Hang up."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in self._connections:
            connection.close()
        self.join()

    def _serve(self, connection: socket.socket) -> None:
        self._take(connection)
        connection.sendall(self.welcome)
        self._hand_over(connection)
        for answer in self.answers:
            while (kind := self._take(connection)) is Kind.READ:
                pass
            connection.sendall(answer)
            if kind is Kind.STAGE:
                self._hand_over(connection)

    def _hand_over(self, connection: socket.socket) -> None:
        if self.descriptor >= 0:
            rights = array.array("i", [self.descriptor]).tobytes()
            connection.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    def _take(self, connection: socket.socket) -> Kind:
        """Receive one message, body and all."""
        kind, head_nbytes, body_nbytes = parse_frame(connection.recv(FRAME.size, socket.MSG_WAITALL).ljust(FRAME.size, b"\0"))
        left = head_nbytes + (body_nbytes if kind is not Kind.PUT_STAGED else 0)
        while left:
            left -= len(connection.recv(min(left, 1 << 16))) or left
        return kind


@contextmanager
def lied_to(
    liar: Liar, attempts: int = 1, max_blob_bytes: int = 1 << 20, lane: LaneName = "grpc", timeout_s: float = 5.0
) -> Iterator[RemoteStore]:
    """Connect to a server that lies."""
    server = grpc.server(ThreadPoolExecutor(4))
    liar.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    retry = Retry(attempts, first_pause_s=0.01, seed=1)
    remote = RemoteStore(f"127.0.0.1:{port}", TOKEN, timeout_s=timeout_s, retry=retry, max_blob_bytes=max_blob_bytes, lane=lane)
    try:
        yield remote
    finally:
        liar.end.set()
        remote.close()
        server.stop(None).wait()


@contextmanager
def lying_socket(lane: LaneName, folder: Path, arena: bytes = bytes(4096)) -> Iterator[tuple[SocketLiar, RemoteStore]]:
    """Connect to a server whose socket lane lies; its shared memory holds `arena`."""
    liar, listening = Liar(), socket.socket(socket.AF_UNIX if lane == "shm" else socket.AF_INET)
    descriptor = os.memfd_create("lies")
    os.write(descriptor, arena)
    folder.mkdir(exist_ok=True)
    path = folder / "socket"
    listening.bind(str(path) if lane == "shm" else ("127.0.0.1", 0))
    listening.listen()
    if lane == "shm":
        liar.offer = pb.OpenLaneResponse(ticket=bytes(32), shm_path=str(path), machine=machine_id())
    else:
        liar.offer = pb.OpenLaneResponse(ticket=bytes(32), tcp_port=listening.getsockname()[1])
    sockets = SocketLiar(listening)
    sockets.welcome = WELCOMES[lane]
    sockets.descriptor = descriptor if lane == "shm" else -1
    sockets.start()
    try:
        with lied_to(liar, lane=lane) as remote:
            yield sockets, remote
    finally:
        sockets.close()
        os.close(descriptor)


def ready(nbytes: int = len(BLOB), place: Place | None = None) -> Found:
    """Return what is told of a chunk."""
    return Found(Status.READY, "memory", nbytes, place)


def fetched(head: bytes, rest: bytes | bytearray | None = None) -> bytes:
    """Return an answer to Fetch, with or without the chunks."""
    return len(head).to_bytes(4, "little") + (b"\0" if rest is None else b"\1") + head + (rest or b"")


def framed(kind: Kind, head: bytes, body: bytes | bytearray = b"", body_nbytes: int | None = None) -> bytes:
    """Return a message, which may announce another body than it has."""
    return pack_frame(kind, len(head), len(body) if body_nbytes is None else body_nbytes) + head + body


def told(lane: str, found: Found, body: bytes | bytearray = b"", body_nbytes: int | None = None) -> bytes:
    """Return the answer to a request for one chunk by a socket."""
    kind, head = (Kind.PLACED, pack_placed([found])) if lane == "shm" else (Kind.FOUND, pack_found([found]))
    return framed(kind, head, body, body_nbytes)


def read_all(remote: RemoteStore, timeout_s: float = 5.0) -> list[bytes] | None:
    """Read a whole chunk."""
    reader = remote.get(key(BLOB), timeout_s)
    if reader is None:
        return None
    try:
        return [bytes(reader.part(index)) for index in range(len(reader.manifest.parts))]
    finally:
        reader.close()


def read_next(remote: RemoteStore) -> list[bytes] | None:
    """Read a whole chunk; the connection that a liar hung up may be tried first."""
    with suppress(TierUnavailableError):
        return read_all(remote)
    return read_all(remote)


def flipped(at: int) -> bytearray:
    """Return the chunk with one bit changed."""
    blob = bytearray(BLOB)
    blob[at] ^= 1 << (at % 8)
    return blob
