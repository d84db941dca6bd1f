"""A chunk that is still arriving: parts are handed out as soon as they are complete and verified."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Protocol

from kvclient.status import typed
from kvproto.v1 import store_pb2 as pb
from kvstore.core.blob import HEADER_NBYTES, Header, header_nbytes, key_of, parse_header, verify_part
from kvstore.core.errors import ClosedError, CorruptError, FormatError, IdentityError
from kvstore.core.key import ChunkKey
from kvstore.core.manifest import Manifest


class Stream(Protocol):
    """The answer to a Get under way."""

    def __next__(self) -> pb.GetResponse: ...

    def cancel(self) -> bool:
        """End it; whoever waits for a message is woken."""
        ...


class StreamReader:
    """Implements `BlobReader` over a stream of pieces, which land in one buffer of the announced size. Thread-safe.

    Copies each piece once. gRPC reads up to 16 MiB ahead of what was asked for; the stream's deadline bounds every wait. A reader that
    waits long between parts of a larger chunk may find that the server gave it up, which is a TierUnavailableError.
    """

    def __init__(self, stream: Stream, key: ChunkKey, nbytes: int, tier: str) -> None:
        """Read and verify header and manifest; raises FormatError, CorruptError or IdentityError."""
        self._stream = stream
        self._lock = threading.Lock()
        self._buffer = memoryview(bytearray(nbytes))
        self._filled = 0
        self._is_closed = False
        self.nbytes = nbytes
        self.tier = tier
        self._header = self._read_header(key)

    @property
    def manifest(self) -> Manifest:
        """The verified manifest."""
        return self._header.manifest

    def part(self, index: int) -> memoryview:
        """Return part `index`, waiting for it; raises CorruptError, DeadlineError or TierUnavailableError."""
        spec = self.manifest.parts[index]
        end = spec.offset + spec.nbytes
        with self._lock:
            self._fill(end)
        data = self._buffer[spec.offset : end].toreadonly()
        self._check_padding(index)
        verify_part(spec, data)
        return data

    def close(self) -> None:
        """Stop reading; views handed out stay valid. Safe to call again, and from another thread than the one that reads."""
        self._is_closed = True
        self._stream.cancel()

    def _read_header(self, key: ChunkKey) -> Header:
        """Read until header and manifest are complete and check that they are those of `key`."""
        self._fill(HEADER_NBYTES)
        end = header_nbytes(self._buffer[:HEADER_NBYTES])
        self._fill(end)
        header = parse_header(self._buffer[:end])
        if header.nbytes != self.nbytes:
            raise CorruptError(f"the chunk was announced with {self.nbytes} B and has {header.nbytes} B")
        if key_of(header.manifest) != key:
            raise IdentityError(f"asked for chunk {key}, got {key_of(header.manifest)}")
        return header

    def _fill(self, end: int) -> None:
        """Receive pieces until the first `end` bytes are there."""
        if end > self.nbytes:
            raise FormatError(f"a chunk of {self.nbytes} B can't hold {end} B of header")
        while self._filled < end:
            if self._is_closed:
                raise ClosedError("the chunk was closed")
            piece = next_message(self._stream).piece
            if not piece or self._filled + len(piece) > self.nbytes:
                raise CorruptError(f"{len(piece)} B came behind {self._filled} of {self.nbytes} B")
            self._buffer[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)

    def _check_padding(self, index: int) -> None:
        """Raise CorruptError unless the bytes between part `index` and what precedes it are zero."""
        parts = self.manifest.parts
        before = parts[index - 1].offset + parts[index - 1].nbytes if index else self._header.parts_offset
        if any(self._buffer[before : parts[index].offset]):
            raise CorruptError(f"the padding before part {index} is not zero")


def next_message(stream: Iterator[pb.GetResponse] | Stream) -> pb.GetResponse:
    """Return the stream's next message; its end raises CorruptError, its failure the error that it stands for."""
    with typed():
        try:
            return next(stream)
        except StopIteration:
            raise CorruptError("the stream ended before the chunk was complete") from None


def read_hit(message: pb.GetResponse, max_nbytes: int) -> tuple[int, str] | None:
    """Return length and tier of the chunk that a stream announces, None for a miss; raises FormatError before anything is allocated."""
    if message.WhichOneof("kind") != "hit":
        raise FormatError("a chunk's stream begins with its description")
    if message.hit.status != pb.HIT_STATUS_READY:
        return None
    if not HEADER_NBYTES <= message.hit.nbytes <= max_nbytes:
        raise FormatError(f"a chunk of {message.hit.nbytes} B was announced; this client reads at most {max_nbytes} B")
    return message.hit.nbytes, message.hit.tier
