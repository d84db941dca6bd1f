"""A client of the lanes that says what a test wants it to say."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from kvclient.channel import bearer
from kvclient.lanes.frames import Kind
from kvclient.lanes.socket_frames import SocketFrames
from kvproto.v1 import store_pb2 as pb
from kvproto.v1.store_pb2_grpc import StoreServiceStub
from kvstore.server.grpc_server import RpcServer
from kvstore.server.lanes.doors import Doors
from tests.server.serving import TOKENS

SOCKETS = ("shm", "tcp")
PATIENCE_S = 10.0


def soon() -> float:
    """Return the deadline of something that should be there at once."""
    return time.monotonic() + PATIENCE_S


def until(is_so: Callable[[], bool]) -> None:
    """Wait until something that should happen did."""
    ends = soon()
    while not is_so() and time.monotonic() < ends:
        time.sleep(0.005)
    assert is_so()


def doors_of(server: RpcServer) -> Doors:
    """Return the lanes of a server."""
    return next(bound for close in server.closers if isinstance(bound := getattr(close, "__self__", None), Doors))


def offer(server: RpcServer, tenant: str = "alpha") -> pb.OpenLaneResponse:
    """Ask a server for its lanes and a ticket."""
    with grpc.insecure_channel(server.address) as channel:
        stub = StoreServiceStub(channel)  # type: ignore[no-untyped-call]
        answer: pb.OpenLaneResponse = stub.OpenLane(pb.OpenLaneRequest(), metadata=bearer(TOKENS[tenant]), timeout=PATIENCE_S)
        return answer


def connect(offered: pb.OpenLaneResponse, lane: str) -> socket.socket:
    """Connect to a lane without a word."""
    if lane == "tcp":
        return socket.create_connection(("127.0.0.1", offered.tcp_port), PATIENCE_S)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE_S)
    connection.connect(offered.shm_path)
    return connection


@contextmanager
def greeted(server: RpcServer, lane: str, tenant: str = "alpha") -> Iterator[SocketFrames]:
    """Connect to a lane and show a ticket; what the server hands over is closed at once."""
    offered = offer(server, tenant)
    frames = SocketFrames(connect(offered, lane), lane)
    try:
        frames.reads_ahead = False
        frames.send(Kind.HELLO, offered.ticket, soon())
        frames.expect(Kind.WELCOME, soon())
        if lane == "shm":
            socket.close(frames.receive_descriptor(soon()))
        frames.reads_ahead = True
        yield frames
    finally:
        frames.close()


def is_hung_up(connection: socket.socket) -> bool:
    """Tell whether the other side closes a connection without another word."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True
