"""Where records go: pure functions over what the tiers are. Positions count tiers from the fastest, 0."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kvstore.core.errors import CapacityError, UnsupportedError
from kvstore.store.tier import TierInfo


@dataclass(frozen=True)
class Placement:
    """Where a put goes.

    `must` is the tier whose write is awaited and whose failure fails the put; None when none is needed. `may` are the tiers that are tried
    in order until one took the record, if no tier has it yet: remote ones last, which are better than to refuse it. `later` are written
    behind.
    """

    must: int | None
    may: tuple[int, ...]
    later: tuple[int, ...]


def fits(tier: TierInfo, nbytes: int) -> bool:
    """Tell whether an empty tier could take a record of `nbytes`."""
    return tier.capacity_bytes == 0 or nbytes <= tier.capacity_bytes


def place_put(tiers: Sequence[TierInfo], nbytes: int, held: Collection[int] = (), durable: bool = False) -> Placement:
    """Decide where a record of `nbytes` goes that the tiers at `held` have already.

    Raises UnsupportedError when it has to be durable and no tier is, CapacityError when no tier could ever take it.
    """
    fitting = [position for position, tier in enumerate(tiers) if fits(tier, nbytes)]
    local = [position for position in fitting if not tiers[position].is_remote]
    must = None
    if durable and not any(tiers[position].is_durable for position in held):
        must = next((position for position in fitting if tiers[position].is_durable), None)
        if must is None and not any(tier.is_durable for tier in tiers):
            raise UnsupportedError("no tier survives a crash; add a disk tier with fsync = always, or put without durable")
    if not local or (durable and must is None and not held):
        most = max((tier.capacity_bytes for tier in tiers if not tier.is_remote), default=0)
        raise CapacityError(f"a record of {nbytes} B fits into no tier that can take it; the largest has {most} B; raise its capacity")
    if held:
        return Placement(must, (), ())
    last = [] if must is not None else [position for position in fitting if tiers[position].is_remote]
    return Placement(must, (*local, *last), tuple(position for position in fitting if position != must))


def place_promotion(tiers: Sequence[TierInfo], nbytes: int, found_at: int) -> int | None:
    """Return the fastest tier above `found_at` that could take a record of `nbytes`, or None."""
    return next((position for position in range(found_at) if fits(tiers[position], nbytes) and not tiers[position].is_remote), None)


def search_order(tiers: Sequence[TierInfo], held: Collection[int]) -> list[int]:
    """Return where to look, fastest first: local tiers that are known to hold the record, and every remote tier."""
    return [position for position, tier in enumerate(tiers) if position in held or tier.is_remote]


def explain_miss(seen: Sequence[str], remembered: str) -> str:
    """Return the one reason for a miss: what went wrong on the way outweighs what is remembered of the key."""
    return next((reason for reason in ("corrupt", "timeout", "breaker", "unavailable", "evicted") if reason in seen), remembered)
