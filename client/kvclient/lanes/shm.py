"""The shm lane: chunks in memory that the store shares with this process, and a Unix socket to ask for them."""

from __future__ import annotations

import mmap
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from kvclient.lanes.connections import Connections
from kvclient.lanes.frames import (
    MAX_NUMBERS,
    Found,
    Kind,
    pack_count,
    pack_keys,
    pack_put,
    parse_count,
    parse_directory,
    parse_placed,
    parse_receipt,
)
from kvclient.lanes.kept import KeptLeases, Lease
from kvclient.lanes.lane import check_sizes
from kvclient.lanes.socket_frames import SocketFrames
from kvclient.lanes.tcp import check_body, greet, land_answer
from kvclient.lanes.untold import Untold
from kvclient.lanes.window import Bytes, Window
from kvstore.core.api import PutNote, PutReceipt, Status
from kvstore.core.blob import Buffer
from kvstore.core.errors import TierUnavailableError
from kvstore.core.key import ChunkKey
from kvstore.core.landing import COPIED_NBYTES, Landed, Landing
from kvstore.core.pool import BufferPool

CONNECTIONS = 8
INLINE_NBYTES = 64 << 10  # a put up to this length goes through the socket
_ANNOUNCED_NBYTES = 1 << 20  # the store takes these out of the ring while the next are written


class Line(SocketFrames):
    """A connection with what belongs to it: the leases that can end, and its staging ring."""

    def __init__(self, connection: socket.socket, peer: str) -> None:
        super().__init__(connection, peer)
        self.ended: list[int] = []
        self.ring: Bytes | None = None


Answer = tuple[Found, Landing | None]
Land = Callable[[Lease[Line], int], Landing]


