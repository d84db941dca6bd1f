"""Reading from tiers: one after the other, within a deadline, and a damaged copy out of sight."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import TypeVar

from kvstore.core.api import Status, TierStats
from kvstore.core.errors import CorruptError, DeadlineError, EvictedError, FormatError, IdentityError, KVError, TierUnavailableError
from kvstore.core.landing import Landing
from kvstore.core.reading import land_all
from kvstore.store import decide
from kvstore.store.arriving import Arriving
from kvstore.store.breaker import RestingError
from kvstore.store.calls import BoundedCalls
from kvstore.store.counters import Counters
from kvstore.store.index import CORRUPT, DELETED, EVICTED, NEVER_STORED, Index, Slot
from kvstore.store.record import check_describes, land_head
from kvstore.store.results import Found, Miss, Opened, StoreSettings
from kvstore.store.shelf import Shelf
from kvstore.store.tier import TierInfo

T = TypeVar("T")
Promote = Callable[[bytes, memoryview, int], None]  # storage key, whole record, where it was found

DAMAGE = (CorruptError, FormatError, IdentityError)  # what a copy that is not what was stored raises

_log = logging.getLogger(__name__)


class Reads:
    """The reading half of a `TieredStore`; `promote` is told of every record that arrived whole from a tier that is not memory."""

    def __init__(self, shelves: Sequence[Shelf], index: Index, counters: Counters, settings: StoreSettings, promote: Promote) -> None:
        self._shelves, self._index, self._counters, self._settings, self._promote = shelves, index, counters, settings, promote
        self._infos: list[TierInfo] = [shelf.tier.info for shelf in shelves]
        self._calls = BoundedCalls(settings.remote_threads)
        self._arriving = Arriving()

    def search(self, key: bytes, deadline: float, seen: list[str]) -> Opened | Miss:
        """Ask the tiers in order; a slow one's record is copied up once it is whole."""
        known = self._index.look(key)
        if known.reason == DELETED:
            return Miss(DELETED)
        for position in decide.search_order(self._infos, known.tiers):
            opened = self.open(key, position, deadline, seen)
            if opened is not None:
                return opened
        return Miss(decide.explain_miss(seen, self._index.look(key).reason or NEVER_STORED))

    def open(self, key: bytes, position: int, deadline: float, seen: list[str]) -> Opened | None:
        """Begin to read from one tier and verify what describes the record; None adds to `seen` what went wrong."""
        try:
            landing = self._begin_read(key, position, deadline)
            if landing is not None:
                return self._describe(key, position, landing)
            self._index.drop(key, position, EVICTED)
        except DAMAGE as error:
            seen.append(EVICTED if isinstance(error, EvictedError) else CORRUPT)
            self.quarantine(key, position, error)
        except DeadlineError:
            seen.append("timeout")
        except TierUnavailableError as error:
            seen.append(_why_silent(error))
        return None

    def scrub(self, key: bytes) -> bool:
        """Verify every copy of a record and quarantine those that are damaged; tell whether one was."""
        held = self._index.look(key).tiers
        return sum(self._scrub_copy(key, position) for position in decide.search_order(self._infos, held)) > 0

    def _scrub_copy(self, key: bytes, position: int) -> bool:
        """Verify one copy by a read that is not shared; a tier that does not answer has no damage that we know of."""
        try:
            landing = self.call(position, partial(self._shelves[position].get, key), self.deadline(None))
            if landing is not None:
                with closing(landing):
                    opened = self._describe(key, position, landing)
                    check_describes(opened.meta, land_all(opened.landing).manifest)
        except DAMAGE as error:
            self.quarantine(key, position, error)
            return not isinstance(error, EvictedError)
        except (DeadlineError, TierUnavailableError) as error:
            _log.warning("tier %s could not be scrubbed: %s", self._infos[position].name, error)
        return False

    def open_memory(self, key: bytes, slot: Slot) -> Opened | None:
        """Open a record of the memory tier, which the index describes; None when it is not there, or not the one that is described."""
        landing = self._shelves[0].get(key)
        if landing is None or landing.nbytes != slot.nbytes:
            return None
        return Opened(key, slot.meta, landing.tail(slot.nbytes - slot.blob_nbytes), self._infos[0].name)

    def note(self, key: bytes, n_reads: int) -> int:
        """Count reads that were made in the memory tier without us; return their bytes, 0 of a record that is gone."""
        self._counters.add("hits", n_reads)
        slot = self._index.use(key, 0)
        if slot is None:
            return 0
        tier, nbytes = f"tier.{self._infos[0].name}.", n_reads * slot.nbytes
        self._counters.add_all(((tier + "hits", n_reads), (tier + "read_bytes", nbytes)))
        self._shelves[0].note_reads(key, n_reads)
        return nbytes

    def _begin_read(self, key: bytes, position: int, deadline: float) -> Landing | None:
        """Ask a tier for a record; from one that is not memory, many readers at a time share what arrives once."""
        if self._infos[position].is_verified:
            return self._shelves[position].get(key)
        ends = deadline if self._infos[position].is_remote else float("inf")
        return self._arriving.join((key, position), lambda: self.call(position, partial(self._receive, key, position), ends), ends)

    def _receive(self, key: bytes, position: int) -> Landing | None:
        """Begin to read from a tier that is not memory; what became whole is copied up."""
        landing = self._shelves[position].get(key)
        if landing is not None:
            landing.when_whole(partial(self._promote, key, landing.view, position))
        return landing

    def _describe(self, key: bytes, position: int, landing: Landing) -> Opened:
        """Say what a landing brings, by its head; memory's is not read, since the index knows it. Raises what a damaged head does."""
        tier = self._infos[position]
        slot = self._index.slot(key) if tier.is_verified else None
        if slot is not None and slot.nbytes == landing.nbytes:  # else it is the record of a writer that the index did not see first
            return Opened(key, slot.meta, landing.tail(slot.nbytes - slot.blob_nbytes), tier.name)
        try:
            head = land_head(landing, key)
        except BaseException:
            landing.close()
            raise
        return Opened(key, head.meta, landing.tail(head.blob_offset), tier.name)

    def find_remote(self, keys: Sequence[bytes], deadline: float) -> dict[bytes, Found]:
        """Return the keys that a remote tier has, and those of which one could not tell."""
        news: dict[bytes, Found] = {}
        for position, info in enumerate(self._infos):
            missing = [key for key in keys if key not in news or news[key].status is not Status.READY]
            if not info.is_remote or not missing:
                continue
            try:
                sizes = self.call(position, partial(self._shelves[position].tier.find, missing), deadline)
            except (DeadlineError, TierUnavailableError) as error:
                news |= {key: Found(Status.ABSENT, reason=_why_silent(error)) for key in missing}
                continue
            news |= {key: Found(Status.READY, info.name, size) for key, size in zip(missing, sizes, strict=True) if size is not None}
        return news

    def use_of(self, position: int) -> TierStats:
        """Return what a tier holds, and whether it answers."""
        info, entries = self._infos[position], self._index.count()[position]
        try:
            used = self.call(position, lambda: self._shelves[position].tier.used_bytes, self.deadline(None))
        except (DeadlineError, TierUnavailableError):
            return TierStats(info.name, 0, info.capacity_bytes, entries, is_available=False, is_durable=info.is_durable)
        return TierStats(info.name, used, info.capacity_bytes, entries, is_available=True, is_durable=info.is_durable)

    def quarantine(self, key: bytes, position: int, why: KVError) -> None:
        """Take a damaged copy out of sight and count it; several who read it may find out, and only the first one does.

        One that was evicted while it was read is not damaged: its tier has removed what was left of it.
        """
        name, was_here = self._infos[position].name, True
        is_evicted = isinstance(why, EvictedError)
        self._index.drop(key, position, EVICTED if is_evicted else CORRUPT)
        self._arriving.forget((key, position))
        if is_evicted:
            return
        try:
            was_here = self.call(position, partial(self._shelves[position].quarantine, key), self.deadline(None))
        except KVError as error:
            _log.warning("tier %s could not take a damaged record out of sight: %s", name, error)
        if was_here:
            self._counters.add("quarantined")
            _log.warning("tier %s had a damaged record, now out of use: %s", name, why)

    def call(self, position: int, function: Callable[[], T], deadline: float) -> T:
        """Call a tier: a local one right here, a remote one on another thread for as long as the deadline allows."""
        if self._infos[position].is_remote:
            return self._calls.call(function, deadline - time.monotonic())
        return function()

    def deadline(self, timeout_s: float | None) -> float:
        return time.monotonic() + (self._settings.remote_timeout_s if timeout_s is None else timeout_s)

    def close(self) -> None:
        """Ask remote tiers nothing more."""
        self._calls.close()


def _why_silent(error: DeadlineError | TierUnavailableError) -> str:
    """Return the reason of a miss when a tier did not answer: just now, or so lately that it was not asked."""
    return "timeout" if isinstance(error, DeadlineError) else "breaker" if isinstance(error, RestingError) else "unavailable"
