"""A tier that fails on demand."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from kvstore.core.blob import Buffer
from kvstore.core.errors import KVError
from kvstore.store.tier import Listed, Tier, TierInfo, WrappedTier


class FaultyTier(WrappedTier):
    """Raises `error` from every call while it is set, and counts the calls; `gate` holds calls back while it is cleared."""

    def __init__(self, tier: Tier, info: TierInfo | None = None) -> None:
        super().__init__(tier)
        self._told_info = info
        self.error: KVError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.calls = 0

    @property
    def info(self) -> TierInfo:
        return self._told_info or self._tier.info

    @property
    def used_bytes(self) -> int:
        self._fault()
        return self._tier.used_bytes

    def get(self, key: bytes) -> memoryview | None:
        self._fault()
        return self._tier.get(key)

    def put(self, key: bytes, pieces: Sequence[Buffer]) -> None:
        self._fault()
        self._tier.put(key, pieces)

    def delete(self, key: bytes) -> bool:
        self._fault()
        return self._tier.delete(key)

    def find(self, keys: Sequence[bytes]) -> list[int | None]:
        self._fault()
        return self._tier.find(keys)

    def scan(self) -> Iterator[Listed]:
        self._fault()
        return self._tier.scan()

    def _fault(self) -> None:
        self.calls += 1
        self.gate.wait()
        if self.error is not None:
            raise self.error


def remote(tier: Tier, name: str = "remote") -> FaultyTier:
    """Return a tier that says it is remote and evicts by itself."""
    return FaultyTier(tier, TierInfo(name, 0, is_remote=True))
