"""What the store knows without asking a tier: which local tier holds what, who writes, what is leased, and why a key is gone."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from kvstore.store.record import RecordMeta

EVICTED, CORRUPT, DELETED, NEVER_STORED = "evicted", "corrupt", "deleted", "never_stored"


@dataclass
class Slot:
    """One record: its meta, the bytes of its blob and of the whole record, the tiers that hold it, and those it still has to reach."""

    meta: RecordMeta
    blob_nbytes: int
    nbytes: int
    tiers: set[int] = field(default_factory=set)
    owed: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Glimpse:
    """A copy of what the index knew about a key at one moment; `meta` is None for a key it does not hold."""

    meta: RecordMeta | None
    blob_nbytes: int = 0
    tiers: tuple[int, ...] = ()
    is_being_written: bool = False
    reason: str = ""


class Index:
    """One lock, held for dictionary work only. Slots are ordered by use.

    A slot exists while a *local* tier holds the record, so the local capacities bound the index; a remote tier is noted beside them.
    """

    def __init__(self, local: frozenset[int], remembered_misses: int, clock: Callable[[], float]) -> None:
        self._local = local
        self._remembered_misses = remembered_misses
        self._clock = clock
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._slots: OrderedDict[bytes, Slot] = OrderedDict()  # least recently used first
        self._writing: set[bytes] = set()
        self._gone: OrderedDict[bytes, str] = OrderedDict()
        self._leases: dict[bytes, float] = {}

    @contextmanager
    def writing(self, key: bytes) -> Iterator[None]:
        """Be the only writer of a key; waits for the one before."""
        with self._lock:
            self._changed.wait_for(lambda: key not in self._writing)
            self._writing.add(key)
        try:
            yield
        finally:
            with self._lock:
                self._writing.discard(key)
                self._changed.notify_all()

    def look(self, key: bytes, lease_s: float = 0.0) -> Glimpse:
        """Return what is known; a record that is here is leased in the same moment."""
        with self._lock:
            slot = self._slots.get(key)
            if slot is None:
                return Glimpse(None, is_being_written=key in self._writing, reason=self._gone.get(key, NEVER_STORED))
            if lease_s > 0:
                self._leases[key] = max(self._leases.get(key, 0.0), self._clock() + lease_s)
            return Glimpse(slot.meta, slot.blob_nbytes, tuple(sorted(slot.tiers)), key in self._writing)

    def use(self, key: bytes, position: int) -> Slot | None:
        """Note a read of a record that the tier at `position` holds and return its slot; None when it doesn't."""
        with self._lock:
            slot = self._slots.get(key)
            if slot is None or position not in slot.tiers:
                return None
            self._slots.move_to_end(key)
            return slot

    def touch(self, key: bytes) -> None:
        """Note a read."""
        with self._lock:
            if key in self._slots:
                self._slots.move_to_end(key)

    def admit(self, key: bytes) -> None:
        """Forget that a key was deleted, since it is put again."""
        with self._lock:
            self._gone.pop(key, None)

    def add(self, key: bytes, slot: Slot, position: int) -> bool:
        """Note that a tier holds the record that `slot` describes; False when it was deleted meanwhile and has to be taken back."""
        with self._lock:
            if self._gone.get(key) == DELETED:
                return False
            if position in self._local:
                self._slots.setdefault(key, slot)
                self._gone.pop(key, None)
            if key in self._slots:
                self._slots[key].tiers.add(position)
                self._slots[key].owed.discard(position)
            return True

    def owe(self, key: bytes, position: int) -> None:
        """Note that the record should still reach a tier, if that is a local one."""
        with self._lock:
            if key in self._slots and position in self._local:
                self._slots[key].owed.add(position)

    def owed(self) -> list[tuple[bytes, int]]:
        """Return the records that should still reach a tier."""
        with self._lock:
            return [(key, position) for key, slot in self._slots.items() for position in sorted(slot.owed)]

    def drop(self, key: bytes, position: int, reason: str) -> None:
        """Note that a tier no longer holds the record."""
        with self._lock:
            self._drop(key, position, reason)

    def evict(self, key: bytes, position: int) -> bool:
        """Note that a tier is about to drop the record; False, and nothing noted, when it is leased."""
        with self._lock:
            if self._is_leased(key):
                return False
            self._drop(key, position, EVICTED)
            return True

    def delete(self, key: bytes, reason: str) -> bool:
        """Forget a record and remember why; return whether it was known."""
        with self._lock:
            known = self._slots.pop(key, None) is not None
            self._leases.pop(key, None)
            self._remember(key, reason)
            return known

    def leased(self) -> set[bytes]:
        """Return the keys whose lease has not ended."""
        with self._lock:
            now = self._clock()
            self._leases = {key: until for key, until in self._leases.items() if until > now}
            return set(self._leases)

    def slot(self, key: bytes) -> Slot | None:
        """Return the slot of a key; the caller reads its meta and sizes, which do not change."""
        with self._lock:
            return self._slots.get(key)

    def keys(self) -> list[bytes]:
        """Return every key, most recently used first."""
        with self._lock:
            return list(reversed(self._slots))

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._slots)

    def count(self) -> Counter[int]:
        """Return the number of records per tier."""
        with self._lock:
            return Counter(position for slot in self._slots.values() for position in slot.tiers)

    def _is_leased(self, key: bytes) -> bool:
        return self._leases.get(key, 0.0) > self._clock()

    def _drop(self, key: bytes, position: int, reason: str) -> None:
        slot = self._slots.get(key)
        if slot is None:
            return
        slot.tiers.discard(position)
        if not slot.tiers & self._local:
            del self._slots[key]
            self._leases.pop(key, None)
            self._remember(key, reason)

    def _remember(self, key: bytes, reason: str) -> None:
        self._gone[key] = reason
        self._gone.move_to_end(key)
        while len(self._gone) > self._remembered_misses:
            self._gone.popitem(last=False)
