"""Keys: what a chunk is (content), how it is stored (variant), and where (storage key, made by the server only).

`proto/FORMAT.md` gives the same bytes for readers in other languages; the golden vectors in the tests hold both to it.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from kvstore.core.errors import FormatError, InvalidInputError

DIGEST_NBYTES = 32
_NO_PARENT = bytes(DIGEST_NBYTES)
_MAX_TOKEN = 2**32 - 1


class Kind(IntEnum):
    """How the tokens of a chunk were read.

    DOCUMENT chunks of leading passages in their document's order are an exact prefix of a prompt, too. PREFIX is for engines that cut
    prompts by tokens and not by passages; the worker stores none.
    """

    ALONE = 0  # a passage read by itself
    DOCUMENT = 1  # read behind the earlier passages of its document; its place in a prompt stays free
    PREFIX = 2  # read behind the exact tokens that precede it, chained from the first token of a prompt
    ARTIFACT = 3  # no tokens: calibrated tables of a model


def _token_bytes(token_ids: Sequence[int]) -> bytes:
    """Return the ids as little-endian uint32."""
    if token_ids and (min(token_ids) < 0 or max(token_ids) > _MAX_TOKEN):
        raise InvalidInputError(f"token ids must be within 0 and {_MAX_TOKEN}, got {min(token_ids)} to {max(token_ids)}")
    ids = array("I", token_ids)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tobytes()


def content_key(namespace: bytes, kind: Kind, token_ids: Sequence[int], parent: bytes | None = None) -> bytes:
    """Return the content key (32 bytes): sha256 over namespace, kind, parent and token ids.

    A passage read alone has no parent. The first passage of a document is the same computation as that passage read alone, so it has
    the ALONE key; later ones have the key of the passage before them as parent. A prefix chunk has the preceding prefix chunk as
    parent, or none when it starts the prompt.
    """
    if kind is Kind.ALONE and parent is not None:
        raise InvalidInputError("a passage read alone has no parent; use Kind.DOCUMENT or Kind.PREFIX")
    if kind is Kind.DOCUMENT and parent is None:
        raise InvalidInputError("a document passage needs the key of the passage before it; the first passage has the ALONE key")
    head = b"larder/content/1\0" + check_digest(namespace, "namespace") + bytes([kind])
    middle = check_digest(parent, "parent") if parent is not None else _NO_PARENT
    return hashlib.sha256(head + middle + struct.pack("<Q", len(token_ids)) + _token_bytes(token_ids)).digest()


def chain_keys(namespace: bytes, kind: Kind, chunks: Iterable[Sequence[int]]) -> list[bytes]:
    """Return the keys of consecutive chunks of one document (DOCUMENT) or one prompt (PREFIX)."""
    keys: list[bytes] = []
    for token_ids in chunks:
        if kind is Kind.DOCUMENT and not keys:
            keys.append(content_key(namespace, Kind.ALONE, token_ids))
        else:
            keys.append(content_key(namespace, kind, token_ids, keys[-1] if keys else None))
    return keys


@dataclass(frozen=True, order=True)
class ChunkKey:
    """One stored form of one content: namespace, content key and variant fingerprint, 32 bytes each."""

    namespace: bytes
    content: bytes
    variant: bytes

    def __post_init__(self) -> None:
        for name in ("namespace", "content", "variant"):
            check_digest(getattr(self, name), name)

    def __str__(self) -> str:
        return f"{self.content.hex()[:16]}@{self.variant.hex()[:8]}"

    def to_bytes(self) -> bytes:
        """Return the 96 bytes namespace + content + variant."""
        return self.namespace + self.content + self.variant

    @classmethod
    def from_bytes(cls, data: bytes) -> ChunkKey:
        """Read the 96 bytes of `to_bytes`; any other length raises FormatError."""
        if len(data) != 3 * DIGEST_NBYTES:
            raise FormatError(f"a chunk key has {3 * DIGEST_NBYTES} B, got {len(data)} B")
        return cls(bytes(data[:32]), bytes(data[32:64]), bytes(data[64:]))


def tenant_secret(master_secret: bytes, tenant: str) -> bytes:
    """Derive a tenant's secret (32 bytes) from the server's; the tenant is the authenticated identity, never a caller's claim."""
    return hmac.digest(master_secret, b"larder/tenant/1\0" + tenant.encode(), "sha256")


def storage_key(secret: bytes, tenant_epoch: int, model_epoch: int, key: ChunkKey) -> bytes:
    """Return where a tenant's chunk lives (32 bytes): HMAC-SHA256 under the tenant's secret over both epochs and the chunk key."""
    epochs = struct.pack("<QQ", tenant_epoch, model_epoch)
    return hmac.digest(secret, b"larder/storage/1\0" + epochs + key.to_bytes(), "sha256")


def check_digest(value: bytes, name: str) -> bytes:
    """Return `value` if it is 32 bytes, else raise FormatError naming it."""
    if len(value) != DIGEST_NBYTES:
        raise FormatError(f"{name} must be {DIGEST_NBYTES} B, got {len(value)} B")
    return value