class ShmLane:
    """Implements `Lane`. Copies: get one, out of the shared memory; a view none; put two, into a ring of this connection and out of it.

    A get of a chunk that somebody read by this lane before is no request: it is found in the store's directory, and the store is told of
    such reads later, many at a time. Nor is a view of a chunk that was viewed a moment ago: its lease is kept. The rest is asked for.

    Nobody but the store can write what others read: a client maps the arena for reading only, and what it puts is copied by the store while
    it is verified.
    """

    name: ClassVar[str] = "shm"

    def __init__(self, path: str, ticket: Callable[[float], bytes], pool: BufferPool, max_blob_nbytes: int) -> None:
        self._path = path
        self._ticket = ticket
        self._pool = pool
        self._max_blob_nbytes = max_blob_nbytes
        self._connections: Connections[Line] = Connections(self._dial, CONNECTIONS)
        self._window: Window | None = None
        self._untold = Untold()
        self._kept: KeptLeases[Line] = KeptLeases(_end)
        self._lock = threading.Lock()

    def get(self, keys: Sequence[ChunkKey], deadline: float) -> list[Answer]:
        """Read what the directory lists, and ask for the rest in one round trip; what lies in the memory is copied as it is read."""
        return self._complete(keys, [self._read(key, deadline) for key in keys], deadline, self._copy)

    def view(self, keys: Sequence[ChunkKey], deadline: float) -> list[Answer]:
        """Open chunks that are read in place: valid while the reader is open and the lease lasts, and not behind that."""
        return self._complete(keys, [self._view_again(key, deadline) for key in keys], deadline, self._look)

    def put(self, blob: Buffer, header_nbytes: int, note: PutNote, deadline: float) -> PutReceipt:
        """Copy a blob into the ring while the store copies it out and verifies it; a small one goes through the socket."""
        view = memoryview(blob).cast("B")
        head, body = pack_put(note, view[:header_nbytes]), view[header_nbytes:]
        line = self._connections.take(deadline)
        try:
            if body.nbytes <= INLINE_NBYTES:
                line.ask(Kind.PUT, head, deadline, body)
            else:
                ring = line.ring if line.ring is not None else self._stage(line, deadline)
                line.ask(Kind.PUT_STAGED, head, deadline, body_nbytes=body.nbytes)
                _copy_in(line, ring, np.frombuffer(body, np.uint8), deadline)
            receipt = parse_receipt(line.expect(Kind.STORED, deadline, Kind.LANDED)[0])
            line.owes_answer = False
            return receipt
        finally:
            self._connections.give(line)

    def _complete(self, keys: Sequence[ChunkKey], answers: Sequence[Answer | None], deadline: float, land: Land) -> list[Answer]:
        """Ask, in one round trip, for the chunks that have no answer yet."""
        unanswered = [key for key, answer in zip(keys, answers, strict=True) if answer is None]
        asked = iter(self._ask(unanswered, deadline, land) if unanswered else ())
        return [answer or next(asked) for answer in answers]

    def _read(self, key: ChunkKey, deadline: float) -> Answer | None:
        """Read a chunk that the directory lists; raises TierUnavailableError when the store is found to be gone."""
        if self._window is None:
            return None
        if self._untold.is_due():
            self._tell(deadline)
        answer = self._window.read(key, lambda: self._ask([key], deadline, self._copy)[0][1])
        if answer is not None:
            self._untold.add(key)
        return answer

    def _view_again(self, key: ChunkKey, deadline: float) -> Answer | None:
        """View a chunk whose lease was kept, if the directory lists it at that place and the lease has not ended."""
        entry = self._window.find(key) if self._window else None
        lease = self._kept.take(entry[0].offset) if entry else None
        if self._window is None or entry is None or lease is None:
            return None
        if not self._window.is_current(lease.place):
            _end(lease)
            return None
        if self._untold.is_due():
            self._tell(deadline)
        self._untold.add(key)
        listed = entry[0]
        view = ViewedBlock(self._window.block(listed.nbytes, lease.place), lease, self._window, self._kept)
        return Found(Status.READY, listed.tier, listed.nbytes), view

    def _tell(self, deadline: float) -> None:
        """Tell the store of reads; a connection that it closed fails here."""
        line = self._connections.take_free(deadline)
        if line is None:  # all of them are in use, so the store was there just now
            return
        try:
            reads = self._untold.take()
            line.send(Kind.READ, pack_keys(list(reads), list(reads.values())), deadline)
            line.owes_answer = False
        finally:
            self._connections.give(line)

    def retire(self) -> bool:
        """Close each connection that is not in use, and the others when they come back; tell whether there are such."""
        return self._connections.retire()

    def close(self) -> None:
        """Close every connection; the mapping goes with the last view of it."""
        self._connections.close()
        self._window = None

    def _ask(self, keys: Sequence[ChunkKey], deadline: float, land: Land) -> list[Answer]:
        self._kept.sweep()
        asked_at = time.monotonic()
        line = self._connections.take(deadline)
        try:
            ended, line.ended = line.ended[:MAX_NUMBERS], line.ended[MAX_NUMBERS:]
            line.ask(Kind.VIEW, pack_keys(keys, ended), deadline)
            head, body_nbytes = line.expect(Kind.PLACED, deadline)
            found = parse_placed(head, len(keys))
            check_sizes(found, self._max_blob_nbytes)
            sizes = [each.nbytes for each in found if each.status is Status.READY and each.place is None]
            check_body(body_nbytes, sum(sizes))
            landings = [land(Lease(line, each.place, asked_at), each.nbytes) if each.place else None for each in found]
        except BaseException:
            self._connections.give(line)
            raise
        inline = iter(land_answer(line, self._connections, body_nbytes, sizes, self._pool, deadline))
        return [
            (each, landing if landing is not None or each.status is not Status.READY else next(inline))
            for each, landing in zip(found, landings, strict=True)
        ]

    def _copy(self, lease: Lease[Line], nbytes: int) -> Landing:
        window = self._mapped()
        return _CopiedOut(window.block(nbytes, lease.place), self._pool.take(nbytes), lease, window)

    def _look(self, lease: Lease[Line], nbytes: int) -> Landing:
        window = self._mapped()
        return ViewedBlock(window.block(nbytes, lease.place), lease, window, self._kept)

    def _mapped(self) -> Window:
        if self._window is None:
            raise TierUnavailableError("the lane was closed")
        return self._window

    def _dial(self, deadline: float) -> Line:
        """Connect with a fresh ticket; the first connection maps the arena."""
        ticket = self._ticket(deadline)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            connection.connect(self._path)
        except OSError as error:
            connection.close()
            raise TierUnavailableError(f"{self._path}: {error}") from error
        line = Line(connection, self._path)
        line.reads_ahead = False
        directory = greet(line, ticket, deadline, parse_directory)
        descriptor = line.receive_descriptor(deadline)
        line.reads_ahead = True
        try:
            with self._lock:
                self._window = self._window or Window(descriptor, directory, self._pool, self._max_blob_nbytes)
        except BaseException:
            line.close()
            raise
        finally:
            os.close(descriptor)
        return line

    def _stage(self, line: Line, deadline: float) -> Bytes:
        """Ask for a staging ring and map it for writing."""
        line.reads_ahead = False
        line.send(Kind.STAGE, b"", deadline)
        nbytes = parse_count(line.expect(Kind.STAGED, deadline)[0])
        descriptor = line.receive_descriptor(deadline)
        line.reads_ahead = True
        try:
            if nbytes < mmap.PAGESIZE:
                raise ValueError("it is too small")
            line.ring = np.frombuffer(mmap.mmap(descriptor, nbytes), np.uint8)
        except (OSError, ValueError, OverflowError) as error:
            line.close()
            raise TierUnavailableError(f"the staging ring of {nbytes} B can't be mapped: {error}") from error
        finally:
            os.close(descriptor)
        return line.ring


