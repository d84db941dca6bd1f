"""What a tiered store holds at one moment, beside what it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvstore.store.index import Index
from kvstore.store.tier import Tier
from kvstore.store.write_queue import WriteQueue


class Gauges:
    """Reads queues, leases and breakers; asks no tier anything."""

    def __init__(self, index: Index, tiers: Sequence[Tier], queues: Sequence[WriteQueue]) -> None:
        self._index = index
        self._tiers = {tier.info.name: tier for tier in tiers}
        self._queues = dict(zip(self._tiers, queues, strict=True))

    @property
    def n_records(self) -> int:
        """Records that a local tier holds."""
        return len(self._index)

    @property
    def n_leased(self) -> int:
        """Records that are not evicted since somebody looked them up."""
        return len(self._index.leased())

    @property
    def waiting_bytes(self) -> Mapping[str, int]:
        """Bytes that wait to be written to each tier."""
        return {name: queue.waiting_bytes for name, queue in self._queues.items()}

    @property
    def resting(self) -> Mapping[str, int]:
        """How many servers behind each tier are not asked since they did not answer."""
        return {name: tier.n_resting for name, tier in self._tiers.items()}
