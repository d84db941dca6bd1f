"""Why a chunk is a miss: every reason that a store or a worker gives, and what it means in a sentence."""

from __future__ import annotations

_MEANING = {
    "never_stored": "you did not store it since this store began to remember; chunks of other tenants are never served",
    "variant": "it is stored in another codec than the one asked for: the worker's codec was changed, or calibrated anew",
    "evicted": "it was stored and made room for chunks of more value",
    "epoch": "it was stored, and its tenant, model or source was invalidated since",
    "deleted": "it was deleted",
    "corrupt": "a stored copy failed its digest and was taken out of sight",
    "timeout": "a tier did not answer in time",
    "breaker": "a tier or store that may hold it did not answer before, and is not asked again for some seconds",
    "unavailable": "a tier or store that may hold it did not answer",
    # Told to operators only: a tenant must not learn what others stored.
    "tenant": "another tenant has it; tenants never share, so this one computes it for itself",
}
REASONS = tuple(_MEANING)


def meaning_of(reason: str) -> str:
    """Say in a sentence why a chunk was a miss; of a reason that is not known here, nothing."""
    return _MEANING.get(reason, "")
