"""Read a chunk now and then from tiers that plans pass over: what is never read is never seen to have become fast."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from functools import partial

from kvstore.core.api import Hit, Status, StoreAPI
from kvstore.planners.samples import ReadSample
from kvworker.answer.costs import CostBook
from kvworker.answer.course import Course
from kvworker.answer.load import Loader, StoredSource

_EVERY = 16  # answers in a row that leave a tier unread
_SURPRISE = 1.5  # by what factor a read has to miss its prediction for the next answer to probe again


class TierProbes:
    """Counts the answers that leave a tier unread, and times one chunk of it behind the first and every sixteenth. Thread-safe.

    As long as reads take something else than predicted, every answer is followed by one. A plan takes nothing from a tier that the cost
    model calls hopeless or does not know, so nothing else would ever correct the model.
    """

    def __init__(self, loader: Loader, costs: CostBook) -> None:
        self._loader, self._costs = loader, costs
        self._lock = threading.Lock()
        self._n_unread: dict[str, int] = {}

    def after(self, tenant: str, store: StoreAPI, course: Course) -> None:
        """Look at what an answer read and could have read; returns at once, probes run on the loader's threads."""
        if course.is_binding:
            return  # its planner does not go by costs
        read = {source.tier for source in course.sources.values() if isinstance(source, StoredSource)}
        offered: dict[str, tuple[Hit, int]] = {}
        for asked in course.asked:
            for stored in asked.stored:
                if stored.hit.status is Status.READY:
                    offered.setdefault(stored.hit.tier, (stored.hit, len(stored.reading.passage.token_ids)))
        for tier in self._due(read, offered):
            self._probe(tenant, store, *offered[tier])

    def _due(self, read: set[str], offered: Mapping[str, object]) -> list[str]:
        """Count, and return the tiers to probe now."""
        with self._lock:
            for tier in read:
                self._n_unread.pop(tier, None)
            unread = [tier for tier in offered if tier not in read]
            for tier in unread:
                self._n_unread[tier] = self._n_unread.get(tier, -1) + 1
            return [tier for tier in unread if self._n_unread[tier] % _EVERY == 0]

    def _probe(self, tenant: str, store: StoreAPI, hit: Hit, n_tokens: int) -> None:
        """Fetch a chunk for nobody."""
        source = self._loader.hold(tenant, hit.key, n_tokens)
        source.listen(partial(self._learn, tenant))
        self._loader.lane(store).add([source])

    def _learn(self, tenant: str, source: StoredSource) -> None:
        """Take the time of a probe that has come to its end."""
        if source.has_arrived:
            sample = ReadSample(source.tier, source.nbytes, source.seconds)
            known = self._costs.model.costs.get(sample.subject)
            missed = sample.seconds / max(known.predict(sample.features), 1e-9) if known else math.inf
            if not 1 / _SURPRISE <= missed <= _SURPRISE:
                with self._lock:
                    self._n_unread.pop(source.tier, None)
            self._costs.observe([sample])
        if source.has_arrived or source.failure:
            self._loader.release(tenant, source)
