"""The floor under every number: copying memory, and a bare TCP loop with 256 KiB socket buffers between two processes."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import numpy as np

from bench.peers.timing import MIB, SIZES, Bytes, Meter, announce, payload

PEER = "reference"
BUFFER_BYTES = 256 * 1024
HEADER_BYTES = 9  # one letter, then the payload's length as a little-endian integer


def read_into(connection: socket.socket, view: memoryview) -> None:
    """Fill a buffer in slices of 1 MiB, each read by one system call."""
    done = 0
    while done < len(view):
        done += connection.recv_into(view[done : done + MIB], 0, socket.MSG_WAITALL)


def tune(connection: socket.socket) -> None:
    """Bound the socket's queues so that they stay in the processor's cache."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)


def serve() -> None:
    """Answer one connection: send on `G`, receive and acknowledge on `P`; print the port first."""
    data = payload(max(SIZES))
    with socket.socket() as listener:
        tune(listener)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    view = data.data
    while header := connection.recv(HEADER_BYTES, socket.MSG_WAITALL):
        nbytes = int.from_bytes(header[1:], "little")
        if header[:1] == b"G":
            connection.sendall(view[:nbytes])
        else:
            read_into(connection, view[:nbytes])
            connection.sendall(b"k")


def connect(port: int) -> socket.socket:
    """Return a tuned connection to the serving process."""
    connection = socket.socket()
    tune(connection)
    connection.connect(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def operations(connection: socket.socket, src: Bytes, dst: Bytes) -> dict[str, Callable[[], object]]:
    """Return the reference operations on buffers of one size."""
    length = src.nbytes.to_bytes(8, "little")

    def get() -> None:
        connection.sendall(b"G" + length)
        read_into(connection, dst.data)

    def put() -> None:
        connection.sendmsg([b"P" + length])
        connection.sendall(src.data)
        connection.recv(1)

    return {"memcpy": partial(np.copyto, dst, src), "socket get": get, "socket put": put}


def main() -> None:
    """Measure every reference at every size."""
    announce(PEER, "numpy", also=f"Python {sys.version.split()[0]}")
    server = subprocess.Popen([sys.executable, "-m", "bench.peers.references", "serve"], stdout=subprocess.PIPE)
    assert server.stdout is not None
    with server.stdout, connect(int(server.stdout.readline())) as connection:
        copying, serving = Meter(PEER, []), Meter(PEER, [server.pid])
        for nbytes in SIZES:
            for op, operation in operations(connection, payload(nbytes), np.zeros(nbytes, np.uint8)).items():
                (copying if op == "memcpy" else serving).measure(op, nbytes, operation)
    server.wait()


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main()
