"""The grpc lane: chunks as raw bytes in the streams of the channel itself; works wherever gRPC does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, ClassVar

import grpc

from kvclient.channel import Metadata
from kvclient.lanes.body import land_in_row, split
from kvclient.lanes.frames import Found, pack_keys, pack_put, parse_found, parse_receipt
from kvclient.lanes.lane import check_sizes
from kvclient.on_behalf import on_behalf
from kvclient.status import answered, typed
from kvstore.core.api import PutNote, PutReceipt, Status
from kvstore.core.blob import Buffer, iter_pieces
from kvstore.core.errors import CorruptError, DeadlineError, FormatError
from kvstore.core.key import ChunkKey
from kvstore.core.landing import PIECE_NBYTES, Landing
from kvstore.core.pool import BufferPool

SERVICE = "kvproto.v1.LaneService"
FETCH, GET, STORE, PUT = (f"/{SERVICE}/{name}" for name in ("Fetch", "Get", "Store", "Put"))
# An answer to Fetch begins with the length of its head and, when all of the chunks are in it, a one. A request to Store begins with
# the length only.
HEAD_NBYTES = 5
LENGTH_NBYTES = 4


class GrpcLane:
    """Implements `Lane`. Copies of each byte in this process: get two (gRPC's message, and into the pooled buffer), put three.

    Chunks that fit into one message are asked for, and sent, in one message; larger ones as a stream of messages of 1 MiB. Which of both is
    asked for first is what the last chunks turned out to need.
    """

    name: ClassVar[str] = "grpc"

    def __init__(self, channel: grpc.Channel, metadata: Metadata, pool: BufferPool, max_blob_nbytes: int) -> None:
        self._metadata = metadata
        self._pool = pool
        self._max_blob_nbytes = max_blob_nbytes
        self._expects_large = False
        self._fetch: Callable[..., bytes] = channel.unary_unary(FETCH)
        self._get: Callable[..., Any] = channel.unary_stream(GET)
        self._store: Callable[..., bytes] = channel.unary_unary(STORE)
        self._put: Callable[..., bytes] = channel.stream_unary(PUT)

    def get(self, keys: Sequence[ChunkKey], deadline: float) -> list[tuple[Found, Landing | None]]:
        """Ask for chunks; one round trip while they are as large as those before, or fit into one message."""
        request = pack_keys(keys)
        if not self._expects_large:
            with typed():
                answer = self._fetch(request, timeout=_left_s(deadline), metadata=on_behalf(self._metadata))
            found, rest = self._parse(answered(answer), len(keys))
            if rest is not None:
                return _pair(found, split(rest, _sizes(found)))
        return self._stream(request, len(keys), deadline)

    def _stream(self, request: bytes, n_keys: int, deadline: float) -> list[tuple[Found, Landing | None]]:
        """Ask for chunks as a stream."""
        with typed():
            stream = self._get(request, timeout=_left_s(deadline), metadata=on_behalf(self._metadata))
        pieces = _Pieces(stream)
        try:
            found = self._checked(parse_found(pieces.next(), n_keys))
        except BaseException:
            stream.cancel()
            raise
        sizes = _sizes(found)
        self._expects_large = sum(sizes) > PIECE_NBYTES
        return _pair(found, land_in_row(pieces, sizes, self._pool, deadline))

    def put(self, blob: Buffer, header_nbytes: int, note: PutNote, deadline: float) -> PutReceipt:
        """Send a blob in one message, or a large one in a stream of messages of 1 MiB."""
        view = memoryview(blob).cast("B")
        head, body = pack_put(note, view[:header_nbytes]), view[header_nbytes:]
        with typed():
            if body.nbytes <= PIECE_NBYTES:
                whole = b"".join((len(head).to_bytes(LENGTH_NBYTES, "little"), head, body))
                answer = self._store(whole, timeout=_left_s(deadline), metadata=on_behalf(self._metadata))
            else:
                pieces = (bytes(piece) for piece in iter_pieces(body, PIECE_NBYTES))
                answer = self._put(chain((head,), pieces), timeout=_left_s(deadline), metadata=on_behalf(self._metadata))
        return parse_receipt(answered(answer))

    def retire(self) -> bool:
        """Hold nothing of its own."""
        return False

    def close(self) -> None:
        """The channel belongs to whoever opened it."""

    def _parse(self, answer: bytes, n_keys: int) -> tuple[list[Found], memoryview | None]:
        """Return what an answer to Fetch tells, and the chunks if they are in it."""
        end = HEAD_NBYTES + int.from_bytes(answer[:4], "little")
        if len(answer) < max(end, HEAD_NBYTES):
            raise FormatError(f"{len(answer)} B are not the answer to a request for {n_keys} keys")
        found = self._checked(parse_found(answer[HEAD_NBYTES:end], n_keys))
        if not answer[4]:
            return found, None
        rest = memoryview(answer)[end:]
        if rest.nbytes < sum(_sizes(found)):
            raise CorruptError(f"chunks of {sum(_sizes(found))} B were announced, {rest.nbytes} B came")
        return found, rest

    def _checked(self, found: list[Found]) -> list[Found]:
        check_sizes(found, self._max_blob_nbytes)
        return found


class _Pieces:
    """Implements `kvclient.lanes.body.Source` over the messages of a call."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._left = memoryview(b"")

    def next(self) -> Any:
        """Return the next message."""
        with typed():
            try:
                return next(self._call)
            except StopIteration:
                raise CorruptError("the stream ended before the chunks were complete") from None

    def receive_into(self, room: memoryview, deadline: float) -> int:
        if time.monotonic() > deadline:
            raise DeadlineError("the deadline passed before the chunks were complete")
        if not self._left:
            self._left = memoryview(self.next())
        count = min(self._left.nbytes, room.nbytes)
        room[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def done(self) -> None:
        self.abandon()

    def abandon(self) -> None:
        self._call.cancel()


def _sizes(found: Sequence[Found]) -> list[int]:
    return [each.nbytes for each in found if each.status is Status.READY]


def _pair(found: Sequence[Found], landings: Sequence[Landing]) -> list[tuple[Found, Landing | None]]:
    """Put the landings of READY chunks beside what was found."""
    landing = iter(landings)
    return [(each, next(landing) if each.status is Status.READY else None) for each in found]


def _left_s(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())
