"""Small chunks with random bytes, and what is stored around them."""

from __future__ import annotations

import random

from kvstore.core.blob import build_blob, parse_header
from kvstore.core.key import Kind
from kvstore.core.manifest import FieldSpec, Manifest, PartSpec
from kvstore.core.stages import PipelineSpec, StageSpec
from kvstore.store.record import RecordMeta, record_head


def make_chunk(
    seed: int, nbytes: int = 64, recompute_s: float = 1.0, source: str = "notes/a.txt", n_parts: int = 1
) -> tuple[bytes, RecordMeta, bytes]:
    """Return storage key, meta and blob of a chunk with `nbytes` of payload in each part; equal arguments give equal chunks."""
    rng = random.Random(seed)
    fields = (FieldSpec("k.raw", "uint8", (nbytes,)),)
    parts = tuple(PartSpec(group, (group,), kv_heads=1, k_dim=8, v_dim=8, fields=fields) for group in range(n_parts))
    codec = PipelineSpec((StageSpec("raw"),))
    manifest = Manifest(rng.randbytes(32), rng.randbytes(32), Kind.ALONE, b"", 4, "float32", codec, parts)
    blob = bytes(build_blob(manifest, [[rng.randbytes(nbytes)] for _ in parts]))
    meta = RecordMeta.of(parse_header(blob).manifest, source, recompute_s=recompute_s)
    return rng.randbytes(32), meta, blob


def make_record(seed: int, nbytes: int = 64) -> tuple[bytes, bytes]:
    """Return a storage key and the whole record stored under it."""
    key, meta, blob = make_chunk(seed, nbytes)
    return key, record_of(key, meta, blob)


def record_of(key: bytes, meta: RecordMeta, blob: bytes | bytearray) -> bytes:
    """Return a whole record, whether or not its halves agree."""
    return record_head(key, meta, len(blob)) + bytes(blob)


def record_nbytes(payload_nbytes: int = 64) -> int:
    """Return the length of a record with that much payload."""
    return len(make_record(0, payload_nbytes)[1])
