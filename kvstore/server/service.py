"""The store service: one tiered store, shared by tenants that never see each other's chunks."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence

from kvclient.wire import check_seconds
from kvstore.core.api import BlobReader, Entry, Explanation, Hit, PutNote, PutReceipt, Scope, Status, StoreStats
from kvstore.core.blob import Buffer, parse_header
from kvstore.core.epochs import EpochAnswer, EpochBook, is_proven, prove
from kvstore.core.errors import ClosedError, ForbiddenError, FormatError, InvalidInputError, KVError
from kvstore.core.key import ChunkKey, storage_key, tenant_secret
from kvstore.core.manifest import Manifest
from kvstore.core.reasons import meaning_of
from kvstore.core.units import format_nbytes
from kvstore.server.access.quotas import Allowance, Holdings
from kvstore.server.config import QuotaConfig
from kvstore.server.observe.calls import CallLog
from kvstore.server.observe.tally import Tally
from kvstore.server.owned import Owned
from kvstore.server.reader import StoredReader
from kvstore.server.recent import RecentKeys
from kvstore.server.typed_errors import TypedErrors, ours
from kvstore.store.epochs import Epochs
from kvstore.store.record import MAX_SOURCE_CHARS, RecordMeta
from kvstore.store.results import Draft, Found, Miss, Opened, Stored, StoredEntry
from kvstore.store.shared_blocks import SharedBlocks
from kvstore.store.tiered import TieredStore

logger = logging.getLogger(__name__)

MAX_TOKENS = 1 << 24
_REMEMBERED = 65536  # removed chunks that are known to have been invalidated


class StoreService:
    """Hands out one `BoundStore` per tenant over one tiered store, and closes it.

    Parameters
    ----------
    store : TieredStore
        Where records live; closed with the service.
    epochs : Epochs
        What was invalidated.
    master_secret : bytes
        Every tenant's secret is derived from it; whoever has it can compute any storage key.
    max_blob_bytes : int
        Largest chunk a put accepts.
    shared : SharedBlocks or None
        The memory tier's, where other processes may read it in place.
    name : str
        What clients that use several stores know this one by; "" leaves it to its address.
    quotas : QuotaConfig or None
        What each tenant may use; None for no limit.
    """

    def __init__(
        self,
        store: TieredStore,
        epochs: Epochs,
        master_secret: bytes,
        max_blob_bytes: int,
        shared: SharedBlocks | None = None,
        name: str = "",
        quotas: QuotaConfig | None = None,
    ) -> None:
        self.store, self.name, self.quotas = store, name, quotas or QuotaConfig()
        self.shared = shared
        self.epochs = epochs
        self.max_blob_bytes = max_blob_bytes
        self.stale = RecentKeys(_REMEMBERED)
        self.lane_calls = CallLog()
        self._master_secret = master_secret
        self._bound: dict[str, BoundStore] = {}
        self._is_closed = False

    def bind(self, tenant: str) -> BoundStore:
        """Return the store of one tenant; the caller has authenticated it. Raises ClosedError once the service is closed."""
        if self._is_closed:
            raise ClosedError("the store is closed")
        bound = self._bound.get(tenant)
        if bound is None:
            bound = self._bound.setdefault(tenant, BoundStore(self, tenant, tenant_secret(self._master_secret, tenant)))
        return bound

    def tenants(self) -> list[BoundStore]:
        """Return the stores of all tenants that called since the start."""
        return list(self._bound.values())

    def check_size(self, nbytes: int) -> None:
        """Raise InvalidInputError for a chunk that is larger than any put accepts."""
        if nbytes > self.max_blob_bytes:
            raise InvalidInputError(f"a chunk of {nbytes} B; at most {self.max_blob_bytes} B are accepted: raise server.max_blob_bytes")

    def close(self, timeout_s: float = 30.0) -> None:
        """Write what was acknowledged to every tier that should have it and let go of all of them. Safe to call again."""
        self._is_closed = True
        self.store.close(timeout_s)


class BoundStore:
    """One tenant's view of the store; implements `StoreAPI`. Thread-safe; raises nothing but KVError."""

    def __init__(self, service: StoreService, tenant: str, secret: bytes) -> None:
        self._service = service
        self._store = service.store
        self._epochs = service.epochs
        self._tenant = tenant
        self._secret = secret
        self._places: dict[ChunkKey, tuple[tuple[int, int], bytes]] = {}
        self._variants: dict[bytes, bytes] = {}  # of a content, the codec that it was stored in last
        quotas = service.quotas.of(tenant)
        self.allowance = Allowance(tenant, quotas)
        self._holdings = Holdings(tenant, service.store, quotas.stored, self._owns)
        self._owned = Owned(service.store, self._owns)
        self.tenant, self.tally, self.counters, self.lane_calls = tenant, Tally(), self._store.counters, service.lane_calls

    def lookup(self, keys: Sequence[ChunkKey], lease_s: float = 0.0, timeout_s: float | None = None) -> list[Hit]:
        """Return one hit per key, in order; READY chunks are not evicted for `lease_s` seconds, and what is silent has nothing."""
        hits = self._look(keys, lease_s, timeout_s)
        self.tally.looked_up(hits)
        return hits

    def _look(self, keys: Sequence[ChunkKey], lease_s: float = 0.0, timeout_s: float | None = None) -> list[Hit]:
        """Look up and count nothing."""
        with TypedErrors("lookup"):
            check_seconds(lease_s, "lease_s")
            places = [self._place(key) for key in keys]
            found = self._store.lookup(places, lease_s, timeout_s)
            return [self._hit(key, place, f) for key, place, f in zip(keys, places, found, strict=True)]

    def holds(self, key: ChunkKey) -> bool:
        """Tell, without counting it as a use, whether a local tier has the chunk."""
        return self._store.meta(storage_key(self._secret, *self._scope_epochs(key), key)) is not None

    def get(self, key: ChunkKey, timeout_s: float | None = None) -> StoredReader | None:
        """Open a chunk; every byte of it is verified before it is handed out. None is a miss."""
        with TypedErrors("get"):
            return StoredReader.open(self, key, timeout_s)

    def get_batch(self, keys: Sequence[ChunkKey], timeout_s: float | None = None) -> list[BlobReader | None]:
        """Open several chunks; see `get`."""
        return [self.get(key, timeout_s) for key in keys]

    def read(self, key: ChunkKey, timeout_s: float | None = None) -> Opened | Hit:
        """Open a chunk whose bytes whoever reads them verifies; an ABSENT hit tells the reason of a miss."""
        try:
            opened = self._read(key, timeout_s)
            self.tally.read(opened)
            return opened
        except KVError:
            raise
        except Exception as error:
            raise ours("get", error) from error

    def _read(self, key: ChunkKey, timeout_s: float | None) -> Opened | Hit:
        place = self._place(key)
        opened = self._store.get(place, timeout_s)
        if isinstance(opened, Miss):
            return self._hit(key, place, Found(Status.ABSENT, reason=opened.reason))
        if opened.meta.chunk != key:
            opened.landing.close()
            self._store.counters.add("quarantined")
            logger.error("a record held chunk %s where %s belongs; it was removed", opened.meta.chunk, key)
            self._store.delete(place)
            return Hit(key, Status.ABSENT, reason="corrupt")
        if not self._is_current(opened.meta):
            opened.landing.close()
            self._forget(place)
            return Hit(key, Status.ABSENT, reason="epoch")
        self._owned.add(place)
        return opened

    def note_reads(self, reads: Iterable[tuple[ChunkKey, int]]) -> None:
        """Count reads that were made without this store: keys, and how often each was read."""
        with TypedErrors("note_reads"):
            for key, n_reads in reads:
                nbytes = self._store.note_reads(self._place(key), n_reads)
                self.tally.read_in_place(n_reads, nbytes)
                self.counters.add("lane.shm.sent_bytes", nbytes)

    def scrub(self, keys: Sequence[ChunkKey]) -> int:
        """Verify every stored copy of chunks that a reader found to be damaged, quarantine the damaged ones, and return how many were."""
        with TypedErrors("scrub"):
            return sum(self._store.scrub(self._place(key)) for key in keys)

    def quarantine(self, opened: Opened, why: KVError) -> None:
        """Take the copy that `opened` comes from out of sight."""
        opened.landing.close()
        self._store.quarantine(opened.storage_key, opened.tier, why)

    def put(self, blob: Buffer, note: PutNote) -> PutReceipt:
        """Verify and publish a whole blob; the first writer wins. Copies it once."""
        with TypedErrors("put"):
            self._service.check_size(len(blob))
            meta = self._describe(parse_header(blob).manifest, note)
            stored = self._store.put(self._fresh_place(meta, len(blob)), meta, blob, note.durable)
            return self._receipt(meta.chunk, stored)

    def begin_put(self, header: Buffer, note: PutNote) -> Draft:
        """Return memory for the blob that begins with `header`, which is in it already; fill it, verify it and `commit_put` it."""
        with TypedErrors("put"):
            parsed = parse_header(header)
            self._service.check_size(parsed.nbytes)
            meta = self._describe(parsed.manifest, note)
            draft = self._store.begin(self._fresh_place(meta, parsed.nbytes), meta, parsed.nbytes)
            draft.blob[: len(header)] = header
            return draft

    def commit_put(self, draft: Draft, durable: bool) -> PutReceipt:
        """Publish a draft whose blob was verified; the first writer wins."""
        with TypedErrors("put"):
            stored = self._store.commit(draft, durable)
            return self._receipt(draft.meta.chunk, stored)

    def delete(self, keys: Sequence[ChunkKey]) -> int:
        """Remove chunks from every tier; return how many were there."""
        with TypedErrors("delete"):
            places = [self._place(key) for key in keys]
            for place in places:
                self._service.stale.discard(place)
            return sum(map(self._store.delete, places))

    def invalidate(self, scope: Scope) -> int:
        """Make everything in the scope a miss; the new epoch is durable when this returns. Costs the same however much it hits."""
        with TypedErrors("invalidate"):
            checked = _checked(scope)
            epoch = self._epochs.raise_epoch(checked.kind, self._tenant, checked.value)
            self._clear_directory()
            return epoch

    def agree(self, at_least: EpochBook, known_digest: bytes = b"", timeout_s: float | None = None) -> EpochAnswer:
        """Raise epochs to at least these, as durably as `invalidate`; return all of the tenant's, or none if the caller knows their digest.

        Raises ForbiddenError for an epoch that no store with this master secret has proven.
        """
        with TypedErrors("agree"):
            if invented := [scope for scope, epoch in at_least.items() if not is_proven(self._secret, scope, epoch)]:
                raise ForbiddenError(
                    f"no store with this master secret made the epoch of {invented[0]}; share auth.secret_file among stores"
                )
            if self._epochs.raise_to(self._tenant, {_checked(scope): epoch.number for scope, epoch in at_least.items()}):
                self._clear_directory()
            digest, numbers = self._epochs.of_tenant(self._tenant)
            epochs = None if digest == known_digest else {s: prove(self._secret, s, number) for s, number in numbers.items()}
            return EpochAnswer(self._service.name, digest, epochs)

    def _clear_directory(self) -> None:
        """Have readers of shared memory ask for what they read."""
        if self._service.shared:
            self._service.shared.directory.invalidate()

    def entries(self, limit: int = 1000) -> Iterator[Entry]:
        """Iterate over at most `limit` of the tenant's chunks, newest first; see `Owned` for what it costs."""
        with TypedErrors("entries"):
            for stored in self._store.entries(self._owned.newest()):
                if limit <= 0:
                    return
                if self._owns(stored) and self._is_current(meta := stored.meta):
                    limit -= 1
                    yield Entry(meta.chunk, meta.kind, meta.n_tokens, stored.nbytes, meta.codec, stored.tiers, meta.source)

    @property
    def n_to_list(self) -> int:
        """How many records the next listing looks at."""
        return self._owned.n_to_look_at

    def stats(self) -> StoreStats:
        """Return counters and tier use of the whole store."""
        with TypedErrors("stats"):
            return StoreStats(self._store.counters.snapshot(), self._store.tier_stats())

    def explain(self, key: ChunkKey) -> Explanation:
        """Say why a chunk is or is not served."""
        with TypedErrors("explain"):
            hit = self._look([key])[0]
            tenant_epoch, model_epoch = self._scope_epochs(key)
            lines = [meaning_of(hit.reason) or f"ready in tier {hit.tier}, {format_nbytes(hit.nbytes)}"]
            lines.append(f"tenant {self._tenant} was invalidated {tenant_epoch} times, this model {model_epoch} times")
            for tier in self._store.tier_stats():
                lines.append(f"tier {tier.name} {'answers' if tier.is_available else 'does not answer'}")
            return Explanation(hit, tenant_epoch, model_epoch, tuple(lines))

    def close(self) -> None:
        """Close the service: embedded, the store belongs to whoever bound it."""
        self._service.close()

    def _describe(self, manifest: Manifest, note: PutNote) -> RecordMeta:
        """Return the meta of a chunk that is put now."""
        if manifest.n_tokens > MAX_TOKENS:
            raise FormatError(f"a chunk of {manifest.n_tokens} tokens; at most {MAX_TOKENS} are possible")
        epoch = self._epochs.current("source", self._tenant, note.source)
        return RecordMeta.of(manifest, note.source, epoch, note.recompute_s)

    def _receipt(self, key: ChunkKey, stored: Stored) -> PutReceipt:
        """Count a put, remember its codec, and say what became of it."""
        self.tally.put(stored.nbytes)
        if len(self._variants) >= _REMEMBERED:
            self._variants.clear()
        self._variants[key.content] = key.variant
        self._owned.add(self._place(key))
        if stored.stored:
            self._holdings.add(self._place(key), stored.nbytes)
        return PutReceipt(key, stored.stored, stored.tier, stored.nbytes, stored.is_durable)

    def _fresh_place(self, meta: RecordMeta, nbytes: int) -> bytes:
        """Return the storage key of a chunk that is put now, cleared of one that was invalidated, with room within the quota."""
        place = self._place(meta.chunk)
        held = self._store.meta(place)
        if self._drop_stale(place, held) or held is None:
            self._holdings.make_room(nbytes)
        return place

    def _owns(self, stored: StoredEntry) -> bool:
        """Tell the tenant's chunks from all others: only the tenant itself can compute their storage keys."""
        chunk = stored.meta.chunk
        return stored.storage_key == storage_key(self._secret, *self._scope_epochs(chunk), chunk)

    def _place(self, key: ChunkKey) -> bytes:
        """Return the storage key of a chunk of this tenant in its current epochs."""
        epochs = self._scope_epochs(key)
        known = self._places.get(key)
        if known is None or known[0] != epochs:
            if len(self._places) >= _REMEMBERED:
                self._places.clear()
            known = self._places[key] = (epochs, storage_key(self._secret, *epochs, key))
        return known[1]

    def _scope_epochs(self, key: ChunkKey) -> tuple[int, int]:
        """Return the epochs of the tenant and of the chunk's model."""
        return self._epochs.current("tenant", self._tenant), self._epochs.current("model", self._tenant, key.namespace.hex())

    def _is_current(self, meta: RecordMeta) -> bool:
        """Tell whether the chunk's source was not invalidated since it was put."""
        return meta.source_epoch == self._epochs.current("source", self._tenant, meta.source)

    def _hit(self, key: ChunkKey, place: bytes, found: Found) -> Hit:
        """Return what was found as a hit; invalidated chunks are absent."""
        if found.status is Status.READY and not self._drop_stale(place, found.meta):
            return Hit(key, Status.READY, found.tier, found.nbytes)
        is_stale = found.reason == "deleted" and place in self._service.stale
        if found.status is Status.READY or is_stale or (found.reason == "never_stored" and self._was_invalidated(key)):
            return Hit(key, Status.ABSENT, reason="epoch")
        if found.reason == "never_stored" and self._is_in_another_codec(key):
            return Hit(key, Status.ABSENT, reason="variant")
        return Hit(key, found.status, reason=found.reason)

    def _drop_stale(self, place: bytes, meta: RecordMeta | None) -> bool:
        """Remove a chunk whose source was invalidated since it was put; return whether there was one.

        A lookup does not know the source of a chunk that only a remote tier holds; such a chunk is found out when it is read.
        """
        if meta is None or self._is_current(meta):
            return False
        self._forget(place)
        return True

    def _forget(self, place: bytes) -> None:
        """Remove an invalidated chunk and remember why it is gone."""
        self._service.stale.add(place)
        self._store.delete(place)

    def _is_in_another_codec(self, key: ChunkKey) -> bool:
        """Tell whether this tenant's own chunk of the same content is here in the codec that it was stored in last."""
        variant = self._variants.get(key.content, key.variant)
        return variant != key.variant and self.holds(ChunkKey(key.namespace, key.content, variant))

    def _was_invalidated(self, key: ChunkKey) -> bool:
        """Tell whether the chunk is stored under the previous epoch of its tenant or model."""
        tenant_epoch, model_epoch = self._scope_epochs(key)
        older = [(tenant_epoch - 1, model_epoch), (tenant_epoch, model_epoch - 1)]
        places = [storage_key(self._secret, *epochs, key) for epochs in older if min(epochs) >= 0]
        return bool(places) and any(found.status is Status.READY for found in self._store.lookup(places))


def _checked(scope: Scope) -> Scope:
    """Return a scope that can be invalidated; raises InvalidInputError."""
    if scope.kind == "tenant":
        return Scope("tenant")
    if scope.kind == "model":
        if not re.fullmatch("[0-9a-f]{64}", scope.value):
            raise InvalidInputError("a model is named by its namespace: 64 lower-case hex digits")
        return scope
    if scope.kind == "source":
        if not 0 < len(scope.value) <= MAX_SOURCE_CHARS:
            raise InvalidInputError(f"a source has 1 to {MAX_SOURCE_CHARS} characters, got {len(scope.value)}")
        return scope
    raise InvalidInputError(f"scope {scope.kind!r} is not one of tenant, model, source")
