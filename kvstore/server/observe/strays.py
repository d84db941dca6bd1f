"""Misses of chunks that another tenant has: a reason for whoever operates the store, and never for a tenant."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from kvstore.core.key import ChunkKey
from kvstore.server.observe.tally import MissNote
from kvstore.server.service import BoundStore, StoreService

TENANT = "tenant"
_NEVER_STORED = "never_stored"
_MOST_PROBES = 4096  # at a time: some 20 ms


class Strays:
    """Looks for them when somebody looks at the metrics, and in no call: what a tenant is told, and when, depends on nothing of others.

    Counts `lookup.tenant` and `get.tenant` in the tallies, which stay part of the misses that were never stored. Thread-safe.
    """

    def __init__(self, service: StoreService) -> None:
        self._service = service
        self._lock = threading.Lock()

    def sort(self) -> None:
        """Count the strays among the misses since the last time, the latest 256 of each tenant and some thousand in all."""
        with self._lock:
            stores, n_left = self._service.tenants(), _MOST_PROBES
            for store in stores:
                for note in store.tally.take_unsorted():
                    if note.reason == _NEVER_STORED and n_left > 0:
                        n_left -= len(stores)
                        store.tally.counters.add(f"{note.call}.{TENANT}", int(_has_another(stores, store, note.key)))

    def reason(self, store: BoundStore, note: MissNote) -> str:
        """Return why a tenant missed a chunk, as the operator may know it."""
        if note.reason == _NEVER_STORED and _has_another(self._service.tenants(), store, note.key):
            return TENANT
        return note.reason


def _has_another(stores: Sequence[BoundStore], own: BoundStore, key: ChunkKey) -> bool:
    """Tell whether a tenant beside `own` has a chunk, of those that called since the start."""
    return any(store.holds(key) for store in stores if store is not own)
