"""A store behind a link of known bandwidth, for benchmarks."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from kvstore.core.api import BlobReader, Hit, Status, StoreAPI
from kvstore.core.key import ChunkKey
from kvstore.core.manifest import Manifest
from kvworker.bench.passing import Passing


class Link:
    """Lets bytes through at a bandwidth, in the order in which they are asked for. Thread-safe."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._free_at = 0.0
        self._lock = threading.Lock()

    def carry(self, nbytes: int) -> None:
        """Return when so many bytes have passed."""
        with self._lock:
            self._free_at = max(self._free_at, time.perf_counter()) + nbytes / self.bytes_per_s
            free_at = self._free_at
        while (left_s := free_at - time.perf_counter()) > 0:
            time.sleep(left_s)


class LinkReader:
    """A chunk that comes over a link; implements `BlobReader`."""

    def __init__(self, reader: BlobReader, link: Link, tier: str) -> None:
        self._reader, self._link, self.tier = reader, link, tier

    @property
    def manifest(self) -> Manifest:
        """Pass on."""
        return self._reader.manifest

    @property
    def nbytes(self) -> int:
        """Pass on."""
        return self._reader.nbytes

    def part(self, index: int) -> memoryview:
        """Carry a part over."""
        self._link.carry(self._reader.manifest.parts[index].nbytes)
        return self._reader.part(index)

    def close(self) -> None:
        """Pass on."""
        self._reader.close()


class ThrottledStore(Passing):
    """Reads come over a link, and its tiers are named after it, so that it has a cost of its own; all else passes at full speed."""

    def __init__(self, store: StoreAPI, bytes_per_s: float) -> None:
        super().__init__(store)
        self._link = Link(bytes_per_s)
        self.tier = f"link-{bytes_per_s:.3g}"

    def lookup(self, keys: Sequence[ChunkKey], lease_s: float = 0.0, timeout_s: float | None = None) -> list[Hit]:
        """Say that what is there is behind the link."""
        hits = super().lookup(keys, lease_s, timeout_s)
        return [replace(hit, tier=self.tier) if hit.status is Status.READY else hit for hit in hits]

    def get(self, key: ChunkKey, timeout_s: float | None = None) -> BlobReader | None:
        """Open a chunk behind the link."""
        reader = super().get(key, timeout_s)
        return None if reader is None else LinkReader(reader, self._link, self.tier)
