"""How a record lies in Redis: pieces of 1 MiB behind a small index that is written last.

    larder:1:<storage key in hex>:i    the index: magic "KVPIECES", bytes per piece, pieces, bytes of the record, xxh3-128
    larder:1:<storage key in hex>:0    the first piece, and so on

The index is 40 bytes, little-endian; its digest covers the storage key and what stands before it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from kvstore.core.blob import Buffer, xxh3
from kvstore.core.errors import CorruptError
from kvstore.core.landing import PIECE_NBYTES

PREFIX = b"larder:1:"
_MAGIC = b"KVPIECES"
_INDEX = struct.Struct("<8sIIQ")
INDEX_NBYTES = _INDEX.size + 16


def index_name(key: bytes) -> bytes:
    """Return the name of a record's index."""
    return PREFIX + key.hex().encode() + b":i"


def key_of_index(name: bytes) -> bytes:
    """Return the storage key in the name of an index; raises ValueError for any other name."""
    return bytes.fromhex(name[len(PREFIX) : -2].decode("ascii"))


def piece_names(key: bytes, nbytes: int) -> list[bytes]:
    """Return the names of the pieces of a record of `nbytes`, in order."""
    stem = PREFIX + key.hex().encode() + b":"
    return [stem + str(number).encode() for number in range(-(-nbytes // PIECE_NBYTES))]


def make_index(key: bytes, nbytes: int) -> bytes:
    """Return the index of a record of `nbytes`."""
    index = _INDEX.pack(_MAGIC, PIECE_NBYTES, -(-nbytes // PIECE_NBYTES), nbytes)
    return index + xxh3(key, index)


def parse_index(key: bytes, index: bytes, most_nbytes: int) -> int:
    """Return the record's length in bytes; raises CorruptError for an index that is damaged or impossible."""
    if len(index) != INDEX_NBYTES or xxh3(key, index[: _INDEX.size]) != index[_INDEX.size :]:
        raise CorruptError(f"redis: the index of record {key.hex()[:16]} does not match its digest")
    magic, piece_nbytes, n_pieces, nbytes = _INDEX.unpack_from(index)
    if magic != _MAGIC or piece_nbytes != PIECE_NBYTES or n_pieces != -(-nbytes // PIECE_NBYTES) or not 0 < nbytes <= most_nbytes:
        raise CorruptError(f"redis: the index tells of {n_pieces} pieces of {piece_nbytes} B for {nbytes} B")
    return int(nbytes)


def regroup(pieces: Sequence[Buffer], nbytes: int) -> Iterator[list[memoryview]]:
    """Cut the pieces joined into consecutive values of `nbytes`, the last one shorter, each in one or more buffers; copies nothing."""
    waiting: list[memoryview] = []
    room = nbytes
    for piece in pieces:
        view = memoryview(piece).cast("B")
        while view.nbytes:
            waiting.append(view[:room])
            view = view[waiting[-1].nbytes :]
            room -= waiting[-1].nbytes
            if not room:
                yield waiting
                waiting, room = [], nbytes
    if waiting:
        yield waiting
