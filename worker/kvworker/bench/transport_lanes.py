"""Our lanes as a program uses them: chunks of four layer groups, every part verified, buffers back in the pool."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from kvclient.lanes.choice import ORDER
from kvclient.remote import RemoteStore
from kvstore.core.allocator import keep_large_blocks
from kvstore.core.api import BlobReader, PutNote
from kvstore.core.blob import build_blob, key_of, parse_header
from kvstore.core.errors import KVError
from kvstore.core.key import ChunkKey, Kind, content_key
from kvstore.core.manifest import FieldSpec, Manifest, PartSpec
from kvstore.core.stages import PipelineSpec, StageSpec
from kvworker.bench.transport_processes import Server
from kvworker.bench.transport_rows import BATCH, SINGLES
from kvworker.bench.transport_timing import Operation

N_GROUPS = 4
_NAMESPACE = hashlib.sha256(b"larder bench transport").digest()
_NOTE = PutNote(source="bench", recompute_s=1.0)


@dataclass(frozen=True)
class Chunk:
    """A blob and its key."""

    key: ChunkKey
    blob: bytearray


def make_chunk(nbytes: int, name: Sequence[int]) -> Chunk:
    """Return a chunk whose four parts hold `nbytes` random bytes together; `nbytes` is a multiple of 4, and `name` makes its key."""
    part_nbytes = nbytes // N_GROUPS
    fields = (FieldSpec("k.codes", "uint8", (part_nbytes,)),)
    parts = tuple(PartSpec(group, (group,), 1, 1, 1, fields) for group in range(N_GROUPS))
    content = content_key(_NAMESPACE, Kind.ALONE, [nbytes, *name])
    codec = PipelineSpec((StageSpec("raw"),))
    manifest = Manifest(_NAMESPACE, content, Kind.ALONE, b"", 1, "float32", codec, parts)
    draw = np.random.default_rng([nbytes, *name])
    blob = build_blob(manifest, [[draw.integers(0, 256, part_nbytes, dtype=np.uint8).data] for _ in parts])
    return Chunk(key_of(parse_header(blob).manifest), blob)


class LanesSubject:
    """Implements `Subject`: get, put and view by each lane, and batches. `seed` keeps the chunks of two processes apart."""

    def __init__(self, store: Server, seed: int) -> None:
        self._pids = (store.pid,)
        self._seed = seed
        self._stores = {lane: RemoteStore(store.address, store.token, lane=lane) for lane in ORDER}
        self._auto = RemoteStore(store.address, store.token)
        self._kept: list[ChunkKey] = []

    def prepare(self, nbytes: int, n_chunks: int) -> Mapping[str, Operation]:
        """Replace what is stored by fresh chunks."""
        if self._kept:
            self._auto.delete(self._kept)
        chunks = [make_chunk(nbytes, (self._seed, number)) for number in range(n_chunks)]
        for chunk in chunks:
            self._auto.put(chunk.blob, _NOTE)
        self._kept = [chunk.key for chunk in chunks]
        return self._single(nbytes) if n_chunks == 1 else self._batched()

    def close(self) -> None:
        """Close all connections."""
        for store in (*self._stores.values(), self._auto):
            store.close()

    def _single(self, nbytes: int) -> dict[str, Operation]:
        key, fresh = self._kept[0], make_chunk(nbytes, (self._seed, -1 % (1 << 32)))
        operations = {"shm.view": Operation(partial(_view, self._stores["shm"], key), self._pids)}
        for lane, store in self._stores.items():
            operations[f"{lane}.get"] = Operation(partial(get_chunk, store, key), self._pids)
            operations[f"{lane}.put"] = put_operation(store, fresh, self._pids)
        return operations

    def _batched(self) -> dict[str, Operation]:
        keys = self._kept
        operations = {BATCH: Operation(partial(_get_batch, self._auto, keys), self._pids)}
        for lane in ("tcp", "grpc"):
            operations[f"{BATCH}.{lane}"] = Operation(partial(_get_batch, self._stores[lane], keys), self._pids)
        operations[SINGLES] = Operation(partial(_get_each, self._stores["grpc"], keys), self._pids)
        return operations


@contextmanager
def open_lanes(store: Server, seed: int) -> Iterator[LanesSubject]:
    """Connect by every lane, with the allocator set as an application that moves large chunks sets it."""
    keep_large_blocks()
    subject = LanesSubject(store, seed)
    try:
        yield subject
    finally:
        subject.close()


def put_operation(store: RemoteStore, chunk: Chunk, servers: tuple[int, ...] = ()) -> Operation:
    """Return the put of a chunk, which is deleted behind it; then it is asked for, since a lane in use is not found asleep."""

    def remove() -> None:
        store.delete([chunk.key])
        store.get(chunk.key)

    return Operation(partial(put_chunk, store, chunk), servers, remove)


def get_chunk(store: RemoteStore, key: ChunkKey) -> None:
    """Read a chunk: every part verified and in memory of this process."""
    _read(store.get(key), key)


def _get_each(store: RemoteStore, keys: Sequence[ChunkKey]) -> None:
    for key in keys:
        get_chunk(store, key)


def _get_batch(store: RemoteStore, keys: Sequence[ChunkKey]) -> None:
    for key, reader in zip(keys, store.get_batch(keys), strict=True):
        _read(reader, key)


def _read(reader: BlobReader | None, key: ChunkKey) -> None:
    if reader is None:
        raise KVError(f"the store does not have chunk {key}, which was put")
    for group in range(N_GROUPS):
        reader.part(group)
    reader.close()


def _view(store: RemoteStore, key: ChunkKey) -> None:
    reader = store.view(key)
    if reader is None:
        raise KVError(f"the store does not have chunk {key}, which was put")
    reader.close()


def put_chunk(store: RemoteStore, chunk: Chunk) -> None:
    """Put a chunk that is not there."""
    if not store.put(chunk.blob, _NOTE).stored:
        raise KVError(f"chunk {chunk.key} was stored already, so nothing was measured")
