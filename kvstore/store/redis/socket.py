"""Blocking sockets whose every wait ends at a deadline: plain ones, and those under TLS."""

from __future__ import annotations

import math
import select
import socket
import ssl
import struct
import time
from collections.abc import Sequence
from typing import Protocol

from kvstore.core.landing import PIECE_NBYTES


class Channel(Protocol):
    """A stream of bytes both ways. `until` is on time.monotonic; what is not done by then raises TimeoutError, a lost peer OSError."""

    def receive(self, room: memoryview, until: float) -> int:
        """Receive what is there, at least one byte; returns how many."""

    def receive_all(self, room: memoryview, until: float) -> None:
        """Receive exactly as much as fits into the room."""

    def send(self, parts: Sequence[memoryview], until: float) -> None:
        """Send the parts one behind the other."""

    def is_stale(self) -> bool:
        """Tell whether an idle channel has anything to read: the peer closed it, or says what nobody asked for."""

    def close(self) -> None:
        """Close the socket. Safe to call again."""


class PlainChannel:
    """TCP and Unix sockets. One copy each way, made by the kernel: straight into the room, straight from the parts.

    The socket is blocking and the kernel keeps the time, since MSG_WAITALL, which wakes us once per piece, does nothing on a socket with
    a timeout of Python's.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(None)
        self._sock = sock
        self._armed_ms = 0

    def receive(self, room: memoryview, until: float) -> int:
        self._arm(until)
        return _some(self._sock.recv_into(room))

    def receive_all(self, room: memoryview, until: float) -> None:
        done = 0
        while done < room.nbytes:
            self._arm(until)
            try:
                done += _some(self._sock.recv_into(room[done:], min(room.nbytes - done, PIECE_NBYTES), socket.MSG_WAITALL))
            except BlockingIOError:
                continue  # the next arming tells whether the time is over

    def send(self, parts: Sequence[memoryview], until: float) -> None:
        rest = list(parts)
        while rest:
            self._arm(until)
            rest = _behind(rest, self._sock.sendmsg(rest))

    def is_stale(self) -> bool:
        return _is_readable(self._sock)

    def close(self) -> None:
        self._sock.close()

    def _arm(self, until: float) -> None:
        """Have the kernel end the next call in time; costs a system call only when the time left differs by a millisecond."""
        left_ms = math.ceil((until - time.monotonic()) * 1000)
        if left_ms <= 0:
            raise TimeoutError("the time is over")
        if left_ms != self._armed_ms:
            timeval = struct.pack("@ll", left_ms // 1000, left_ms % 1000 * 1000)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
            self._armed_ms = left_ms


class TlsChannel:
    """TLS over TCP. Two copies each way: the kernel's and the cipher's."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock

    def receive(self, room: memoryview, until: float) -> int:
        self._sock.settimeout(_left_s(until))
        return _some(self._sock.recv_into(room))

    def receive_all(self, room: memoryview, until: float) -> None:
        done = 0
        while done < room.nbytes:
            done += self.receive(room[done:], until)

    def send(self, parts: Sequence[memoryview], until: float) -> None:
        for part in parts:
            while part.nbytes:
                self._sock.settimeout(_left_s(until))
                part = part[self._sock.send(part) :]

    def is_stale(self) -> bool:
        return self._sock.pending() > 0 or _is_readable(self._sock)

    def close(self) -> None:
        self._sock.close()


def _left_s(until: float) -> float:
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the time is over")
    return left_s


def _some(count: int) -> int:
    if not count:
        raise ConnectionResetError("the server closed the connection")
    return count


def _behind(parts: list[memoryview], sent: int) -> list[memoryview]:
    """Return what is left of the parts behind the first `sent` bytes."""
    for number, part in enumerate(parts):
        if sent < part.nbytes:
            return [part[sent:], *parts[number + 1 :]]
        sent -= part.nbytes
    return []


def _is_readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
