"""A store that passes every call on, for those that change some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvstore.core.api import BlobReader, Entry, Explanation, Hit, PutNote, PutReceipt, Scope, StoreAPI, StoreStats
from kvstore.core.blob import Buffer
from kvstore.core.key import ChunkKey


class Passing:
    """Implements `StoreAPI` by another one. Chunks are asked for one by one, so that whatever changes `get` changes batches."""

    def __init__(self, store: StoreAPI) -> None:
        self.store = store

    def lookup(self, keys: Sequence[ChunkKey], lease_s: float = 0.0, timeout_s: float | None = None) -> list[Hit]:
        """Pass on."""
        return self.store.lookup(keys, lease_s, timeout_s)

    def get(self, key: ChunkKey, timeout_s: float | None = None) -> BlobReader | None:
        """Pass on."""
        return self.store.get(key, timeout_s)

    def get_batch(self, keys: Sequence[ChunkKey], timeout_s: float | None = None) -> list[BlobReader | None]:
        """Get one after the other."""
        return [self.get(key, timeout_s) for key in keys]

    def put(self, blob: Buffer, note: PutNote) -> PutReceipt:
        """Pass on."""
        return self.store.put(blob, note)

    def delete(self, keys: Sequence[ChunkKey]) -> int:
        """Pass on."""
        return self.store.delete(keys)

    def invalidate(self, scope: Scope) -> int:
        """Pass on."""
        return self.store.invalidate(scope)

    def entries(self, limit: int = 1000) -> Iterator[Entry]:
        """Pass on."""
        return self.store.entries(limit)

    def stats(self) -> StoreStats:
        """Pass on."""
        return self.store.stats()

    def explain(self, key: ChunkKey) -> Explanation:
        """Pass on."""
        return self.store.explain(key)

    def close(self) -> None:
        """Leave the store open: whoever made it closes it."""
