"""The tiered store: records in tiers from fast to slow, verified on every read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from kvstore.core.api import Status, TierStats
from kvstore.core.blob import Buffer, align, verify_blob
from kvstore.core.errors import (
    CapacityError,
    ClosedError,
    ConfigError,
    CorruptError,
    DeadlineError,
    FormatError,
    KVError,
    TierUnavailableError,
)
from kvstore.core.landing import Copied
from kvstore.core.pool import BufferPool
from kvstore.core.reading import land_all
from kvstore.store import decide
from kvstore.store.counted import CountedTier
from kvstore.store.counters import Counters
from kvstore.store.evict.policy import Item, make_policy
from kvstore.store.gauges import Gauges
from kvstore.store.index import DELETED, Index, Slot
from kvstore.store.reads import DAMAGE, Reads
from kvstore.store.record import RecordMeta, check_describes, parse_head, parse_record, record_head
from kvstore.store.results import Draft, Found, Miss, Opened, Stored, StoredEntry, StoreSettings
from kvstore.store.shelf import Shelf
from kvstore.store.tier import Room, Tier
from kvstore.store.write_queue import Job, WriteQueue

T = TypeVar("T")

_log = logging.getLogger(__name__)
_FAILURES = (CapacityError, TierUnavailableError, DeadlineError)


class TieredStore:
    """Keeps records under storage keys in tiers from fast to slow. Thread-safe; no lock is held during slow I/O.

    A put is visible once it is verified and whole in one tier, and is written behind to the others by one thread per tier. What does not
    fit into a tier's write queue is not written there now; `drain` and `close` write it to local tiers, so a put that was acknowledged and
    not evicted survives an orderly stop. With `durable` the put returns after a durable tier has the record. What no local tier takes,
    because leases or readers keep all of it or the disk is full, goes to a remote tier before it is refused. The first writer of a key
    wins; a second one waits for it.

    A get opens a record in the fastest tier that has it; whoever reads it verifies what arrives, and names the tier to `quarantine` when
    it is damaged, so that the next tier is asked. A tier that is down or slow is passed over within the timeout. A record found in a slow
    tier is verified and copied up behind the answer.

    Copies of a blob: put one (into memory), none where it was written into a draft, and one per slower tier as that tier says; get none
    from memory, one from disk and from Redis.

    Counters: `hits`, `misses`, `misses.<reason>`, `puts`, `put_duplicates`, `quarantined`, `evicted`, `evicted.<tier>`, `deleted`,
    `delete_failed`, `promoted`, `write_behind`, `write_behind_dropped`, `write_behind_failed`, and those of `CountedTier` for each tier.

    Parameters
    ----------
    tiers : sequence of Tier
        From fast to slow, with names of their own. What they hold already is served; local ones over their capacity are trimmed.
    settings : StoreSettings
        How it behaves.
    clock : callable
        Monotonic seconds, for leases.
    """

    def __init__(self, tiers: Sequence[Tier], settings: StoreSettings | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings or StoreSettings()
        self.counters = Counters()
        self._tiers = tuple(tiers)
        self._infos = [tier.info for tier in tiers]
        if not tiers or len({info.name for info in self._infos}) != len(tiers) or all(info.is_remote for info in self._infos):
            raise ConfigError("a store needs at least one local tier, and every tier a name of its own")
        local = frozenset(position for position, info in enumerate(self._infos) if not info.is_remote)
        self._index = Index(local, self.settings.remembered_misses, clock)
        self._shelves = [self._make_shelf(position, tier) for position, tier in enumerate(tiers)]
        self._reads = Reads(self._shelves, self._index, self.counters, self.settings, self._promote)
        self._pool = BufferPool(self.settings.write_queue_bytes)
        self._is_closed = False
        self._adopt(sorted(local))
        self._queues = [
            WriteQueue(info.name, self.settings.write_queue_bytes, partial(self._write_job, position))
            for position, info in enumerate(self._infos)
        ]
        self.gauges = Gauges(self._index, self._tiers, self._queues)

    def lookup(self, storage_keys: Sequence[bytes], lease_s: float = 0.0, timeout_s: float | None = None) -> list[Found]:
        """Return what is known about each key, in order.

        READY records of local tiers are not evicted for `lease_s` seconds. Keys that no local tier has are asked of each remote tier in one
        round trip, for at most `timeout_s` in all.
        """
        self._check_open()
        glimpses = [self._index.look(key, min(lease_s, self.settings.max_lease_s)) for key in storage_keys]
        known = {
            key: Found(Status.READY, self._infos[glimpse.tiers[0]].name, glimpse.blob_nbytes, meta=glimpse.meta)
            if glimpse.tiers
            else Found(Status.PENDING if glimpse.is_being_written else Status.ABSENT, reason=glimpse.reason)
            for key, glimpse in zip(storage_keys, glimpses, strict=True)
        }
        asked = [key for key, found in known.items() if found.status is Status.ABSENT and found.reason != DELETED]
        known |= self._reads.find_remote(asked, self._reads.deadline(timeout_s))
        return [known[key] for key in storage_keys]

    def meta(self, storage_key: bytes) -> RecordMeta | None:
        """Return the meta of a record that a local tier holds, and tell nobody; None for any other."""
        slot = self._index.slot(storage_key)
        return slot.meta if slot else None

    def get(self, storage_key: bytes, timeout_s: float | None = None) -> Opened | Miss:
        """Open the record in the fastest tier that has it, or say why there is none; what it holds is verified by whoever reads it.

        Waits for remote tiers at most `timeout_s` (default: the store's setting), in this call and in the reading of what it returns.
        """
        self._check_open()
        slot = self._index.use(storage_key, 0) if self._infos[0].is_verified else None
        if slot is not None and (opened := self._reads.open_memory(storage_key, slot)):
            self.counters.add("hits")
            return opened
        outcome = self._reads.search(storage_key, self._reads.deadline(timeout_s), [])
        if isinstance(outcome, Opened):
            self._index.touch(storage_key)
            self.counters.add("hits")
        else:
            self.counters.add("misses", reason=outcome.reason)
        return outcome

    def note_reads(self, storage_key: bytes, n_reads: int) -> int:
        """Count reads that others made in the memory tier by themselves, of what is gone meanwhile too; return the bytes of what is not."""
        return self._reads.note(storage_key, n_reads)

    def quarantine(self, storage_key: bytes, tier: str, why: KVError) -> None:
        """Take a copy that a reader found to be damaged out of sight and count it."""
        position = next((position for position, info in enumerate(self._infos) if info.name == tier), None)
        if position is not None:
            self._reads.quarantine(storage_key, position, why)

    def scrub(self, storage_key: bytes) -> bool:
        """Verify every copy of a record that a reader elsewhere found to be damaged and quarantine those that are; tell if one was."""
        self._check_open()
        return self._reads.scrub(storage_key)

    def put(self, storage_key: bytes, meta: RecordMeta, blob: Buffer, durable: bool = False) -> Stored:
        """Verify the blob and publish it.

        Raises FormatError, CorruptError, IdentityError (`meta` is of another chunk) or CapacityError and stores nothing; with `durable`,
        also TierUnavailableError, and UnsupportedError when no tier is durable.
        """
        view = memoryview(blob).cast("B")
        self._check_call(view.nbytes)
        if self._index.slot(storage_key) is not None:
            check_describes(meta, verify_blob(view).manifest)
            with self._index.writing(storage_key):
                if kept := self._keep_first(storage_key, durable):
                    return kept
        draft = self.begin(storage_key, meta, view.nbytes)
        check_describes(meta, land_all(Copied(view, draft.blob)).manifest)
        return self.commit(draft, durable)

    def begin(self, storage_key: bytes, meta: RecordMeta, blob_nbytes: int) -> Draft:
        """Return memory for a blob that is written in place, verified by the caller and committed; dropping it stores nothing.

        It is a block of the memory tier where one can be had, so that committing copies nothing. Raises CapacityError.
        """
        self._check_call(blob_nbytes)
        head = record_head(storage_key, meta, blob_nbytes)
        decide.place_put(self._infos, len(head) + blob_nbytes)
        room = self._reserve(len(head) + blob_nbytes)
        view = room.view if room else self._pool.take(len(head) + blob_nbytes)
        view[: len(head)] = head
        return Draft(storage_key, meta, view, view[len(head) :], room)

    def commit(self, draft: Draft, durable: bool = False) -> Stored:
        """Publish a draft whose blob the caller has verified, and seal it; the first writer wins. Raises as `put` does."""
        self._check_open()
        with self._index.writing(draft.storage_key):
            stored = self._keep_first(draft.storage_key, durable) or self._place(draft, durable)
        draft.seal()
        return stored

    def delete(self, storage_key: bytes, reason: str = DELETED) -> bool:
        """Remove a record from every tier; return whether it was in one.

        It is a miss at once, also while a tier that does not answer still has it; after a restart of the store such a tier would serve it
        again, so what must never come back is invalidated by epoch.
        """
        self._check_open()
        was_here = self._index.delete(storage_key, reason)
        for queue in self._queues:
            queue.cancel(storage_key, self.settings.remote_timeout_s)
        for position in range(len(self._shelves)):
            try:
                was_here |= self._reads.call(position, partial(self._shelves[position].delete, storage_key), self._reads.deadline(None))
            except KVError as error:
                self.counters.add("delete_failed")
                _log.warning("a deleted record may still be in tier %s: %s", self._infos[position].name, error)
        self.counters.add(reason, int(was_here))
        return was_here

    def entries(self, storage_keys: Iterable[bytes] | None = None) -> Iterator[StoredEntry]:
        """Iterate over the records that a local tier holds, most recently used first, or over those of `storage_keys` that one holds."""
        for key in self._index.keys() if storage_keys is None else storage_keys:
            seen = self._index.look(key)
            if seen.meta is not None:
                yield StoredEntry(key, seen.meta, seen.blob_nbytes, tuple(self._infos[position].name for position in seen.tiers))

    def tier_stats(self) -> tuple[TierStats, ...]:
        """Return the use of each tier, fastest first. Of a remote tier, `entries` counts what a local tier holds too."""
        return tuple(self._reads.use_of(position) for position in range(len(self._shelves)))

    def drain(self, timeout_s: float = 30.0) -> bool:
        """Write what waits for slower tiers, and what found a queue full; return whether all of it was written in time."""
        deadline = time.monotonic() + timeout_s
        idle = [queue.wait_idle(max(deadline - time.monotonic(), 0.0)) for queue in self._queues]
        for key, position in self._index.owed():
            if time.monotonic() > deadline:
                return False
            slot, copy = self._index.slot(key), self._local_copy(key)
            if slot and copy:
                self._write_job(position, Job(key, slot, *copy))
        return all(idle) and not self._index.owed()

    def close(self, timeout_s: float = 30.0) -> None:
        """Take no more calls, drain, and close every tier. Safe to call again."""
        if self._is_closed:
            return
        self._is_closed = True
        if not self.drain(timeout_s):
            _log.warning("the store was closed before everything was written to slower tiers; raise the timeout")
        for queue in self._queues:
            queue.close(self.settings.remote_timeout_s)
        self._reads.close()
        for shelf in self._shelves:
            shelf.tier.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError("the store is closed")

    def _check_call(self, blob_nbytes: int) -> None:
        self._check_open()
        if blob_nbytes > self.settings.max_blob_nbytes:
            raise CapacityError(f"a blob of {blob_nbytes} B is over the limit of {self.settings.max_blob_nbytes} B; raise max_blob_nbytes")

    def _make_shelf(self, position: int, tier: Tier) -> Shelf:
        policy = make_policy(self.settings.eviction, tier.info.capacity_bytes) if tier.info.capacity_bytes else None
        return Shelf(CountedTier(tier, self.counters), policy, self._index.leased, partial(self._release, position))

    def _release(self, position: int, key: bytes) -> bool:
        """Let go of a victim of eviction, unless it is leased."""
        is_free = self._index.evict(key, position)
        self.counters.add("evicted", int(is_free), self._infos[position].name)
        return is_free

    def _adopt(self, local: Sequence[int]) -> None:
        """Take what local tiers hold already into the index, and trim them."""
        for position in local:
            shelf = self._shelves[position]
            for listed in shelf.tier.scan():
                if listed.meta is not None:
                    slot = Slot(listed.meta, listed.nbytes - listed.meta.blob_offset, listed.nbytes)
                    shelf.adopt(_item(listed.key, slot))
                    self._index.add(listed.key, slot, position)
            shelf.trim()

    def _reserve(self, nbytes: int) -> Room | None:
        """Return room in the memory tier, or None."""
        if not self._infos[0].is_verified or not decide.fits(self._infos[0], nbytes):
            return None
        try:
            return self._shelves[0].reserve(nbytes)
        except CapacityError:
            return None

    def _keep_first(self, key: bytes, durable: bool) -> Stored | None:
        """Answer a second put of a record, which is made durable if it has to be; None when there is no sound one to keep."""
        slot, held = self._index.slot(key), self._index.look(key).tiers
        if slot is None or not held:
            return None
        must = decide.place_put(self._infos, slot.nbytes, held, durable).must
        if must is not None:
            copy = self._local_copy(key)
            if copy is None or not self._is_sound(key, *copy):
                return None
            self._write(key, slot, copy[0], must)
        self.counters.add("put_duplicates")
        return self._receipt(key, slot, stored=False)

    def _place(self, draft: Draft, durable: bool) -> Stored:
        """Write a new record where it has to be now, and queue it for the other tiers."""
        key, slot = draft.storage_key, Slot(draft.meta, draft.blob.nbytes, draft.view.nbytes)
        placement = decide.place_put(self._infos, slot.nbytes, (), durable)
        self._index.admit(key)
        if placement.must is not None:
            self._write(key, slot, draft.view, placement.must)
        placed = self._write_first(key, slot, draft, placement)
        for position in placement.later:
            if position != placed:
                self._write_later(position, Job(key, slot, draft.view.toreadonly()))
        self.counters.add("puts")
        return self._receipt(key, slot, stored=True, placed=placed)

    def _receipt(self, key: bytes, slot: Slot, stored: bool, placed: int | None = None) -> Stored:
        """Say where a record is; one that only a remote tier took is not in the index."""
        tiers = self._index.look(key).tiers or ([] if placed is None else [placed])
        is_durable = any(self._infos[position].is_durable for position in tiers)
        return Stored(stored, self._infos[tiers[0]].name if tiers else "", slot.blob_nbytes, is_durable)

    def _write_first(self, key: bytes, slot: Slot, draft: Draft, placement: decide.Placement) -> int | None:
        """Write to the first tier that takes the record; raises the first one's error when none does and no other tier has it."""
        failure: KVError | None = None
        for position in placement.may:
            write = partial(self._write, key, slot, draft.view, position, draft.room if position == 0 else None)
            try:
                self._reads.call(position, write, self._reads.deadline(None))
                return position
            except _FAILURES as error:
                failure = failure or error
        if failure is not None and placement.must is None:
            raise failure
        return placement.must

    def _write(self, key: bytes, slot: Slot, data: Buffer, position: int, room: Room | None = None) -> None:
        """Store a record in one tier and note it; a record that was deleted meanwhile is taken back."""
        if room is not None:
            self._shelves[position].publish(_item(key, slot), room)
        else:
            self._shelves[position].put(_item(key, slot), [data])
        if not self._index.add(key, slot, position):
            self._shelves[position].delete(key)

    def _write_later(self, position: int, job: Job) -> None:
        """Queue a record for a tier. When the queue is full it is dropped and counted; a local tier gets it when the store drains."""
        if not self._queues[position].offer(job):
            self.counters.add("write_behind_dropped")
            self._index.owe(job.key, position)

    def _write_job(self, position: int, job: Job) -> None:
        """Write a queued record; a failure is counted, and a local tier gets what was put when the store drains."""
        name = self._infos[position].name
        try:
            if job.found_at is not None and not self._is_sound(job.key, job.data, job.found_at):
                return
            self._write(job.key, job.slot, job.data, position)
            self.counters.add("write_behind")
        except KVError as error:
            self.counters.add("write_behind_failed")
            if job.found_at is None:
                self._index.owe(job.key, position)
            _log.warning("a record was not written to tier %s: %s", name, error)
        except Exception:  # a defect of ours must not end the thread that writes everybody's records
            self.counters.add("write_behind_failed")
            _log.exception("a record was not written to tier %s", name)

    def _is_sound(self, key: bytes, data: Buffer, found_at: int) -> bool:
        """Verify a record that is about to be copied; a damaged one goes out of sight where it was found."""
        try:
            parse_record(key, data)
        except DAMAGE as error:
            self._reads.quarantine(key, found_at, error)
            return False
        return True

    def _promote(self, key: bytes, data: memoryview, position: int) -> None:
        """Queue a record that arrived for the fastest tier that takes it, which verifies it first; a full queue is no loss."""
        target = decide.place_promotion(self._infos, data.nbytes, position)
        if target is None:
            return
        try:
            head = parse_head(data)
        except (CorruptError, FormatError):
            return  # whoever reads it finds out
        slot = Slot(head.meta, data.nbytes - head.blob_offset, data.nbytes)
        if self._queues[target].offer(Job(key, slot, data, position)):
            self.counters.add("promoted")

    def _local_copy(self, key: bytes) -> tuple[memoryview, int] | None:
        """Return the record from the fastest local tier that can give it, and that tier, without telling its policy or counters."""
        for position in self._index.look(key).tiers:
            try:
                landing = None if self._infos[position].is_remote else self._tiers[position].get(key)
                if landing is not None:
                    landing.fill(landing.nbytes)
                    return landing.view, position
            except KVError as error:
                _log.warning("tier %s has a record that it can't give: %s", self._infos[position].name, error)
        return None


def _item(key: bytes, slot: Slot) -> Item:
    """Return what an eviction policy weighs."""
    return Item(key, align(slot.nbytes), slot.meta.recompute_s)
