"""Where chunks lie in memory that a store shares with readers: a table that a reader searches by itself, without a word to the store.

    0    8   stamps up to this one are not believed any more; 2^64 - 1 when the store is closed
    ...      other words of the store
    at   256 a bucket of four entries, and so on

An entry of 64 bytes, integers little-endian:

    0    16  fingerprint of the key      32   8   length of the chunk in bytes
    16   8   stamp, never used twice     40   16  tier, padded with zeros
    24   8   offset in the memory        56   8   xxh3-64 of bytes 0..55

The store clears an entry before what it tells of is gone. A reader reads the entry, copies the chunk and reads the entry again: if it is
the same, the chunk was what the entry says all the while. An entry that is read while it is written does not match its own sum.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import xxhash

from kvstore.core.key import ChunkKey

ENTRY_NBYTES = 64
BUCKET_NBYTES = 4 * ENTRY_NBYTES
SALT_NBYTES = 16
NO_ENTRY = bytes(ENTRY_NBYTES)
_ENTRY = struct.Struct("<16sQQQ16s")
_SUM = struct.Struct("<Q")


class Listed(NamedTuple):
    """What an entry says of a chunk: since when, where it begins in the memory, its length in bytes, and the tier that holds it."""

    stamp: int
    offset: int
    nbytes: int
    tier: str


def fingerprint(salt: bytes, key: ChunkKey) -> bytes:
    """Return what a key of the tenant with this salt is found by."""
    return xxhash.xxh3_128_digest(salt + key.namespace + key.content + key.variant)


def bucket_of(found_by: bytes, n_buckets: int) -> int:
    """Return the number of the bucket that a fingerprint belongs to."""
    return int.from_bytes(found_by[:8], "little") % n_buckets


def pack_entry(found_by: bytes, listed: Listed) -> bytes:
    """Return the bytes of an entry."""
    entry = _ENTRY.pack(found_by, listed.stamp, listed.offset, listed.nbytes, listed.tier.encode()[:16])
    return entry + _SUM.pack(xxhash.xxh3_64_intdigest(entry))


def find_entry(bucket: bytes, found_by: bytes) -> int:
    """Return where in a bucket an entry with this fingerprint begins; -1 when there is none."""
    at = bucket.find(found_by)
    while at % ENTRY_NBYTES and at >= 0:
        at = bucket.find(found_by, at + 1)
    return at


def parse_entry(entry: bytes) -> Listed | None:
    """Return what an entry says; None for one that was being written."""
    _, stamp, offset, nbytes, tier = _ENTRY.unpack_from(entry)
    if _SUM.unpack_from(entry, _ENTRY.size)[0] != xxhash.xxh3_64_intdigest(entry[: _ENTRY.size]):
        return None
    return Listed(stamp, offset, nbytes, tier.rstrip(b"\0").decode("ascii", "replace"))
