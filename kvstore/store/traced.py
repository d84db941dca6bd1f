"""A span around every call of a tier across a network, where it is part of a trace."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.core import tracing
from kvstore.core.blob import Buffer
from kvstore.core.landing import Landing
from kvstore.store.tier import Tier, WrappedTier


class TracedTier(WrappedTier):
    """Names spans `larder.<tier>.<call>`; that of a get ends when the first bytes are here, since a landing is read by somebody else.

    Calls that serve no trace, such as writing behind and chunks asked for over shm or tcp, begin none.
    """

    def __init__(self, tier: Tier) -> None:
        super().__init__(tier)
        self._prefix = f"larder.{tier.info.name}."

    def get(self, key: bytes) -> Landing | None:
        with tracing.inner(self._prefix + "get"):
            return self._tier.get(key)

    def put(self, key: bytes, pieces: Sequence[Buffer]) -> None:
        with tracing.inner(self._prefix + "put"):
            self._tier.put(key, pieces)

    def delete(self, key: bytes) -> bool:
        with tracing.inner(self._prefix + "delete"):
            return self._tier.delete(key)

    def find(self, keys: Sequence[bytes]) -> list[int | None]:
        with tracing.inner(self._prefix + "find", {"larder.keys": len(keys)}):
            return self._tier.find(keys)
