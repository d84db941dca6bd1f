"""A verified record as a chunk being read."""

from __future__ import annotations

from kvstore.core.errors import ClosedError
from kvstore.core.manifest import Manifest
from kvstore.store.record import Record


class RecordReader:
    """Hands out views of a record whose every byte was verified when it was read; copies nothing. Implements `BlobReader`."""

    def __init__(self, record: Record) -> None:
        self._header = record.header
        self._blob: memoryview | None = record.blob
        self.tier = record.tier

    @property
    def manifest(self) -> Manifest:
        """The verified manifest."""
        return self._header.manifest

    @property
    def nbytes(self) -> int:
        """Bytes of the whole blob."""
        return self._header.nbytes

    @property
    def blob(self) -> memoryview:
        """The whole blob."""
        if self._blob is None:
            raise ClosedError("the chunk was closed")
        return self._blob

    def part(self, index: int) -> memoryview:
        """Return part `index`; a view that was handed out stays valid after `close`."""
        spec = self.manifest.parts[index]
        return self.blob[spec.offset : spec.offset + spec.nbytes]

    def close(self) -> None:
        """Let go of the record. Safe to call again."""
        self._blob = None
