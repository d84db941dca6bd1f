"""The shm lane: chunks in memory that the store shares with this process, and a Unix socket to ask for them."""

from __future__ import annotations

import mmap
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from kvclient.lanes.connections import Connections
from kvclient.lanes.frames import (
    MAX_RELEASES,
    Found,
    Kind,
    Place,
    pack_count,
    pack_keys,
    pack_put,
    parse_count,
    parse_placed,
    parse_receipt,
)
from kvclient.lanes.lane import check_sizes
from kvclient.lanes.socket_frames import SocketFrames
from kvclient.lanes.tcp import check_body, greet, land_answer
from kvstore.core.api import PutNote, PutReceipt, Status
from kvstore.core.blob import Buffer
from kvstore.core.errors import FormatError, TierUnavailableError
from kvstore.core.key import ChunkKey
from kvstore.core.landing import COPIED_NBYTES, Landed, Landing
from kvstore.core.pool import BufferPool

Bytes = npt.NDArray[np.uint8]

CONNECTIONS = 8
INLINE_NBYTES = 64 << 10  # a put up to this length goes through the socket
_ANNOUNCED_NBYTES = 1 << 20  # the store takes these out of the ring while the next are written


class Line(SocketFrames):
    """A connection with what belongs to it: the leases that can end, and its staging ring."""

    def __init__(self, connection: socket.socket, peer: str) -> None:
        super().__init__(connection, peer)
        self.ended: list[int] = []
        self.ring: Bytes | None = None


@dataclass(frozen=True)
class Arena:
    """The store's memory, mapped for reading: the whole file, and the generations at its front."""

    memory: Bytes
    words: npt.NDArray[np.uint64]

    def check(self, place: Place) -> None:
        """Raise TierUnavailableError when a block is no longer the one that was leased."""
        if int(self.words[place.word]) != place.generation:
            raise TierUnavailableError("the lease ended before the chunk was read; ask for it again")


