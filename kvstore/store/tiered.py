"""The tiered store: records in tiers from fast to slow, verified on every read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from kvstore.core.api import Status, TierStats
from kvstore.core.blob import Buffer, verify_blob
from kvstore.core.errors import KVError
from kvstore.store.counters import Counters
from kvstore.store.record import Record, RecordMeta, check_describes, from_tier, parse_record, record_pieces
from kvstore.store.results import Found, Miss, Stored, StoredEntry, StoreSettings
from kvstore.store.tier import Tier


class TieredStore:
    """Keeps records under storage keys in tiers from fast to slow. Thread-safe."""

    def __init__(self, tiers: Sequence[Tier], settings: StoreSettings | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings or StoreSettings()
        self.counters = Counters()
        self._tiers = list(tiers)
        self._clock = clock

    def lookup(self, storage_keys: Sequence[bytes], lease_s: float = 0.0) -> list[Found]:
        """Return what is known about each key, in order; READY records are not evicted for `lease_s` seconds."""
        return [
            Found(Status.ABSENT, reason="never_stored") if nbytes is None else Found(Status.READY, self._tiers[0].info.name, nbytes)
            for nbytes in self._tiers[0].find(storage_keys)
        ]

    def get(self, storage_key: bytes, timeout_s: float | None = None) -> Record | Miss:
        """Return the verified record, or why there is none."""
        data = self._tiers[0].get(storage_key)
        if data is None:
            return Miss("never_stored")
        try:
            return from_tier(parse_record(storage_key, data), self._tiers[0].info.name)
        except KVError:
            self._tiers[0].quarantine(storage_key)
            self.counters.add("quarantined")
            return Miss("corrupt")

    def put(self, storage_key: bytes, meta: RecordMeta, blob: Buffer, durable: bool = False) -> Stored:
        """Verify the blob and publish it."""
        check_describes(meta, verify_blob(blob).manifest)
        tier = self._tiers[0]
        was_here = tier.find([storage_key])[0] is not None
        tier.put(storage_key, record_pieces(storage_key, meta, blob))
        return Stored(not was_here, tier.info.name, len(blob), is_durable=False)

    def delete(self, storage_key: bytes) -> bool:
        """Remove a record from every tier; return whether it was in one."""
        return any([tier.delete(storage_key) for tier in self._tiers])

    def entries(self) -> Iterator[StoredEntry]:
        """Iterate over the records, most recently used first."""
        for listed in self._tiers[0].scan():
            if listed.meta is not None:
                yield StoredEntry(listed.key, listed.meta, listed.nbytes, (self._tiers[0].info.name,))

    def tier_stats(self) -> tuple[TierStats, ...]:
        """Return the use of each tier, fastest first."""
        infos = [tier.info for tier in self._tiers]
        counts = [sum(1 for _ in tier.scan()) for tier in self._tiers]
        used = [tier.used_bytes for tier in self._tiers]
        return tuple(
            TierStats(i.name, u, i.capacity_bytes, c, is_available=True, is_durable=i.is_durable)
            for i, u, c in zip(infos, used, counts, strict=True)
        )

    def drain(self, timeout_s: float = 30.0) -> bool:
        """Write what waits for slower tiers; return whether all of it was written in time."""
        return True

    def close(self) -> None:
        """Drain and close every tier."""
        for tier in self._tiers:
            tier.close()
