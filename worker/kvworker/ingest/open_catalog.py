"""Which catalog a worker uses: a file of its own, or the one that several workers share."""

from __future__ import annotations

from pathlib import Path

from kvstore.store.redis.plaintext import warn_of_plaintext
from kvworker.ingest.catalog import Catalog
from kvworker.ingest.redis_catalog import RedisCatalog
from kvworker.ingest.sqlite_catalog import SqliteCatalog

_FILE = "passages.sqlite"


def open_catalog(url: str, namespace: bytes, folder: Path | None, capacity_bytes: int) -> Catalog:
    """Return the catalog in Redis at `url`, or where that is "" the one in `folder`, or in memory without a folder."""
    if url:
        warn_of_plaintext("worker.catalog_url", url)
        return RedisCatalog(namespace, url, capacity_bytes)
    return SqliteCatalog(namespace, folder / _FILE if folder else None, capacity_bytes)
