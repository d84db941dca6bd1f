"""What our lanes are compared with: copying memory, a bare socket, and the plainest use of gRPC and of redis-py.

All of them run with the C library's own settings of its allocator: who writes the plainest code tunes nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.wrappers_pb2 import BytesValue, Int64Value

from kvworker.bench.transport_processes import Server
from kvworker.bench.transport_timing import Operation

Bytes = npt.NDArray[np.uint8]

BUFFER_BYTES = 256 << 10
_SLICE_NBYTES = 1 << 20
_HEADER_NBYTES = 9  # one letter, then the payload's length as a little-endian integer
_EMPTY, _GET, _PUT = "/plain/Empty", "/plain/Get", "/plain/Put"
_OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


def payload(nbytes: int) -> Bytes:
    """Return random bytes, the same in every run."""
    return np.random.default_rng(nbytes).integers(0, 256, nbytes, dtype=np.uint8)


def serve_socket(pipe: Connection) -> None:
    """Answer one connection: send on `G`, receive and acknowledge on `P`."""
    with socket.socket() as listener:
        _tune(listener)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        pipe.send(f"127.0.0.1:{listener.getsockname()[1]}")
        connection, _ = listener.accept()
    data = np.zeros(0, np.uint8)
    with connection, suppress(ConnectionError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while header := connection.recv(_HEADER_NBYTES, socket.MSG_WAITALL):
            nbytes = int.from_bytes(header[1:], "little")
            data = data if data.nbytes == nbytes else payload(nbytes)
            if header[:1] == b"G":
                connection.sendall(data.data)
            else:
                _read_into(connection, data.data)
                connection.sendall(b"k")


def serve_plain_grpc(pipe: Connection) -> None:
    """Answer empty calls at once, and carry payloads in a bytes field."""
    server = grpc.server(ThreadPoolExecutor(4), options=_OPTIONS)
    stored: dict[int, bytes] = {}

    def get(request: Int64Value, _: grpc.ServicerContext) -> BytesValue:
        return BytesValue(value=stored[request.value])

    def put(request: BytesValue, _: grpc.ServicerContext) -> Int64Value:
        value = request.value
        stored[len(value)] = value
        return Int64Value(value=len(value))

    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Empty": grpc.unary_unary_rpc_method_handler(lambda request, _: b""),
        "Get": grpc.unary_unary_rpc_method_handler(get, Int64Value.FromString, BytesValue.SerializeToString),
        "Put": grpc.unary_unary_rpc_method_handler(put, BytesValue.FromString, Int64Value.SerializeToString),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("plain", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    pipe.send(f"127.0.0.1:{port}")
    with suppress(EOFError):
        pipe.recv()
    server.stop(None)


class References:
    """Implements `Subject`: `memcpy`, `socket`, `naive_protobuf`, `grpc.empty`, and `redis_py` where there is a Redis."""

    def __init__(self, bare: Server, plain: Server, redis: Server | None) -> None:
        self._pids = bare.pid, plain.pid
        host, _, port = bare.address.rpartition(":")
        self._connection = socket.socket()
        _tune(self._connection)
        self._connection.connect((host, int(port)))
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._channel = grpc.insecure_channel(plain.address, options=_OPTIONS)
        self._redis = redis
        self._redis_client = _redis_client(redis.address) if redis else None

    def prepare(self, nbytes: int, n_chunks: int) -> Mapping[str, Operation]:
        """Return the operations on payloads of one size."""
        src, dst = payload(nbytes), np.zeros(nbytes, np.uint8)
        memcpy = {"memcpy": Operation(partial(np.copyto, dst, src))}
        return memcpy | self._on_socket(src, dst) | self._on_grpc(src) | self._on_redis(src.tobytes())

    def close(self) -> None:
        """Close all connections."""
        self._connection.close()
        self._channel.close()
        if self._redis_client is not None:
            self._redis_client.close()

    def _on_socket(self, src: Bytes, dst: Bytes) -> dict[str, Operation]:
        connection, length = self._connection, src.nbytes.to_bytes(_HEADER_NBYTES - 1, "little")

        def get() -> None:
            connection.sendall(b"G" + length)
            _read_into(connection, dst.data)

        def put() -> None:
            connection.sendall(b"P" + length)
            connection.sendall(src.data)
            connection.recv(1)

        return {f"socket.{name}": Operation(run, self._pids[:1]) for name, run in (("get", get), ("put", put))}

    def _on_grpc(self, src: Bytes) -> dict[str, Operation]:
        empty: Callable[..., bytes] = self._channel.unary_unary(_EMPTY)
        ask: Callable[..., BytesValue] = self._channel.unary_unary(_GET, Int64Value.SerializeToString, BytesValue.FromString)
        send = self._channel.unary_unary(_PUT, BytesValue.SerializeToString, Int64Value.FromString)
        value = src.tobytes()
        send(BytesValue(value=value))
        operations: dict[str, Callable[[], object]] = {
            "grpc.empty": lambda: empty(b""),
            "naive_protobuf.get": lambda: np.frombuffer(ask(Int64Value(value=len(value))).value, np.uint8),
            "naive_protobuf.put": lambda: send(BytesValue(value=value)),
        }
        return {name: Operation(run, self._pids[1:]) for name, run in operations.items()}

    def _on_redis(self, value: bytes) -> dict[str, Operation]:
        client = self._redis_client
        if self._redis is None or client is None:
            return {}
        pids = (self._redis.pid,)
        client.set("get", value)
        return {
            "redis_py.get": Operation(partial(client.get, "get"), pids),
            "redis_py.put": Operation(partial(client.set, "put", value), pids, partial(client.unlink, "put")),
        }


@contextmanager
def open_references(bare: Server, plain: Server, redis: Server | None) -> Iterator[References]:
    """Connect to the servers."""
    references = References(bare, plain, redis)
    try:
        yield references
    finally:
        references.close()


def _redis_client(path: str) -> Any:
    from kvstore.store.redis.client import import_redis

    return import_redis().Redis(unix_socket_path=path)


def _tune(connection: socket.socket) -> None:
    """Bound the socket's queues so that they stay in the processor's cache."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)


def _read_into(connection: socket.socket, view: memoryview) -> None:
    """Fill a buffer in slices of 1 MiB, each read by one system call."""
    done = 0
    while done < len(view):
        count = connection.recv_into(view[done : done + _SLICE_NBYTES], 0, socket.MSG_WAITALL)
        if not count:
            raise ConnectionResetError(f"the peer left behind {done} of {len(view)} B")
        done += count
