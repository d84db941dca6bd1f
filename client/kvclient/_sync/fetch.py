# Written by client/generate_sync.py from kvclient/_async/fetch.py; change that file and run it again.
"""Fetch one chunk's bytes from a store service."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from kvclient.wire import hit_from_wire
from kvproto.v1 import store_pb2
from kvstore.core.api import Hit, Status
from kvstore.core.errors import CorruptError, FormatError

MAX_BLOB_NBYTES = 1 << 32


@dataclass(frozen=True)
class Fetched:
    """What the store said about a chunk, and its bytes; a miss has none."""

    hit: Hit
    data: bytearray


def collect_chunk(messages: Generator[store_pb2.GetResponse, None, None]) -> Fetched:
    """Collect the answers to one get; memory grows with what has come, not with what was announced.

    Raises FormatError for answers that are none, and CorruptError for more or fewer bytes than announced.
    """
    hit, data = None, bytearray()
    for message in messages:
        if (message.WhichOneof("kind") == "hit") is not (hit is None):
            raise FormatError("a get is answered by one description and then by bytes; the server speaks another version")
        hit = hit or _announced(message.hit)
        data += message.piece
        if len(data) > hit.nbytes:
            break
    if hit is None:
        raise FormatError("the store answered a get with nothing")
    if hit.status is Status.READY and len(data) != hit.nbytes:
        raise CorruptError(f"the store announced {hit.nbytes} B and sent {len(data)} B")
    return Fetched(hit, data if hit.status is Status.READY else bytearray())


def _announced(message: store_pb2.Hit) -> Hit:
    """Read the description of a chunk that this client can hold."""
    hit = hit_from_wire(message)
    if hit.nbytes > MAX_BLOB_NBYTES:
        raise FormatError(f"the store announced a chunk of {hit.nbytes} B; this client takes at most {MAX_BLOB_NBYTES} B")
    return hit
