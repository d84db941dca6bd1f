"""A tier whose bytes come when a test lets them."""

from __future__ import annotations

import threading

from kvstore.core.errors import DeadlineError
from kvstore.core.landing import PIECE_NBYTES, Landing
from kvstore.server.service import StoreService
from kvstore.store.epochs import Epochs
from kvstore.store.memory import MemoryTier
from kvstore.store.results import StoreSettings
from kvstore.store.tier import TierInfo
from kvstore.store.tiered import TieredStore
from tests.server.chunks import MASTER_SECRET

PATIENCE_S = 20.0  # longer than any test waits


class Gate:
    """Lets the first bytes of every record through, as many as were released."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._nbytes = 0
        self.n_ended = 0  # landings that receive no more

    def release(self, nbytes: int) -> None:
        """Let the first `nbytes` of each record come."""
        with self._changed:
            self._nbytes = max(self._nbytes, nbytes)
            self._changed.notify_all()

    def open(self) -> None:
        """Let everything come from now on."""
        self.release(1 << 62)

    def wait(self, behind: int) -> int:
        """Wait until more than `behind` bytes may come and return how many; raises DeadlineError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._nbytes > behind, PATIENCE_S):
                raise DeadlineError("nobody released the bytes")
            return self._nbytes


class GatedLanding(Landing):
    """A record behind a gate."""

    def __init__(self, record: memoryview, gate: Gate) -> None:
        super().__init__(memoryview(bytearray(record.nbytes)))
        self._record, self._gate = record, gate

    def _receive(self, room: memoryview) -> int:
        end = min(self._gate.wait(self.filled), self.nbytes, self.filled + PIECE_NBYTES)
        room[: end - self.filled] = self._record[self.filled : end]
        return end - self.filled

    def _end(self) -> None:
        self._gate.n_ended += 1


class SlowTier(MemoryTier):
    """Keeps records in memory and hands them out through a gate, as a disk or a network would: not at once and not in place."""

    def __init__(self, capacity_bytes: int = 64 << 20) -> None:
        super().__init__(capacity_bytes, is_shared=True)
        self.gate = Gate()

    @property
    def info(self) -> TierInfo:
        return TierInfo("slow", super().info.capacity_bytes)

    def get(self, key: bytes) -> Landing | None:  # type: ignore[override]
        """Return a landing of the record, which fills as the gate allows."""
        found = super().get(key)
        return GatedLanding(found.view, self.gate) if found else None


def make_slow_service() -> tuple[StoreService, Gate]:
    """Return a service over one slow tier, and its gate."""
    tier = SlowTier()
    store = TieredStore([tier], StoreSettings(remote_timeout_s=0.2))
    return StoreService(store, Epochs(), MASTER_SECRET, 32 << 20, tier.shared), tier.gate
