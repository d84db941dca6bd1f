"""A link to another machine, pretended on this one: every byte arrives later, and only so many of a connection may be under way."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue

_READ_NBYTES = 64 << 10


@dataclass(frozen=True)
class FarLink:
    """How far away.

    Parameters
    ----------
    delay_s : float
        One way; an answer takes twice as long at least.
    window_nbytes : int
        Bytes of one connection and direction that are sent and not known to have arrived: what the system's TCP window is.
    """

    delay_s: float = 0.002
    window_nbytes: int = 512 << 10

    @property
    def bytes_per_s(self) -> float:
        """The most that one connection carries."""
        return self.window_nbytes / (2 * self.delay_s)


def serve_far(pipe: Connection, port: int, link: FarLink) -> None:
    """Pass connections on to a port of this machine until the pipe ends; sends its own address."""
    listening = socket.create_server(("127.0.0.1", 0))
    pipe.send(f"127.0.0.1:{listening.getsockname()[1]}")
    _start(lambda: _accept(listening, port, link))
    with suppress(EOFError):
        pipe.recv()
    listening.close()


def _accept(listening: socket.socket, port: int, link: FarLink) -> None:
    with suppress(OSError):
        while True:
            near, _ = listening.accept()
            far = socket.create_connection(("127.0.0.1", port))
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, target in ((near, far), (far, near)):
                pump = Pump(source, target, link)
                _start(pump.take_in)
                _start(pump.let_out)


class Pump:
    """One direction of one connection, by two threads."""

    def __init__(self, source: socket.socket, target: socket.socket, link: FarLink) -> None:
        self._source, self._target, self._link = source, target, link
        self._under_way: SimpleQueue[tuple[float, bytes]] = SimpleQueue()  # when they arrive
        self._told: SimpleQueue[tuple[float, int]] = SimpleQueue()  # when the sender knows of so many that did

    def take_in(self) -> None:
        """Take what is sent as long as the window is not full."""
        room, data = self._link.window_nbytes, b"first"
        while data:
            while room <= 0:
                at, nbytes = self._told.get()
                _sleep_until(at)
                room += nbytes
            try:
                data = self._source.recv(min(room, _READ_NBYTES))
            except OSError:
                data = b""
            room -= len(data)
            self._under_way.put((time.perf_counter() + self._link.delay_s, data))

    def let_out(self) -> None:
        """Deliver what is due."""
        with suppress(OSError):
            while True:
                at, data = self._under_way.get()
                _sleep_until(at)
                if not data:
                    break
                self._target.sendall(data)
                self._told.put((time.perf_counter() + self._link.delay_s, len(data)))
            self._target.shutdown(socket.SHUT_WR)
        self._told.put((0.0, self._link.window_nbytes))


def _sleep_until(at: float) -> None:
    left_s = at - time.perf_counter()
    if left_s > 0:
        time.sleep(left_s)


def _start(run: Callable[[], None]) -> None:
    threading.Thread(target=run, daemon=True).start()
