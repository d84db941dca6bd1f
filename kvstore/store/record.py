"""The record: what every tier stores under a storage key. An envelope with what a listing needs, then the chunk itself.

    0   8   magic "KVRECORD"          32  32  storage key
    8   4   record version, 1         64  16  xxh3-128 of bytes 0..63 and the meta
    12  4   meta length M             80  M   meta, canonical JSON
    16  8   length of the whole record    ..  zero bytes up to a multiple of 64, then the blob
    24  8   zero

Integers are little-endian. Every bit is covered: head and meta by the digest at 64, the padding by having to be zero, the blob by
its own digests. A record that was moved to another storage key, or that describes another chunk than it holds, is refused.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

from kvstore.core import canonical
from kvstore.core.blob import Buffer, align, key_of, verify_blob, xxh3
from kvstore.core.errors import CorruptError, FormatError, IdentityError
from kvstore.core.key import ChunkKey, check_digest
from kvstore.core.landing import Landed, Landing
from kvstore.core.manifest import Manifest

MAGIC = b"KVRECORD"
VERSION = 1
HEAD_NBYTES = 80
MAX_META_NBYTES = 64 << 10
MAX_SOURCE_CHARS = 1024
_HEAD = struct.Struct("<8sIIQQ32s")


@dataclass(frozen=True)
class RecordMeta:
    """What a listing, an eviction policy and an invalidation need to know about a chunk without reading it.

    `kind`, `n_tokens` and `codec` repeat the chunk's manifest; `recompute_s` is the seconds that computing it took; `source_epoch` is
    the epoch of `source` when it was put.
    """

    chunk: ChunkKey
    kind: str
    n_tokens: int
    codec: str
    source: str = ""
    source_epoch: int = 0
    recompute_s: float = 0.0

    def __post_init__(self) -> None:
        if len(self.source) > MAX_SOURCE_CHARS:
            raise FormatError(f"source has {len(self.source)} characters; at most {MAX_SOURCE_CHARS} are kept")
        if not math.isfinite(self.recompute_s) or self.recompute_s < 0:
            raise FormatError(f"recompute_s must be finite and not negative, got {self.recompute_s!r}")
        if not 0 <= self.source_epoch < 2**63:
            raise FormatError(f"source_epoch must be within 0 and 2**63, got {self.source_epoch}")

    @classmethod
    def of(cls, manifest: Manifest, source: str = "", source_epoch: int = 0, recompute_s: float = 0.0) -> RecordMeta:
        """Describe the chunk that `manifest` belongs to."""
        kind = manifest.kind.name.lower()
        return cls(key_of(manifest), kind, manifest.n_tokens, manifest.codec.label, source, source_epoch, float(recompute_s))

    def to_json(self) -> dict[str, Any]:
        """Return the meta as it stands in a record."""
        return {**vars(self), "chunk": self.chunk.to_bytes().hex()}

    def to_bytes(self) -> bytes:
        """Return the meta as canonical JSON."""
        return canonical.dumps(self.to_json())

    @property
    def blob_offset(self) -> int:
        """Where the blob begins in a record with this meta."""
        return align(HEAD_NBYTES + len(self.to_bytes()))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RecordMeta:
        """Check and read the meta of an untrusted record; anything unexpected raises FormatError."""
        try:
            fields = {**value, "chunk": ChunkKey.from_bytes(bytes.fromhex(value["chunk"]))}
            meta = cls(**fields)
            spelled_again = meta.to_json()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"the record's meta is malformed: {error!r}") from error
        kinds = {name: type(v) for name, v in value.items()}
        if spelled_again != value or kinds != _META_TYPES:
            raise FormatError("the record's meta has fields or types that this version does not know")
        return meta


_META_TYPES = {
    "chunk": str, "kind": str, "n_tokens": int, "codec": str, "source": str, "source_epoch": int, "recompute_s": float,
}  # fmt: skip


@dataclass(frozen=True)
class RecordHead:
    """A record without its chunk, digest verified: where the blob begins and how long the whole record is, in bytes."""

    storage_key: bytes
    meta: RecordMeta
    blob_offset: int
    nbytes: int


def record_head(storage_key: bytes, meta: RecordMeta, blob_nbytes: int) -> bytes:
    """Return what stands before the blob of a record, padded."""
    text = meta.to_bytes()
    start = align(HEAD_NBYTES + len(text))
    head = _HEAD.pack(MAGIC, VERSION, len(text), start + blob_nbytes, 0, check_digest(storage_key, "storage key"))
    return (head + xxh3(head, text) + text).ljust(start, b"\0")


def meta_end(head: Buffer) -> int:
    """Return how many bytes hold head and meta, from a record's first 80 bytes; hostile lengths raise FormatError."""
    if len(head) < HEAD_NBYTES:
        raise FormatError(f"a record has a head of {HEAD_NBYTES} B, got {len(head)} B")
    magic, version, meta_nbytes, nbytes, zero, _ = _HEAD.unpack_from(head)
    if magic != MAGIC or version != VERSION:
        raise FormatError("not a record of a version that is known here")
    if zero or meta_nbytes > MAX_META_NBYTES or nbytes < align(HEAD_NBYTES + meta_nbytes):
        raise FormatError(f"impossible head: meta of {meta_nbytes} B in a record of {nbytes} B")
    return int(HEAD_NBYTES + meta_nbytes)


