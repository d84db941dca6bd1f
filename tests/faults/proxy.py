"""A proxy between a client and a server that does one piece of harm to the bytes on their way."""

from __future__ import annotations

import array
import os
import random
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

_RECEIVE_NBYTES = 256 << 10
_MAX_DESCRIPTORS = 4
_RESET = struct.pack("ii", 1, 0)
REPEATED_NBYTES = 1 << 12


class Harm(Enum):
    """What happens to a stream."""

    STALL = "stall"  # nothing more comes, and nobody hangs up
    RESET = "reset"  # both ends are told that the connection broke
    TRUNCATE = "truncate"  # an orderly end where more belongs
    DROP = "drop"  # some bytes are missing
    REPEAT = "repeat"  # some bytes come twice
    FLIP = "flip"  # one bit is another


class Way(Enum):
    """From whom to whom."""

    UP = "to the server"
    DOWN = "to the client"


@dataclass(frozen=True)
class Fault:
    """One harm to one direction of one connection, at one byte.

    Parameters
    ----------
    offset : int
        Bytes of that direction that come through before it.
    nbytes : int
        How many are dropped or come twice.
    bit : int
        Which bit of the byte is flipped.
    connection : int
        Which connection is hurt, counted from 0.
    """

    harm: Harm
    way: Way
    offset: int
    nbytes: int = 1
    bit: int = 0
    connection: int = 0


def draw_fault(rng: random.Random, nbytes: dict[Way, int]) -> Fault:
    """Draw a fault; half of them lie near the front, where the messages are, half anywhere in `nbytes` of their way."""
    way = rng.choice(list(Way))
    front = int(rng.expovariate(1 / 120))
    offset = front if rng.random() < 0.5 else rng.randrange(nbytes[way])
    return Fault(rng.choice(list(Harm)), way, offset, rng.randrange(1, REPEATED_NBYTES), rng.randrange(8), int(rng.random() < 0.2))


class Stream:
    """What comes out of one direction of a connection when a fault is done to it; pure but for its counting."""

    def __init__(self, fault: Fault | None) -> None:
        self._fault = fault
        self._at = 0
        self._missing = 0
        self.end: Harm | None = None  # STALL, RESET or TRUNCATE once it was reached

    def pass_on(self, data: bytes) -> bytes:
        """Return what the next bytes become."""
        if self.end is not None:
            return b""
        start, self._at = self._at, self._at + len(data)
        fault = self._fault
        if self._missing:
            gone = min(self._missing, len(data))
            self._missing -= gone
            return data[gone:]
        if fault is None or not start <= fault.offset < self._at:
            return data
        return self._hurt(fault, data, fault.offset - start)

    def _hurt(self, fault: Fault, data: bytes, at: int) -> bytes:
        """Do the harm at position `at` of the bytes."""
        match fault.harm:
            case Harm.FLIP:
                return data[:at] + bytes([data[at] ^ 1 << fault.bit]) + data[at + 1 :]
            case Harm.REPEAT:
                return data[:at] + data[at : at + fault.nbytes] + data[at:]
            case Harm.DROP:
                self._missing = max(0, fault.nbytes - (len(data) - at))
                return data[:at] + data[at + fault.nbytes :]
        self.end = fault.harm
        return data[:at]


class FaultProxy:
    """Listens where clients dial instead of the server, and hurts what the fault says; open files that travel along are passed on.

    Parameters
    ----------
    dial : callable
        Connects to the server.
    listening : socket.socket
        Where clients come.
    fault : Fault or None
        None only counts.
    """

    def __init__(self, listening: socket.socket, dial: Callable[[], socket.socket], fault: Fault | None) -> None:
        self._listening, self._dial, self._fault = listening, dial, fault
        self._links: list[_Link] = []
        self._thread = threading.Thread(target=self._accept, name="fault-proxy", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port of a TCP proxy."""
        return int(self._listening.getsockname()[1])

    def passed_nbytes(self, way: Way) -> int:
        """Return the bytes that came in, of all connections."""
        return sum(link.received[way] for link in self._links)

    def close(self) -> None:
        """Hang up everywhere and wait until nothing of it runs."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        for link in self._links:
            link.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                server = self._dial()
            except OSError:
                client.close()
                continue
            is_hurt = self._fault is not None and self._fault.connection == len(self._links)
            self._links.append(_Link(client, server, self._fault if is_hurt else None))


class _Link:
    """One connection through the proxy, on one thread: neither end sends much before the other has answered."""

    def __init__(self, client: socket.socket, server: socket.socket, fault: Fault | None) -> None:
        self._ends = {Way.UP: server, Way.DOWN: client}  # where what goes that way ends up
        self._streams = {way: Stream(fault if fault and fault.way is way else None) for way in Way}
        self._closing = threading.Event()
        self.received = dict.fromkeys(Way, 0)
        self._thread = threading.Thread(target=self._run, name="fault-link", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hang up on both and wait for the thread."""
        self._closing.set()
        for end in self._ends.values():
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _run(self) -> None:
        """Pass everything on until both ends hung up, or one of them broke."""
        with suppress(OSError), selectors.DefaultSelector() as selector:
            for way in Way:
                selector.register(self._ends[_opposite(way)], selectors.EVENT_READ, way)
            while selector.get_map():
                for ready, _ in selector.select():
                    if not self._pass_on(ready.data):
                        selector.unregister(ready.fileobj)
            if any(stream.end is Harm.STALL for stream in self._streams.values()):
                self._closing.wait()
        for end in self._ends.values():
            end.close()

    def _pass_on(self, way: Way) -> bool:
        """Pass on what is there; tell whether more will be taken from that end."""
        source, target, stream = self._ends[_opposite(way)], self._ends[way], self._streams[way]
        data, descriptors = _receive(source)
        self.received[way] += len(data)
        try:
            _send(target, stream.pass_on(data), descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        if stream.end is Harm.RESET:
            self._reset()
        if not data or stream.end is Harm.TRUNCATE:
            target.shutdown(socket.SHUT_WR)
        return bool(data) and stream.end is not Harm.STALL

    def _reset(self) -> None:
        """Break the connection; both ends are closed by the thread at once, which tells them."""
        for end in self._ends.values():
            if end.family != socket.AF_UNIX:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        raise ConnectionResetError


def _opposite(way: Way) -> Way:
    return Way.UP if way is Way.DOWN else Way.DOWN


def _receive(source: socket.socket) -> tuple[bytes, list[int]]:
    """Receive what is there, and the open files beside its last byte."""
    if source.family != socket.AF_UNIX:
        return source.recv(_RECEIVE_NBYTES), []
    data, ancillary, _, _ = source.recvmsg(_RECEIVE_NBYTES, socket.CMSG_SPACE(4 * _MAX_DESCRIPTORS))
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) // 4 * 4])
    return data, list(descriptors)


def _send(target: socket.socket, data: bytes, descriptors: list[int]) -> None:
    """Send all of it; open files go with the last byte, as they came."""
    if not descriptors or not data:
        target.sendall(data)
        return
    target.sendall(data[:-1])
    target.sendmsg([data[-1:]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors).tobytes())])
