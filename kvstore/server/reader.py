"""A stored chunk being read in the store's own process; a damaged copy is taken out of use and the next one read instead."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from kvstore.core.api import Hit
from kvstore.core.errors import CorruptError, KVError
from kvstore.core.key import ChunkKey
from kvstore.core.manifest import Manifest
from kvstore.core.reading import PartReader
from kvstore.store.reads import DAMAGE
from kvstore.store.results import Opened

if TYPE_CHECKING:
    from kvstore.server.service import BoundStore

_MAX_COPIES = 8  # of one chunk that are tried


class StoredReader:
    """Implements `BlobReader`; copies nothing, and verifies every byte before it is handed out. Thread-safe."""

    def __init__(self, store: BoundStore, opened: Opened, timeout_s: float | None) -> None:
        """Verify header and manifest; raises CorruptError, FormatError or IdentityError."""
        self._store, self._opened, self._timeout_s = store, opened, timeout_s
        self._reader = PartReader(opened.landing, opened.meta.chunk, opened.tier)
        self._changing = threading.Lock()
        self._is_closed = False

    @classmethod
    def open(cls, store: BoundStore, key: ChunkKey, timeout_s: float | None) -> StoredReader | None:
        """Open the first copy whose header is sound; None is a miss."""
        for _ in range(_MAX_COPIES):
            opened = store.read(key, timeout_s)
            if isinstance(opened, Hit):
                return None
            try:
                return cls(store, opened, timeout_s)
            except DAMAGE as error:
                store.quarantine(opened, error)
            except KVError:
                opened.landing.close()
                raise
        return None

    @property
    def manifest(self) -> Manifest:
        """The verified manifest."""
        return self._reader.manifest

    @property
    def nbytes(self) -> int:
        """Bytes of the whole blob."""
        return self._reader.nbytes

    @property
    def tier(self) -> str:
        """The tier that the bytes come from."""
        return self._reader.tier

    def part(self, index: int) -> memoryview:
        """Return part `index`, of another copy where this one is damaged; a view that was handed out stays valid after `close`."""
        for _ in range(_MAX_COPIES):
            reader = self._reader
            try:
                return reader.part(index)
            except DAMAGE as error:
                self._use_next_copy(reader, error)
        raise CorruptError(f"every copy of chunk {self._opened.meta.chunk} is damaged")

    def close(self) -> None:
        """Let go of the record. Safe to call again."""
        self._is_closed = True
        self._reader.close()

    def _use_next_copy(self, damaged: PartReader, why: KVError) -> None:
        """Quarantine a copy and open the next, unless another thread did so; raises `why` when there is none of the same chunk."""
        with self._changing:
            if self._reader is not damaged:
                return
            self._store.quarantine(self._opened, why)
            found = StoredReader.open(self._store, self._opened.meta.chunk, self._timeout_s)
            if found is None:
                raise why
            if found.manifest != self.manifest:
                found.close()
                raise why
            self._opened, self._reader = found._opened, found._reader
        if self._is_closed:
            self._reader.close()
