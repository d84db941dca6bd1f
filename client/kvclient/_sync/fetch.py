# Written by client/generate_sync.py from kvclient/_async/fetch.py; change that file and run it again.
"""Fetch one chunk's bytes from a store service."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from kvclient.lanes.frames import Found, parse_found
from kvstore.core.api import Hit, Status
from kvstore.core.errors import CorruptError, FormatError
from kvstore.core.key import ChunkKey

MAX_BLOB_NBYTES = 1 << 32


@dataclass(frozen=True)
class Fetched:
    """What the store said about a chunk, and its bytes; a miss has none."""

    hit: Hit
    data: bytearray


def collect_chunk(key: ChunkKey, messages: Generator[bytes, None, None]) -> Fetched:
    """Collect the answers to the get of `key`; memory grows with what has come, not with what was announced.

    Raises FormatError for answers that are none, and CorruptError for more or fewer bytes than announced.
    """
    found, data = None, bytearray()
    for message in messages:
        if found is None:
            found = _announced(message)
            continue
        data += message
        if len(data) > found.nbytes:
            break
    if found is None:
        raise FormatError("the store answered a get with nothing")
    if len(data) != found.nbytes:
        raise CorruptError(f"the store announced {found.nbytes} B and sent {len(data)} B")
    if found.status is Status.READY:
        return Fetched(Hit(key, found.status, found.text, found.nbytes), data)
    return Fetched(Hit(key, found.status, reason=found.text), bytearray())


def _announced(message: bytes) -> Found:
    """Read the description of a chunk that this client can hold."""
    found = parse_found(message, 1)[0]
    if found.nbytes > MAX_BLOB_NBYTES:
        raise FormatError(f"the store announced a chunk of {found.nbytes} B; this client takes at most {MAX_BLOB_NBYTES} B")
    return found
