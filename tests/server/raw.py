"""Chunks as raw messages of gRPC, for clients that do as they please."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import grpc

from kvclient.lanes.frames import pack_put
from kvclient.lanes.grpc_lane import GET, PUT
from kvstore.core.api import PutNote
from kvstore.core.blob import iter_pieces, parse_header

Put: TypeAlias = "grpc.StreamUnaryMultiCallable[bytes, bytes]"
Get: TypeAlias = "grpc.UnaryStreamMultiCallable[bytes, bytes]"


def header_of(blob: bytes | bytearray) -> bytes:
    """Return header and manifest of a chunk."""
    return bytes(blob[: parse_header(blob).parts_offset])


def head_of(blob: bytes | bytearray, note: PutNote | None = None) -> bytes:
    """Return the first message of a chunk's put."""
    return pack_put(note or PutNote(), header_of(blob))


def body_of(blob: bytes | bytearray) -> bytes:
    """Return what the messages behind the first carry."""
    return bytes(blob[len(header_of(blob)) :])


def pieces_of(data: bytes | bytearray, nbytes: int = 1 << 20) -> list[bytes]:
    """Return bytes in messages of at most `nbytes`."""
    return [bytes(piece) for piece in iter_pieces(data, nbytes)]


def put_on(channel: grpc.Channel) -> Put:
    """Return the method that takes a chunk."""
    method: Put = channel.stream_unary(PUT)
    return method


def get_on(channel: grpc.Channel) -> Get:
    """Return the method that sends chunks."""
    method: Get = channel.unary_stream(GET)
    return method


def put_messages(blob: bytes | bytearray, nbytes: int = 1 << 20) -> Iterator[bytes]:
    """Yield the messages of an honest put."""
    yield head_of(blob)
    yield from pieces_of(body_of(blob), nbytes)
