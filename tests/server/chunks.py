"""Chunks and stores for the tests of the server and of its transports."""

from __future__ import annotations

import hashlib
import random

from kvstore.core.blob import build_blob, key_of, parse_header
from kvstore.core.key import ChunkKey, Kind, content_key
from kvstore.core.manifest import FieldSpec, Manifest, PartSpec
from kvstore.core.stages import PipelineSpec, StageSpec
from kvstore.server.service import StoreService
from kvstore.store.epochs import Epochs
from kvstore.store.memory import MemoryTier
from kvstore.store.results import StoreSettings
from kvstore.store.tiered import TieredStore

NAMESPACE = hashlib.sha256(b"a model").digest()
MASTER_SECRET = bytes(range(32))


def make_blob(seed: int = 0, n_parts: int = 3, part_nbytes: int = 1000, namespace: bytes = NAMESPACE, n_tokens: int = 7) -> bytearray:
    """Return a chunk with `n_parts` parts of `part_nbytes` random bytes; equal arguments give equal chunks."""
    content = content_key(namespace, Kind.ALONE, [seed, n_tokens])
    fields = (FieldSpec("k.codes", "uint8", (part_nbytes,)),)
    parts = tuple(PartSpec(group, (group,), 1, 1, 1, fields) for group in range(n_parts))
    codec = PipelineSpec((StageSpec("raw"),))
    manifest = Manifest(namespace, content, Kind.ALONE, b"", n_tokens, "float32", codec, parts)
    rng = random.Random(seed)
    return build_blob(manifest, [[rng.randbytes(part_nbytes)] for _ in range(n_parts)])


def key(blob: bytes | bytearray) -> ChunkKey:
    """Return the key of a chunk."""
    return key_of(parse_header(blob).manifest)


def make_service(capacity_bytes: int = 64 << 20, max_blob_bytes: int = 8 << 20) -> StoreService:
    """Return a service over one memory tier, which other processes can read in place."""
    memory = MemoryTier(capacity_bytes, is_shared=True)
    store = TieredStore([memory], StoreSettings(remote_timeout_s=0.2))
    return StoreService(store, Epochs(), MASTER_SECRET, max_blob_bytes, memory.shared)


def blob_of(nbytes: int, seed: int = 0) -> bytearray:
    """Return a chunk of one part with exactly `nbytes` in all, header and manifest included."""
    part_nbytes = nbytes
    for _ in range(4):  # the manifest tells the part's length in digits, of which a shorter part may have fewer
        blob = make_blob(seed, n_parts=1, part_nbytes=part_nbytes)
        part_nbytes -= len(blob) - nbytes
    assert len(blob) == nbytes
    return blob
