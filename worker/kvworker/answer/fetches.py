"""Where the chunks of one request come from: device memory, else lanes to the store."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.core.api import StoreAPI
from kvstore.planners.plan import Offer
from kvworker.answer.device_tier import DeviceTier
from kvworker.answer.load import DeviceSource, Lane, Loader, StoredSource
from kvworker.answer.prompt import DEVICE, Asked


class RequestFetches:
    """Implements `kvworker.answer.execute.Fetches` for the passages of one request."""

    def __init__(self, tenant: str, store: StoreAPI, asked: Sequence[Asked], loader: Loader, device_tier: DeviceTier) -> None:
        self._tenant, self._store, self._asked, self._loader, self._device_tier = tenant, store, asked, loader, device_tier
        self._lanes: dict[int, Lane] = {}

    def open(self, chunk: int, offer: Offer) -> DeviceSource | StoredSource:
        """Return the source of a passage in the offered form; a device copy that has just left falls back to the store."""
        stored = self._asked[chunk].form(offer)
        kv = self._device_tier.get((self._tenant, stored.hit.key)) if offer.tier == DEVICE else None
        if kv is not None:
            return DeviceSource(kv)
        return self._loader.hold(self._tenant, stored.hit.key, len(stored.reading.passage.token_ids))

    def start(self, lane: int, sources: Sequence[StoredSource]) -> None:
        """Have chunks fetched over a lane, behind those started before."""
        if lane not in self._lanes:
            self._lanes[lane] = self._loader.lane(self._store)
        self._lanes[lane].add(sources)

    def release(self, source: StoredSource) -> None:
        """Say that a source is not waited for any more."""
        self._loader.release(self._tenant, source)
