"""A tier that fails on demand."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from kvstore.core.blob import Buffer
from kvstore.core.errors import KVError
from kvstore.core.landing import PIECE_NBYTES, Landing
from kvstore.store.tier import Listed, Room, Tier, TierInfo, WrappedTier


class FaultyTier(WrappedTier):
    """Raises `error` from every call while it is set, and counts the calls; `gate` holds calls back while it is cleared.

    What a get lands comes in pieces of `PIECE_NBYTES`, and each receive is such a call too, counted in `receives`.
    """

    def __init__(self, tier: Tier, info: TierInfo | None = None) -> None:
        super().__init__(tier)
        self._told_info = info
        self.error: KVError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.calls = 0
        self.receives = 0
        self.closed = 0

    @property
    def info(self) -> TierInfo:
        return self._told_info or self._tier.info

    @property
    def used_bytes(self) -> int:
        self._fault()
        return self._tier.used_bytes

    def get(self, key: bytes) -> Landing | None:
        self._fault()
        landing = self._tier.get(key)
        return None if landing is None else _Slow(self, landing)

    def put(self, key: bytes, pieces: Sequence[Buffer]) -> None:
        self._fault()
        self._tier.put(key, pieces)

    def reserve(self, nbytes: int) -> Room:
        self._fault()
        return self._tier.reserve(nbytes)

    def publish(self, key: bytes, room: Room) -> None:
        self._fault()
        self._tier.publish(key, room)

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
        self.pass_on()

    def pass_on(self) -> None:
        """Wait for the gate and raise the error."""
        self.gate.wait()
        if self.error is not None:
            raise self.error


class _Slow(Landing):
    """Receives what another landing has, or receives, as if it came over a network."""

    def __init__(self, tier: FaultyTier, whole: Landing) -> None:
        super().__init__(memoryview(bytearray(whole.nbytes)))
        self._faulty, self._whole = tier, whole

    def _receive(self, room: memoryview) -> int:
        self._faulty.receives += 1
        self._faulty.pass_on()
        count = min(PIECE_NBYTES, room.nbytes)
        self._whole.fill(self.filled + count)
        room[:count] = self._whole.view[self.filled : self.filled + count]
        return count

    def _end(self) -> None:
        self._faulty.closed += 1
        self._whole.close()


def remote(tier: Tier, name: str = "remote") -> FaultyTier:
    """Return a tier that says it is remote and evicts by itself."""
    return FaultyTier(tier, TierInfo(name, 0, is_remote=True))
