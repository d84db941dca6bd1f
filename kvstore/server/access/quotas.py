"""What one tenant may use at most, so that it can't use up what others need."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kvstore.core.errors import QuotaError
from kvstore.core.units import format_nbytes
from kvstore.server.config import QuotaConfig
from kvstore.store.index import EVICTED
from kvstore.store.results import StoredEntry
from kvstore.store.tiered import TieredStore

LOOKS_PER_REQUEST = 256
_TRANSFER_RETRY_S = 0.05  # about as long as a transfer takes


class Allowance:
    """One tenant's share. Nobody waits in here: what goes beyond it is refused, with when to come again. Thread-safe.

    Requests come out of a bucket that fills with time: one is let in while there is any in it, and takes out what it costs, so that a large
    one is let in too and is paid for by a longer pause behind it.

    Parameters
    ----------
    quotas : QuotaConfig
        The limits; 0 is none.
    clock : callable
        Monotonic seconds.
    """

    def __init__(self, tenant: str, quotas: QuotaConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._tenant, self._quotas, self._clock = tenant, quotas, clock
        self._lock = threading.Lock()
        self._most = quotas.burst or max(1.0, quotas.requests_per_s)
        self._left = self._most
        self._filled_at = clock()
        self._n_calls = self._n_transfers = self._inflight_bytes = 0

    def request(self, count: int = 1) -> None:
        """Count requests; raises QuotaError when the tenant has used up what it may ask for by now."""
        rate = self._quotas.requests_per_s
        if not rate:
            return
        with self._lock:
            now = self._clock()
            self._left = min(self._most, self._left + (now - self._filled_at) * rate)
            self._filled_at = now
            short = 1.0 - self._left
            if short <= 0:
                self._left -= count
                return
        raise QuotaError(f"tenant {self._tenant} may make {rate:g} requests a second; come again in {short / rate:.3f} s", short / rate)

    def looks(self, n_keys: int) -> None:
        """Count a call that looks at chunks and moves none: a request for every 256 of them; raises QuotaError as `request` does."""
        self.request(1 + max(0, n_keys - 1) // LOOKS_PER_REQUEST)

    def begin_call(self) -> None:
        """Count a call until `end_call`; raises QuotaError when the tenant has too many of them under way."""
        with self._lock:
            if 0 < self._quotas.calls <= self._n_calls:
                raise QuotaError(f"tenant {self._tenant} may make {self._quotas.calls} calls at once; end one first", _TRANSFER_RETRY_S)
            self._n_calls += 1

    def end_call(self) -> None:
        """Count a call no longer."""
        with self._lock:
            self._n_calls -= 1

    @contextmanager
    def transfer(self, nbytes: int) -> Iterator[None]:
        """Count a transfer within the block; raises QuotaError when the tenant has too many of them under way, or too many bytes."""
        with self._lock:
            quotas, bytes_then = self._quotas, self._inflight_bytes + nbytes
            is_over = 0 < quotas.transfers <= self._n_transfers or (0 < quotas.inflight < bytes_then and self._n_transfers > 0)
            if not is_over:
                self._n_transfers, self._inflight_bytes = self._n_transfers + 1, bytes_then
        if is_over:
            most = f"transfers = {quotas.transfers}, inflight = {format_nbytes(quotas.inflight)}"
            raise QuotaError(f"tenant {self._tenant} has as much under way as it may ({most}); end one first", _TRANSFER_RETRY_S)
        try:
            yield
        finally:
            with self._lock:
                self._n_transfers, self._inflight_bytes = self._n_transfers - 1, self._inflight_bytes - nbytes


class Holdings:
    """What one tenant has stored, oldest first, so that it makes room for its own new chunks where it has reached its quota.

    Thread-safe. Nothing is counted where there is no quota. What the store evicted by itself is noticed when room is needed.

    Parameters
    ----------
    most_bytes : int
        Bytes of chunks; 0 for no limit.
    is_own : callable
        Tells the tenant's chunks among those that the store holds already.
    """

    def __init__(self, tenant: str, store: TieredStore, most_bytes: int, is_own: Callable[[StoredEntry], bool]) -> None:
        self._tenant, self._store, self._most_bytes = tenant, store, most_bytes
        self._lock = threading.Lock()
        self._sizes: dict[bytes, int] = {}
        self._used_bytes = 0
        self._seen = 0.0
        for stored in reversed(list(store.entries())) if most_bytes else ():
            if is_own(stored):
                self.add(stored.storage_key, stored.nbytes)

    @property
    def used_bytes(self) -> int:
        """Bytes that were stored and, as far as was noticed, are still there."""
        return self._used_bytes

    def add(self, storage_key: bytes, nbytes: int) -> None:
        """Note a chunk that was stored."""
        if self._most_bytes:
            with self._lock:
                self._used_bytes += nbytes - self._sizes.pop(storage_key, 0)
                self._sizes[storage_key] = nbytes

    def make_room(self, nbytes: int) -> None:
        """Evict the tenant's oldest chunks until `nbytes` more are within its quota; raises QuotaError when they never are."""
        if not self._most_bytes:
            return
        if nbytes > self._most_bytes:
            most = format_nbytes(self._most_bytes)
            raise QuotaError(f"a chunk of {nbytes} B; tenant {self._tenant} may store {most} in all: raise quotas.stored", 0.0)
        with self._lock:
            if self._used_bytes + nbytes > self._most_bytes:
                self._forget_gone()
            while self._used_bytes + nbytes > self._most_bytes:
                oldest = next(iter(self._sizes))
                self._store.delete(oldest, EVICTED)
                self._used_bytes -= self._sizes.pop(oldest)
            self._seen = self._removed()

    def _forget_gone(self) -> None:
        """Stop counting what the store does not hold any more."""
        if self._seen != self._removed():
            for key in [key for key in self._sizes if self._store.meta(key) is None]:
                self._used_bytes -= self._sizes.pop(key)

    def _removed(self) -> float:
        counters = self._store.counters
        return counters["evicted"] + counters["deleted"] + counters["quarantined"]
