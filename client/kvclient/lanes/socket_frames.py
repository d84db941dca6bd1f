"""Messages of a lane over a stream socket: TCP, TLS or Unix."""

from __future__ import annotations

import array
import math
import os
import select
import socket
import ssl
import struct
import time
from contextlib import suppress

from kvclient.lanes.frames import FRAME, MAX_HEAD_NBYTES, Behalf, Kind, pack_behalf, pack_frame, parse_error, parse_frame
from kvstore.core import calling, tracing
from kvstore.core.blob import Buffer
from kvstore.core.errors import DeadlineError, FormatError, KVError, TierUnavailableError
from kvstore.core.landing import PIECE_NBYTES

_AHEAD_NBYTES = 16 << 10  # received with a frame in one call: a whole small answer
_DIRECT_NBYTES = 4 << 10  # from this length on bytes are received straight to where they belong
_GONE = getattr(select, "POLLRDHUP", 0)  # beside errors, which are always told
_TIMEOUT = struct.Struct("ll")
_JOINED_NBYTES = 32 << 10  # copying so little costs less than a call with several buffers
_SHORTEST_WAIT_S = 0.005
_LONGEST_WAIT_S = 65536.0


class SocketFrames:
    """Sends and receives messages; one thread at a time, but `close` may come from any. Every wait ends by the deadline it was given.

    While `owes_answer` is true it can't be used for another request: its next byte belongs to somebody, or the answer was not understood.
    Who asked sets it to false.

    Bytes of a body are received straight into the caller's memory and sent straight from it: no copy in this process.
    """

    def __init__(self, connection: socket.socket, peer: str) -> None:
        self._socket = connection
        self._peer = peer
        self._is_tls = isinstance(connection, ssl.SSLSocket)
        if not self._is_tls:  # OpenSSL would go on waiting when the system ends a wait
            connection.setblocking(True)  # waits are bounded by the system, so that one call can wait for a whole piece
        self._flags = 0 if self._is_tls else socket.MSG_WAITALL
        self._ahead = memoryview(bytearray(_AHEAD_NBYTES))
        self._start = self._end = 0
        self._wait_s = 0.0
        self.is_closed = False
        self.owes_answer = False
        self.max_head_nbytes = MAX_HEAD_NBYTES  # memory for a head is taken before it came
        self._told = Behalf()
        self.reads_ahead = True  # False while an open file may come, which is lost when its byte is received with others

    def fileno(self) -> int:
        """Return the descriptor, for a selector."""
        return self._socket.fileno()

    def is_sound(self) -> bool:
        """Tell whether the other side has not closed the connection, as far as one can see."""
        poller = select.poll()
        poller.register(self._socket, _GONE)
        return not poller.poll(0)

    def ask(self, kind: Kind, head: Buffer, deadline: float, body: Buffer = b"", body_nbytes: int | None = None) -> None:
        """Send a request as `send` does; in front of it on whose behalf, unless that is the same as the last one's."""
        behalf = Behalf(calling.request_id(), tracing.traceparent())
        if behalf == self._told:
            self.send(kind, head, deadline, body, body_nbytes)
            return
        told = pack_behalf(behalf)
        self.send(kind, head, deadline, body, body_nbytes, pack_frame(Kind.ON_BEHALF, len(told), 0) + told)
        self._told = behalf

    def send(
        self, kind: Kind, head: Buffer, deadline: float, body: Buffer = b"", body_nbytes: int | None = None, before: bytes = b""
    ) -> None:
        """Send a message with its whole body, or with the front of one of `body_nbytes` that `send_body` continues.

        `before` is a whole message that goes with it.
        """
        frame = before + pack_frame(kind, len(head), len(body) if body_nbytes is None else body_nbytes)
        self.owes_answer = True
        self._bound(deadline)
        try:
            self._send([frame, head, body] if len(body) else [frame, head], deadline)
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def send_body(self, data: Buffer, deadline: float) -> None:
        """Send more of a body."""
        try:
            self._send_all(data, deadline)
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def receive(self, deadline: float) -> tuple[Kind, bytes, int]:
        """Receive a message's kind, head and the length of its body."""
        self._bound(deadline)
        kind, head_nbytes, body_nbytes = parse_frame(self._take(FRAME.size, deadline), self.max_head_nbytes)
        return kind, bytes(self._take(head_nbytes, deadline)), body_nbytes

    def expect(self, kind: Kind, deadline: float, passed_over: Kind | None = None) -> tuple[bytes, int]:
        """Receive a message of this kind, behind any of another that says nothing any more.

        An ERROR raises what it stands for, any other kind FormatError.
        """
        found, head, body_nbytes = self.receive(deadline)
        while found is passed_over and not body_nbytes:
            found, head, body_nbytes = self.receive(deadline)
        self.owes_answer = bool(body_nbytes) or found is not Kind.ERROR
        if found is Kind.ERROR:
            raise parse_error(head)
        if found is not kind:
            self.close()
            raise FormatError(f"{self._peer} answered {found.name} where {kind.name} belongs")
        return head, body_nbytes

    def take_whole(self, nbytes: int) -> bytes | None:
        """Return a body of `nbytes` that came with its head, so that the connection is free again; None for one that did not."""
        if self._end - self._start < nbytes:
            return None
        self._start += nbytes
        self.owes_answer = False
        return bytes(self._ahead[self._start - nbytes : self._start])

    def receive_into(self, room: memoryview, deadline: float) -> int:
        """Receive at least one and at most `PIECE_NBYTES` of a body to the front of `room`; return how many."""
        if self._end > self._start:
            ahead = min(self._end - self._start, room.nbytes)
            room[:ahead] = self._ahead[self._start : self._start + ahead]
            self._start += ahead
            return ahead
        self._bound(deadline)
        if room.nbytes < _DIRECT_NBYTES and not self._is_tls:
            self._fill_ahead(1, deadline)
            return self.receive_into(room, deadline)
        return self._receive_some(room if room.nbytes <= PIECE_NBYTES else room[:PIECE_NBYTES], self._flags, deadline)

    def receive_descriptor(self, deadline: float) -> int:
        """Receive one open file beside one byte; only over a Unix socket."""
        self._bound(deadline)
        try:
            _, ancillary, _, _ = self._socket.recvmsg(1, socket.CMSG_SPACE(4))
        except OSError as error:
            raise self._failed(error) from error
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and len(data) >= 4:
                descriptor = int(array.array("i", data[:4])[0])
                os.set_inheritable(descriptor, False)
                return descriptor
        raise self._failed(FormatError("no open file came where one belongs"))

    def send_descriptor(self, descriptor: int, deadline: float) -> None:
        """Send an open file beside one byte."""
        self._bound(deadline)
        try:
            self._socket.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]).tobytes())])
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Close at once; whoever waits is woken. Safe to call again."""
        if not self.is_closed:
            self.is_closed = True
            with suppress(OSError):  # it may not be connected any more
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def _take(self, nbytes: int, deadline: float) -> memoryview:
        """Return the next bytes; a view of the buffer ahead, valid until the next receive, where they fit into it."""
        if nbytes > _AHEAD_NBYTES:
            whole = memoryview(bytearray(nbytes))
            at = 0
            while at < nbytes:
                ahead = min(self._end - self._start, nbytes - at)
                whole[at : at + ahead] = self._ahead[self._start : self._start + ahead]
                self._start += ahead
                at += ahead or self._receive_some(whole[at : at + PIECE_NBYTES], self._flags, deadline)
            return whole
        if self._end - self._start < nbytes:
            self._fill_ahead(nbytes, deadline)
        self._start += nbytes
        return self._ahead[self._start - nbytes : self._start]

    def _fill_ahead(self, nbytes: int, deadline: float) -> None:
        """Receive until `nbytes` are in the buffer ahead."""
        left = self._end - self._start
        if left:
            self._ahead[:left] = bytes(self._ahead[self._start : self._end])
        self._start, self._end = 0, left
        while self._end < nbytes:
            room = self._ahead[self._end :] if self.reads_ahead else self._ahead[self._end : nbytes]
            self._end += self._receive_some(room, 0, deadline)

    def _receive_some(self, room: memoryview, flags: int, deadline: float) -> int:
        while True:
            try:
                count = self._socket.recv_into(room, 0, flags)
                break
            except BlockingIOError as error:
                self._wait_again(deadline, error)
            except (OSError, ValueError) as error:
                raise self._failed(error) from error
        if not count:
            raise self._failed(ConnectionError("it closed the connection"))
        return count

    def _send(self, parts: list[Buffer], deadline: float) -> None:
        """Send all parts, in one call where the socket takes them."""
        nbytes = sum(map(len, parts))
        if nbytes <= _JOINED_NBYTES or (self._is_tls and nbytes <= PIECE_NBYTES):  # one call, and under TLS one record
            self._send_all(b"".join(parts), deadline)
            return
        if self._is_tls:
            parts = [b"".join(parts[:2]), parts[2]]
            sent = 0
        else:
            try:
                sent = self._socket.sendmsg(parts)
            except BlockingIOError:
                sent = 0
        for part in parts:
            if sent < len(part):
                self._send_all(memoryview(part)[sent:], deadline)
            sent = max(0, sent - len(part))

    def _send_all(self, data: Buffer, deadline: float) -> None:
        """Send bytes; a peer that takes them drop by drop does not move the deadline."""
        view = memoryview(data)
        while view.nbytes:
            self._bound(deadline)
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError as error:
                self._wait_again(deadline, error)

    def _wait_again(self, deadline: float, error: Exception) -> None:
        """Go on after a wait of the system, which ends before ours does."""
        if time.monotonic() >= deadline:
            raise self._failed(error) from error
        self._bound(deadline)

    def _bound(self, deadline: float) -> None:
        """Have every wait of the system end by the deadline; one that ends before it is begun again.

        A wait is a power of two of seconds, so that one setting serves request after request.
        """
        if deadline == math.inf and self._wait_s:
            return
        left_s = min(deadline - time.monotonic(), _LONGEST_WAIT_S)
        if left_s <= 0:
            raise DeadlineError(f"{self._peer}: the deadline passed")
        if self._wait_s <= left_s < 4 * self._wait_s:
            return
        self._wait_s = max(2.0 ** (math.frexp(left_s)[1] - 1), _SHORTEST_WAIT_S)
        try:
            if self._is_tls:
                self._socket.settimeout(left_s)
                self._wait_s = 0.0  # ours, in Python: set anew each time
                return
            value = _TIMEOUT.pack(int(self._wait_s), int(self._wait_s % 1 * 1e6))
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self._socket.setsockopt(socket.SOL_SOCKET, option, value)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> KVError:
        """Close a connection whose next byte is not known any more, and return what its failure means."""
        was_closed = self.is_closed
        self.close()
        if isinstance(error, BlockingIOError | TimeoutError | ssl.SSLWantReadError | ssl.SSLWantWriteError):
            return DeadlineError(f"{self._peer}: no answer within the deadline")
        return TierUnavailableError(f"{self._peer}: {'the connection was closed' if was_closed else error}")