class ViewedBlock(Landed):
    """A block of the shared memory, read in place."""

    def __init__(self, block: Bytes, lease: Lease[Line], window: Window, kept: KeptLeases[Line]) -> None:
        super().__init__(block.data.toreadonly())
        self._lease: Lease[Line] | None = lease
        self._place, self._window, self._kept = lease.place, window, kept

    def fill(self, end: int) -> None:
        """Raise TierUnavailableError when the lease has ended."""
        self._window.check(self._place)

    def close(self) -> None:
        """Give the lease back; what was read must not be used any more."""
        lease, self._lease = self._lease, None
        if lease is not None:
            self._kept.give(lease)

    def __del__(self) -> None:
        self.close()


class _CopiedOut(Landing):
    """A block of the shared memory, copied a piece at a time; its lease ends with the last one."""

    step_nbytes = COPIED_NBYTES

    def __init__(self, block: Bytes, buffer: memoryview, lease: Lease[Line], window: Window) -> None:
        super().__init__(buffer)
        self._lease: Lease[Line] | None = lease
        self._source, self._place, self._window = block, lease.place, window
        self._target: Bytes = np.frombuffer(buffer, np.uint8)

    def _receive(self, room: memoryview) -> int:
        end = min(self._wanted, self.filled + COPIED_NBYTES)
        np.copyto(self._target[self.filled : end], self._source[self.filled : end])
        if end == self.nbytes:
            self._window.check(self._place)  # every byte was copied while the block was ours
        return end - self.filled

    def _end(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            _end(lease)

    def __del__(self) -> None:
        self._end()


def _end(lease: Lease[Line]) -> None:
    """Tell the store, with the next request of the lease's connection, that it is over."""
    lease.line.ended.append(lease.place.lease)


def _copy_in(line: Line, ring: Bytes, body: Bytes, deadline: float) -> None:
    """Copy a body through the ring, never more ahead of the store than the ring holds."""
    most = min(_ANNOUNCED_NBYTES, ring.nbytes // 2)  # the store tells of halves, so it may not have told of almost one of them
    taken = at = 0
    while at < body.nbytes:
        count = min(most, body.nbytes - at, ring.nbytes - at % ring.nbytes)
        while at + count - taken > ring.nbytes:
            taken += parse_count(line.expect(Kind.LANDED, deadline)[0])
        start = at % ring.nbytes
        np.copyto(ring[start : start + count], body[at : at + count])
        line.send(Kind.LANDED, pack_count(count), deadline)
        at += count
