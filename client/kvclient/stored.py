"""Stored passages as raw chunks, for an engine of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvclient.records import Passage, ResolvedPassage
from kvstore.core.blob import Buffer, BufferedBlob, key_of, verify_blob
from kvstore.core.errors import IdentityError, KVError, NotFoundError
from kvstore.core.key import ChunkKey, content_key

if TYPE_CHECKING:
    from kvclient.numpy_codecs import Floats


@dataclass(frozen=True)
class StoredPassage:
    """One passage's chunk, verified: its key, its tokens and its blob; a miss has no blob and a reason instead."""

    passage: Passage
    key: ChunkKey
    token_ids: tuple[int, ...]
    blob: BufferedBlob | None
    reason: str = ""

    def to_numpy(self) -> list[tuple[Floats, Floats]]:
        """Decode to one (k, v) per layer group: k before RoPE (L, H, T, D), v (L, H, T, D), float32.

        Raises NotFoundError for a miss, and UnsupportedError for a codec that is not known here.
        """
        if self.blob is None:
            raise NotFoundError(f"the chunk of passage {self.passage.id[:16]} is not in the store ({self.reason}); ingest it again")
        from kvclient.numpy_codecs import decode_part  # numpy takes a fifth of a second to import; most clients never decode

        manifest = self.blob.manifest
        return [decode_part(manifest, index, self.blob.part(index)) for index in range(len(manifest.parts))]


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
