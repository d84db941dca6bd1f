"""What a store tells of itself, read from what it counts anyway."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kvstore.core.api import TierStats
from kvstore.core.reasons import REASONS, meaning_of
from kvstore.server.observe import names
from kvstore.server.observe.families import Families, Metric, Names
from kvstore.server.observe.source import Panel
from kvstore.server.observe.strays import TENANT, Strays
from kvstore.server.observe.tally import GET, HIT, LOOKUP, PENDING, MissNote
from kvstore.server.service import BoundStore, StoreService

_SHOWN_MISSES = 50
_LANES = ("shm", "tcp", "grpc")
_FLOWS = (("read", "read_bytes", "read_s"), ("written", "written_bytes", "write_s"))


class StoreSource:
    """Implements `Source` for a store; tenants beyond `most_tenants` are counted together as "other"."""

    name = "store"

    def __init__(self, service: StoreService, most_tenants: int) -> None:
        self._service, self._strays = service, Strays(service)
        self._tenants = Names(most_tenants)

    def metrics(self, out: Families) -> None:
        """Add tiers, tenants, lanes and what the store did by itself."""
        counts, gauges = self._service.store.counters.snapshot(), self._service.store.gauges
        self._add_tenants(out)
        for tier in self._service.store.tier_stats():
            _add_tier(out, tier, counts)
            out.add(names.QUEUE, gauges.waiting_bytes[tier.name], tier.name)
            out.add(names.TIER_RESTING, gauges.resting[tier.name], tier.name)
        for lane in _LANES:
            for direction in ("sent", "received"):
                out.add(names.LANE_BYTES, counts.get(f"lane.{lane}.{direction}_bytes", 0), lane, direction)
        out.add(names.LEASES, gauges.n_leased)
        out.add(names.QUEUE_LIMIT, self._service.store.settings.write_queue_bytes)
        for metric, counter, *labels in _PLAIN:
            out.add(metric, counts.get(counter, 0), *labels)

    def panel(self) -> Panel:
        """Return tiers, outcomes, tenants and the latest misses with their reasons."""
        counts, gauges = self._service.store.counters.snapshot(), self._service.store.gauges
        found = Families()
        self._add_tenants(found)
        return {
            "tiers": [_tier_row(tier, counts, gauges.waiting_bytes, gauges.resting) for tier in self._service.store.tier_stats()],
            "outcomes": _outcomes(found),
            "meanings": {reason: meaning_of(reason) for reason in REASONS},
            "tenants": self._tenant_rows(found),
            "misses": self._miss_rows(),
            "counters": {metric.name: counts.get(counter, 0) for metric, counter, *labels in _PLAIN if not labels},
            "lanes": {lane: counts.get(f"lane.{lane}.sent_bytes", 0) for lane in _LANES},
        }

    def sums(self) -> Mapping[str, float]:
        """Return hits, misses and bytes of all tenants."""
        tallies = [store.tally.counters.snapshot() for store in self._service.tenants()]
        asked = [(name, count) for tally in tallies for name, count in tally.items() if name.startswith((LOOKUP, GET))]
        return {
            "hits": sum(count for name, count in asked if name.endswith(f".{HIT}")),
            "misses": sum(count for name, count in asked if not name.endswith((f".{HIT}", f".{PENDING}", f".{TENANT}"))),
            "out_bytes": sum(tally.get("out_bytes", 0) for tally in tallies),
            "in_bytes": sum(tally.get("in_bytes", 0) for tally in tallies),
        }

    def _add_tenants(self, out: Families) -> None:
        """Add what each tenant asked for and moved."""
        self._strays.sort()
        for store in self._service.tenants():
            tenant, counts = self._tenants.label(store.tenant), store.tally.counters.snapshot()
            for call in (LOOKUP, GET):
                for outcome, count in _by_outcome(counts, call).items():
                    out.add(names.ASKED, count, call, tenant, outcome)
            for direction in ("in", "out"):
                out.add(names.TENANT_BYTES, counts.get(f"{direction}_bytes", 0), tenant, direction)

    def _tenant_rows(self, found: Families) -> list[dict[str, Any]]:
        """Return one row per tenant, busiest first."""
        rows: dict[str, dict[str, Any]] = {}
        for (_, tenant, outcome), count in found.values(names.ASKED).items():
            row = rows.setdefault(tenant, _new_row(tenant))
            if outcome != PENDING:
                row["hits" if outcome == HIT else "misses"] += count
        for (tenant, direction), count in found.values(names.TENANT_BYTES).items():
            rows.setdefault(tenant, _new_row(tenant))[f"{direction}_bytes"] += count
        return sorted(rows.values(), key=lambda row: -(row["hits"] + row["misses"]))

    def _miss_rows(self) -> list[dict[str, Any]]:
        """Return the latest misses of all tenants, newest first."""
        found = [(note, store) for store in self._service.tenants() for note in list(store.tally.misses)]
        newest = sorted(found, key=lambda each: -each[0].at_s)[:_SHOWN_MISSES]
        return [self._miss_row(store, note, self._strays.reason(store, note)) for note, store in newest]

    def _miss_row(self, store: BoundStore, note: MissNote, reason: str) -> dict[str, Any]:
        known = {"at_s": note.at_s, "request": note.request_id, "call": note.call, "chunk": note.key.content.hex()}
        return {**known, "tenant": self._tenants.label(store.tenant), "reason": reason, "meaning": meaning_of(reason)}


_PLAIN: tuple[tuple[Any, ...], ...] = (
    (names.PUTS, "puts", "stored"),
    (names.PUTS, "put_duplicates", "duplicate"),
    (names.QUARANTINED, "quarantined"),
    (names.DELETED, "deleted"),
    (names.PROMOTED, "promoted"),
    (names.WRITTEN_BEHIND, "write_behind", "written"),
    (names.WRITTEN_BEHIND, "write_behind_dropped", "dropped"),
    (names.WRITTEN_BEHIND, "write_behind_failed", "failed"),
)


def _by_outcome(counts: Mapping[str, float], call: str) -> dict[str, float]:
    """Return how often a call found what; strays are taken out of the misses that were never stored."""
    found = {name.removeprefix(f"{call}."): count for name, count in counts.items() if name.startswith(f"{call}.")}
    strays = found.pop(TENANT, 0)
    if strays:
        found |= {TENANT: strays, "never_stored": max(0.0, found.get("never_stored", 0) - strays)}
    return found


def _outcomes(found: Families) -> dict[str, float]:
    """Return how often what was found, over all tenants and calls."""
    sums: dict[str, float] = {}
    for (_, _, outcome), count in found.values(names.ASKED).items():
        sums[outcome] = sums.get(outcome, 0) + count
    return sums


def _new_row(tenant: str) -> dict[str, Any]:
    return {"tenant": tenant, "hits": 0, "misses": 0, "in_bytes": 0, "out_bytes": 0}


def _add_tier(out: Families, tier: TierStats, counts: Mapping[str, float]) -> None:
    """Add one tier."""
    for outcome, counter in (("hit", "hits"), ("miss", "misses")):
        out.add(names.TIER_READS, counts.get(f"tier.{tier.name}.{counter}", 0), tier.name, outcome)
    for direction, moved, took in _FLOWS:
        out.add(names.TIER_BYTES, counts.get(f"tier.{tier.name}.{moved}", 0), tier.name, direction)
        out.add(names.TIER_SECONDS, counts.get(f"tier.{tier.name}.{took}", 0), tier.name, direction)
    out.add(names.TIER_ERRORS, counts.get(f"tier.{tier.name}.errors", 0), tier.name)
    out.add(names.TIER_EVICTED, counts.get(f"evicted.{tier.name}", 0), tier.name)
    for metric, value in _tier_gauges(tier):
        out.add(metric, value, tier.name)


def _tier_gauges(tier: TierStats) -> Iterator[tuple[Metric, float]]:
    yield names.TIER_USED, tier.used_bytes
    yield names.TIER_CAPACITY, tier.capacity_bytes
    yield names.TIER_CHUNKS, tier.entries
    yield names.TIER_UP, int(tier.is_available)


def _tier_row(tier: TierStats, counts: Mapping[str, float], waiting: Mapping[str, int], resting: Mapping[str, int]) -> dict[str, Any]:
    """Return one tier as the console shows it."""
    moved = {name: counts.get(f"tier.{tier.name}.{name}", 0) for name in ("hits", "misses", "errors")}
    held = {"queue_bytes": waiting[tier.name], "breakers_open": resting[tier.name], "evicted": counts.get(f"evicted.{tier.name}", 0)}
    return {**vars(tier), **moved, **held}