class ShmLane:
    """Implements `Lane`. Copies: get one, out of the shared memory; a view none; put two, into a ring of this connection and out of it.

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
        self._arena: Arena | None = None
        self._lock = threading.Lock()

    def get(self, keys: Sequence[ChunkKey], deadline: float) -> list[tuple[Found, Landing | None]]:
        """Ask for chunks in one round trip; what lies in the shared memory is copied out as it is read."""
        return self._ask(keys, deadline, self._copy)

    def view(self, keys: Sequence[ChunkKey], deadline: float) -> list[tuple[Found, Landing | None]]:
        """Ask for chunks that are read in place: valid while the reader is open and the lease lasts, and not behind that."""
        return self._ask(keys, deadline, self._look)

    def put(self, key: ChunkKey, blob: Buffer, header_nbytes: int, note: PutNote, deadline: float) -> PutReceipt:
        """Copy a blob into the ring while the store copies it out and verifies it; a small one goes through the socket."""
        view = memoryview(blob).cast("B")
        head, body = pack_put(note, view[:header_nbytes]), view[header_nbytes:]
        line = self._connections.take(deadline)
        try:
            if body.nbytes <= INLINE_NBYTES:
                line.send(Kind.PUT, head, deadline, body)
            else:
                ring = line.ring if line.ring is not None else self._stage(line, deadline)
                line.send(Kind.PUT_STAGED, head, deadline, body_nbytes=body.nbytes)
                _copy_in(line, ring, np.frombuffer(body, np.uint8), deadline)
            receipt = parse_receipt(key, line.expect(Kind.STORED, deadline, Kind.LANDED)[0])
            line.owes_answer = False
            return receipt
        finally:
            self._connections.give(line)

    def retire(self) -> bool:
        """Close each connection that is not in use, and the others when they come back; tell whether there are such."""
        return self._connections.retire()

    def close(self) -> None:
        """Close every connection; the mapping goes with the last view of it."""
        self._connections.close()
        self._arena = None

    def _ask(
        self, keys: Sequence[ChunkKey], deadline: float, land: Callable[[Line, Found, Place], Landing]
    ) -> list[tuple[Found, Landing | None]]:
        line = self._connections.take(deadline)
        try:
            ended, line.ended = line.ended[:MAX_RELEASES], line.ended[MAX_RELEASES:]
            line.send(Kind.VIEW, pack_keys(keys, ended), deadline)
            head, body_nbytes = line.expect(Kind.PLACED, deadline)
            found = parse_placed(head, len(keys))
            check_sizes(found, self._max_blob_nbytes)
            sizes = [each.nbytes for each in found if each.status is Status.READY and each.place is None]
            check_body(body_nbytes, sum(sizes))
            landings = [land(line, each, each.place) if each.place else None for each in found]
        except BaseException:
            self._connections.give(line)
            raise
        inline = iter(land_answer(line, self._connections, body_nbytes, sizes, self._pool, deadline))
        return [
            (each, landing if landing is not None or each.status is not Status.READY else next(inline))
            for each, landing in zip(found, landings, strict=True)
        ]

    def _copy(self, line: Line, found: Found, place: Place) -> Landing:
        return _CopiedOut(self._block(found, place), self._pool.take(found.nbytes), line, place, self._mapped())

    def _look(self, line: Line, found: Found, place: Place) -> Landing:
        return ViewedBlock(self._block(found, place), line, place, self._mapped())

    def _block(self, found: Found, place: Place) -> Bytes:
        """Return the memory of a block; one that does not lie within the arena raises FormatError."""
        arena = self._mapped()
        if place.offset + found.nbytes > arena.memory.nbytes or place.word >= arena.words.size:
            raise FormatError(f"a block at {place.offset} of {found.nbytes} B is not within the arena of {arena.memory.nbytes} B")
        return arena.memory[place.offset : place.offset + found.nbytes]

    def _mapped(self) -> Arena:
        if self._arena is None:
            raise TierUnavailableError("the lane was closed")
        return self._arena

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
        greet(line, ticket, deadline)
        descriptor = line.receive_descriptor(deadline)
        line.reads_ahead = True
        try:
            with self._lock:
                self._arena = self._arena or map_arena(descriptor)
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

    def __init__(self, block: Bytes, line: Line, place: Place, arena: Arena) -> None:
        super().__init__(block.data.toreadonly())
        self._line, self._place, self._arena = line, place, arena
        self._is_leased = True

    def fill(self, end: int) -> None:
        """Raise TierUnavailableError when the lease has ended."""
        self._arena.check(self._place)

    def close(self) -> None:
        """End the lease; what was read must not be used any more."""
        if self._is_leased:
            self._is_leased = False
            self._line.ended.append(self._place.lease)

    def __del__(self) -> None:
        self.close()


class _CopiedOut(Landing):
    """A block of the shared memory, copied a piece at a time; its lease ends with the last one."""

    step_nbytes = COPIED_NBYTES

    def __init__(self, block: Bytes, buffer: memoryview, line: Line, place: Place, arena: Arena) -> None:
        super().__init__(buffer)
        self._source, self._line, self._place, self._arena = block, line, place, arena
        self._target: Bytes = np.frombuffer(buffer, np.uint8)
        self._is_leased = True

    def _receive(self, room: memoryview) -> int:
        end = min(self._wanted, self.filled + COPIED_NBYTES)
        np.copyto(self._target[self.filled : end], self._source[self.filled : end])
        if end == self.nbytes:
            self._arena.check(self._place)  # every byte was copied while the block was ours
        return end - self.filled

    def _end(self) -> None:
        if self._is_leased:
            self._is_leased = False
            self._line.ended.append(self._place.lease)

    def __del__(self) -> None:
        self._end()


def map_arena(descriptor: int) -> Arena:
    """Map a store's memory for reading; raises TierUnavailableError."""
    try:
        pages = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        memory = np.frombuffer(pages, np.uint8)
    except (OSError, ValueError) as error:
        raise TierUnavailableError(f"the store's memory can't be mapped: {error}") from error
    return Arena(memory, memory[: memory.nbytes // 8 * 8].view(np.uint64))


def _copy_in(line: Line, ring: Bytes, body: Bytes, deadline: float) -> None:
    """Copy a body through the ring, never more ahead of the store than the ring holds."""
    taken = at = 0
    while at < body.nbytes:
        count = min(_ANNOUNCED_NBYTES, body.nbytes - at, ring.nbytes - at % ring.nbytes)
        while at + count - taken > ring.nbytes:
            taken += parse_count(line.expect(Kind.LANDED, deadline)[0])
        start = at % ring.nbytes
        np.copyto(ring[start : start + count], body[at : at + count])
        line.send(Kind.LANDED, pack_count(count), deadline)
        at += count
