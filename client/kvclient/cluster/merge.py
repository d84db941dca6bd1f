"""One answer made of those of several stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest

from kvstore.core.api import Entry, Explanation, Hit, Status, StoreStats, TierStats

_ORDER = (Status.READY, Status.PENDING, Status.ABSENT)
_SAYS_LITTLE = ("never_stored", "unavailable")


def better(first: Hit | None, second: Hit) -> Hit:
    """Return what is known about a chunk from two stores: that it is there, or else the reason that says more."""
    if first is None or _ORDER.index(second.status) < _ORDER.index(first.status):
        return second
    return second if first.status is second.status is Status.ABSENT and first.reason in _SAYS_LITTLE else first


def merged_entries(listings: Iterable[Sequence[Entry]]) -> list[Entry]:
    """Return each chunk once with all its tiers; the order within each listing stays, and listings take turns."""
    merged: dict[object, Entry] = {}
    for row in zip_longest(*listings):
        for entry in (entry for entry in row if entry is not None):
            known = merged.get(entry.key)
            tiers = tuple(dict.fromkeys((*known.tiers, *entry.tiers))) if known else entry.tiers
            merged[entry.key] = replace(known or entry, tiers=tiers)
    return list(merged.values())


def merged_stats(all_stats: Sequence[StoreStats]) -> StoreStats:
    """Return the sums of counters and of tiers with the same name; a tier is available and durable where all of them are."""
    counters: Counter[str] = Counter()
    tiers: dict[str, TierStats] = {}
    for stats in all_stats:
        counters.update(stats.counters)
        for tier in stats.tiers:
            tiers[tier.name] = _sum(tiers[tier.name], tier) if tier.name in tiers else tier
    return StoreStats(dict(counters), tuple(tiers.values()))


def _sum(a: TierStats, b: TierStats) -> TierStats:
    """Add up two stores' tiers of one name."""
    return TierStats(
        name=a.name,
        used_bytes=a.used_bytes + b.used_bytes,
        capacity_bytes=a.capacity_bytes + b.capacity_bytes,
        entries=a.entries + b.entries,
        is_available=a.is_available and b.is_available,
        is_durable=a.is_durable and b.is_durable,
    )


def merged_explanation(hit: Hit, said: Mapping[str, Explanation], away: Sequence[str]) -> Explanation:
    """Return what all stores say about a chunk, line by line behind the store's address, in the order in which they rank for it."""
    lines = [f"store {address}: {line}" for address, explanation in said.items() for line in explanation.lines]
    lines += [f"store {address}: does not answer, so what it holds is a miss" for address in away]
    tenant_epoch = max((each.tenant_epoch for each in said.values()), default=0)
    model_epoch = max((each.model_epoch for each in said.values()), default=0)
    return Explanation(hit, tenant_epoch, model_epoch, tuple(lines))
