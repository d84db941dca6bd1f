"""Reads records to their end, for tests that are about what comes back and not about how."""

from __future__ import annotations

from kvstore.store.tier import Tier


def read_whole(tier: Tier, key: bytes) -> bytes | None:
    """Return every byte of a record, or None when it is not there."""
    landing = tier.get(key)
    if landing is None:
        return None
    landing.fill(landing.nbytes)
    return bytes(landing.view)
