"""Which records of a store are one tenant's own, so that a list costs what it shows."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kvstore.store.results import StoredEntry
from kvstore.store.tiered import TieredStore

_FEW = 4096


class Owned:
    """The storage keys of one tenant's chunks, newest first. Thread-safe.

    Nothing is kept before they are asked for. Then every record of the store is looked at, once, since only the tenant's secret tells its
    keys from those of others. From then on what the tenant puts and reads is noted, and a read brings in what another store put into a tier
    that both have. Keys of records that are gone stay for a while: at most as many as those of records that are there, and a few.

    Parameters
    ----------
    is_own : callable
        Tells the tenant's chunks among those that the store holds.
    """

    def __init__(self, store: TieredStore, is_own: Callable[[StoredEntry], bool]) -> None:
        self._store, self._is_own = store, is_own
        self._keys: dict[bytes, None] = {}  # oldest first
        self._most = _FEW
        self._is_kept = self._is_complete = False
        self._lock, self._scanning = threading.Lock(), threading.Lock()

    @property
    def n_to_look_at(self) -> int:
        """How many records the next `newest` and a look at all that it returns take."""
        return len(self._keys) if self._is_complete else self._store.gauges.n_records

    def add(self, storage_key: bytes) -> None:
        """Note a chunk of the tenant that is stored, or read."""
        if not self._is_kept:
            return
        with self._lock:
            self._keys[storage_key] = self._keys.pop(storage_key, None)
            if len(self._keys) > self._most:
                self._keys = {key: None for key in self._keys if self._store.meta(key) is not None}
                self._most = 2 * len(self._keys) + _FEW

    def newest(self) -> list[bytes]:
        """Return the keys, of some records too that are gone, or not the tenant's any more."""
        with self._scanning:
            if not self._is_complete:
                self._scan()
        with self._lock:
            return list(reversed(self._keys))

    def _scan(self) -> None:
        """Look at every record; what is stored meanwhile is noted already."""
        self._is_kept = True
        found = [stored.storage_key for stored in self._store.entries() if self._is_own(stored)]
        with self._lock:
            self._keys = dict.fromkeys([*reversed(found), *self._keys])
            self._most = 2 * len(self._keys) + _FEW
        self._is_complete = True
