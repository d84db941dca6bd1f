"""Stored passages as raw chunks, for an engine of one's own, and the artifacts that some are coded with."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from kvclient.reader.keys import artifact_keys
from kvclient.records import Passage, ResolvedPassage
from kvstore.core.blob import Buffer, BufferedBlob, key_of, verify_blob
from kvstore.core.errors import IdentityError, KVError, NotFoundError
from kvstore.core.key import ChunkKey, content_key
from kvstore.core.manifest import MAX_DECODED_NBYTES

if TYPE_CHECKING:
    from kvclient.reader.artifact import Artifact
    from kvclient.reader.fields import Floats

_MOST_KEPT = 8


@dataclass(frozen=True, eq=False)
class StoredArtifact:
    """The tables that a codec was calibrated with, as they were fetched: a verified blob, or none and the reason."""

    key: ChunkKey
    data: Buffer
    reason: str = ""

    @cached_property
    def tables(self) -> Artifact:
        """The tables, read once. Raises NotFoundError where there is no blob, and CorruptError where their digest is not their name."""
        from kvclient.reader.artifact import read_artifact  # imports numpy: see `StoredPassage.to_numpy`

        if not self.data:
            raise NotFoundError(
                f"artifact {self.key.content.hex()[:16]}, which the chunk is coded with, is not in the store ({self.reason}): "
                "ingest the passage again"
            )
        return read_artifact(self.data)


@dataclass(frozen=True)
class StoredPassage:
    """One passage's chunk, verified: its key, its tokens, its blob, and the artifacts that decode it; a miss has no blob and a reason."""

    passage: Passage
    key: ChunkKey
    token_ids: tuple[int, ...]
    blob: BufferedBlob | None
    reason: str = ""
    artifacts: tuple[StoredArtifact, ...] = field(default=(), compare=False)

    def to_numpy(self, max_decoded_nbytes: int = MAX_DECODED_NBYTES) -> list[tuple[Floats, Floats]]:
        """Decode to one (k, v) per layer group: k before RoPE (L, H, T, D), v (L, H, T, D), float32.

        Raises NotFoundError for a miss, of the chunk or of an artifact; UnsupportedError for a codec that is not known here; FormatError or
        CorruptError for a chunk that does not decode as its codec says; CapacityError for one that claims more than `max_decoded_nbytes`
        of K and V in its dtype: arrays of 16-bit types take twice as much.
        """
        if self.blob is None:
            raise NotFoundError(f"the chunk of passage {self.passage.id[:16]} is not in the store ({self.reason}); ingest it again")
        from kvclient.reader.chunk import ChunkReader  # numpy takes a fifth of a second to import; most clients never decode

        manifest = self.blob.manifest
        reader = ChunkReader(manifest, {artifact.key.content.hex(): artifact.tables for artifact in self.artifacts}, max_decoded_nbytes)
        return [reader.part(index, self.blob.part(index)) for index in range(len(manifest.parts))]


class KeptArtifacts:
    """The artifacts that a client fetched last, 8 at most: they never change, and many chunks share one. Thread-safe."""

    def __init__(self) -> None:
        self._kept: dict[ChunkKey, StoredArtifact] = {}
        self._lock = threading.Lock()

    def keep(self, artifact: StoredArtifact) -> StoredArtifact:
        """Keep an artifact that was there, instead of the one that was kept first; return it."""
        if artifact.data:
            with self._lock:
                self._kept[artifact.key] = artifact
                while len(self._kept) > _MOST_KEPT:
                    del self._kept[next(iter(self._kept))]
        return artifact

    def find(self, key: ChunkKey) -> StoredArtifact | None:
        """Return an artifact that is kept."""
        with self._lock:
            return self._kept.get(key)


def needed_artifacts(passage: StoredPassage) -> tuple[ChunkKey, ...]:
    """Return the keys of the artifacts that a passage is decoded with; a miss needs none."""
    return artifact_keys(passage.blob.manifest) if passage.blob is not None else ()


def stored_artifact(key: ChunkKey, data: Buffer, reason: str) -> StoredArtifact:
    """Return an artifact of fetched bytes; bytes that are not that artifact, whole and unchanged, are a miss that says why."""
    if not data:
        return StoredArtifact(key, b"", reason)
    try:
        found = key_of(verify_blob(data).manifest)
    except KVError as error:
        return StoredArtifact(key, b"", str(error))
    return StoredArtifact(key, data) if found == key else StoredArtifact(key, b"", f"the store sent {found} for {key}")


def with_artifacts(passage: StoredPassage, found: Mapping[ChunkKey, StoredArtifact]) -> StoredPassage:
    """Return a passage with the artifacts that it needs."""
    artifacts = tuple(found[key] for key in needed_artifacts(passage))
    return StoredPassage(passage.passage, passage.key, passage.token_ids, passage.blob, passage.reason, artifacts)


def stored_passage(resolved: ResolvedPassage, tier: str, data: Buffer, reason: str) -> StoredPassage:
    """Return a passage with its fetched bytes; bytes that are not its chunk, whole and unchanged, are a miss that says why."""
    known = (resolved.passage, resolved.key, resolved.token_ids)
    if not data:
        return StoredPassage(*known, blob=None, reason=reason)
    try:
        check_chunk(data, resolved)
        return StoredPassage(*known, blob=BufferedBlob(data, tier))
    except KVError as error:
        return StoredPassage(*known, blob=None, reason=str(error))


def check_chunk(data: Buffer, resolved: ResolvedPassage) -> None:
    """Raise FormatError, CorruptError or IdentityError unless `data` is the chunk of the passage's key and tokens."""
    key, manifest = resolved.key, verify_blob(data).manifest
    if key_of(manifest) != key:
        raise IdentityError(f"the store sent chunk {key_of(manifest)} for {key}")
    if content_key(manifest.namespace, manifest.kind, resolved.token_ids, manifest.parent or None) != key.content:
        raise IdentityError(f"chunk {key} was computed from other tokens than the {len(resolved.token_ids)} of its passage")
    if manifest.n_tokens != len(resolved.token_ids):
        raise IdentityError(f"chunk {key} claims {manifest.n_tokens} tokens, its passage has {len(resolved.token_ids)}")