def parse_head(data: Buffer) -> RecordHead:
    """Parse and verify a record's head and meta; `data` holds at least `meta_end(data)` bytes. Does not look at the chunk.

    Raises FormatError for what is no record and CorruptError when the digest does not match.
    """
    end = meta_end(data)
    view = memoryview(data)
    if view.nbytes < end:
        raise FormatError(f"head and meta take {end} B, got {view.nbytes} B")
    if xxh3(view[: _HEAD.size], view[HEAD_NBYTES:end]) != bytes(view[_HEAD.size : HEAD_NBYTES]):
        raise CorruptError("the digest of the record's head and meta does not match")
    _, _, _, nbytes, _, storage_key = _HEAD.unpack_from(data)
    meta = RecordMeta.from_json(canonical.loads(bytes(view[HEAD_NBYTES:end])))
    return RecordHead(storage_key, meta, align(end), nbytes)


def parse_record(storage_key: bytes, data: Buffer) -> RecordHead:
    """Verify every byte of a record that was stored under `storage_key`.

    Raises CorruptError or FormatError when any bit differs from what was stored, and IdentityError when it is the record of another
    storage key or describes another chunk than it holds.
    """
    view = memoryview(data).cast("B")
    head = land_head(Landed(view), storage_key)
    check_describes(head.meta, verify_blob(view[head.blob_offset :]).manifest)
    return head


def land_head(landing: Landing, storage_key: bytes) -> RecordHead:
    """Receive and verify what stands before a record's blob.

    Raises CorruptError or FormatError when any bit of it differs, and IdentityError when it is the record of another storage key.
    """
    landing.fill(min(HEAD_NBYTES, landing.nbytes))
    end = meta_end(landing.view[:HEAD_NBYTES])
    landing.fill(min(align(end), landing.nbytes))
    head = parse_head(landing.view[:end])
    if head.nbytes != landing.nbytes:
        raise CorruptError(f"the record should have {head.nbytes} B, got {landing.nbytes} B")
    if any(landing.view[end : head.blob_offset]):
        raise CorruptError("the padding behind the record's meta is not zero")
    if head.storage_key != storage_key:
        raise IdentityError(f"the record belongs to storage key {head.storage_key.hex()[:16]}, not {storage_key.hex()[:16]}")
    return head


def check_describes(meta: RecordMeta, manifest: Manifest) -> None:
    """Raise IdentityError unless `meta` describes the chunk of `manifest`."""
    told = RecordMeta.of(manifest, meta.source, meta.source_epoch, meta.recompute_s)
    if told != meta:
        raise IdentityError(f"the record's meta tells of chunk {meta.chunk}, its blob is {told.chunk}, or kind, tokens or codec differ")
