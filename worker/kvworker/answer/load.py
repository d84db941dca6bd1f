"""Fetch stored chunks beside the model: verified and decoded on a loader's thread, one load for all who wait for the same chunk."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from kvstore.core import tracing
from kvstore.core.api import BlobReader, StoreAPI
from kvstore.core.blob import key_of
from kvstore.core.errors import ClosedError, DeadlineError, IdentityError, KVError
from kvstore.core.identity import ModelIdentity
from kvstore.core.key import ChunkKey
from kvstore.core.manifest import MAX_DECODED_NBYTES
from kvworker.answer.device_tier import DeviceTier, TenantKey
from kvworker.chunk import KVChunk, PassageKV
from kvworker.codec.coded import CodedChunk
from kvworker.codec.decode import ChunkDecoder, check_geometry
from kvworker.codec.registry import CodecOf, pipeline_of
from kvworker.engine.engine import LoadFailed


class StoredSource:
    """A chunk on its way from the store; implements `kvworker.engine.engine.ChunkSource`.

    One thread fetches, any number may ask for what has arrived and listen for more. `tier`, `nbytes` and `seconds` describe the fetch once
    it has arrived, `queued_s` how long it waited for a thread behind other fetches; `failure` says why it could not be had.
    """

    def __init__(self, key: ChunkKey, identity: ModelIdentity, n_tokens: int, device: str, codec_of: CodecOf = pipeline_of) -> None:
        self.key = key
        self.tier, self.nbytes, self.seconds, self.queued_s, self.failure = "", 0, 0.0, 0.0, ""
        self.n_holders = 1
        self._identity, self._n_tokens, self._device, self._codec_of = identity, n_tokens, device, codec_of
        self._decoder: ChunkDecoder | None = None
        self._chunks: list[KVChunk | CodedChunk] = []
        self._n_groups = len(identity.layout.groups)
        self._listeners: list[Callable[[StoredSource], None]] = []
        self._lock = threading.Lock()
        self._asked, self._is_begun = time.perf_counter(), False

    def group(self, index: int) -> KVChunk | CodedChunk:
        """Return the chunk of layer group `index`; raises LoadFailed unless it has arrived."""
        if index >= len(self._chunks):
            raise LoadFailed(f"chunk {self.key}: {self.failure or f'layer group {index} has not arrived'}")
        return self._chunks[index]

    @property
    def n_arrived(self) -> int:
        """How many layer groups are here."""
        return len(self._chunks)

    @property
    def has_arrived(self) -> bool:
        """Whether every part is here: only then `tier`, `nbytes` and `seconds` tell what a read costs."""
        return len(self._chunks) == self._n_groups and not self.failure

    def decoded(self) -> PassageKV | None:
        """Return the whole passage if it has arrived, else None."""
        if not self.has_arrived:
            return None
        return tuple(chunk.decoded if isinstance(chunk, CodedChunk) else chunk for chunk in self._chunks)

    def listen(self, listener: Callable[[StoredSource], None]) -> None:
        """Have `listener` called, from the thread that fetches, after every part and after a failure; at once if either has been."""
        with self._lock:
            self._listeners.append(listener)
        if self._chunks or self.failure:
            listener(self)

    def begin(self) -> bool:
        """Note that a fetch begins; return False where one has begun, or nobody waits for it any more."""
        with self._lock:
            if self._is_begun or self.failure or not self.n_holders:
                return False
            self._is_begun, self.queued_s = True, time.perf_counter() - self._asked
            return True

    def open(self, reader: BlobReader) -> None:
        """Check whose chunk a reader has, and find what decodes it; raises IdentityError, UnsupportedError or NotFoundError."""
        check_geometry(reader.manifest, self._identity, self._n_tokens)
        if key_of(reader.manifest) != self.key:
            raise IdentityError(f"chunk {key_of(reader.manifest)} came where {self.key} was asked for")
        most = max(MAX_DECODED_NBYTES, reader.manifest.decoded_nbytes)  # its K and V are as large as those that were asked for
        self._decoder = ChunkDecoder(reader.manifest, self._codec_of(reader.manifest.codec), self._device, most)
        self.tier, self.nbytes = reader.tier, reader.nbytes

    def take(self, reader: BlobReader, lap: Callable[[], float]) -> None:
        """Receive and decode the next part and tell who listens; `lap` returns the seconds since it was last called by the same fetch.

        Where a GPU decodes a chunk as it writes it into a cache, the part stays coded until then.
        """
        assert self._decoder is not None
        index = len(self._chunks)
        chunk = self._decoder.part_to_place(index, reader.part(index))
        self.seconds += lap()
        self._chunks.append(chunk)
        self._tell()

    def fail(self, error: Exception) -> None:
        """Say why what has not arrived never will; the first reason stays."""
        if self.failure:
            return
        known = error if isinstance(error, KVError) else LoadFailed(f"{type(error).__name__}: {error}")
        self.failure = str(known) or type(known).__name__
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener(self)


def fetch(store: StoreAPI, sources: Sequence[StoredSource], timeout_s: float) -> None:
    """Fetch chunks in one round trip, layer group by layer group, so that the first group of all is there first; raises nothing."""
    wanted = [source for source in sources if source.begin()]
    if not wanted:
        return
    started = time.perf_counter()
    try:
        readers = store.get_batch([s.key for s in wanted], timeout_s) if len(wanted) > 1 else [store.get(wanted[0].key, timeout_s)]
    except Exception as error:
        if len(wanted) == 1:
            wanted[0].fail(error)
            return
        readers = _open_each(store, wanted, started + timeout_s)
    _read(wanted, readers, started)


def _open_each(store: StoreAPI, sources: Sequence[StoredSource], deadline: float) -> list[BlobReader | None]:
    """Open what can be opened of a batch that failed as a whole."""
    readers: list[BlobReader | None] = []
    for source in sources:
        left_s = deadline - time.perf_counter()
        try:
            if left_s <= 0:
                raise DeadlineError("no time is left for it behind the others of its batch")
            readers.append(store.get(source.key, left_s))
        except Exception as error:
            source.fail(error)
            readers.append(None)
    return readers


def _read(sources: Sequence[StoredSource], readers: Sequence[BlobReader | None], started: float) -> None:
    """Take all parts in; each source is charged for its own parts, and all alike for what opening them took."""
    opened: list[tuple[StoredSource, BlobReader]] = []
    lap = _laps(started)
    try:
        for source, reader in zip(sources, readers, strict=True):
            if reader is None:
                source.fail(LoadFailed("the chunk is no longer stored"))
            elif _try(source, lambda s=source, r=reader: s.open(r)):  # type: ignore[misc]
                opened.append((source, reader))
        opening_s = lap()
        for source, _ in opened:
            source.seconds = opening_s / len(opened)
        while opened:
            opened = [(s, r) for s, r in opened if _take(s, r, lap)]
    finally:
        for reader in readers:
            if reader is not None:
                reader.close()


def _laps(started: float) -> Callable[[], float]:
    """Return a stopwatch that says at each call how long ago the last call, or the start, was."""
    last = started

    def lap() -> float:
        nonlocal last
        last, before = time.perf_counter(), last
        return max(last - before, 1e-9)

    return lap


def _take(source: StoredSource, reader: BlobReader, lap: Callable[[], float]) -> bool:
    """Take one part in; return whether there is more to come for somebody who waits."""
    if not source.n_holders:
        source.fail(LoadFailed("nobody waits for it any more"))
        return False
    return _try(source, lambda: source.take(reader, lap)) and not source.has_arrived


def _try(source: StoredSource, step: Callable[[], None]) -> bool:
    """Do a step of a fetch; return False where it failed."""
    try:
        step()
    except Exception as error:
        source.fail(error)
        return False
    return True


class DeviceSource:
    """A passage that device memory holds decoded; implements `kvworker.engine.engine.ChunkSource`."""

    def __init__(self, kv: PassageKV) -> None:
        self.kv = kv

    def group(self, index: int) -> KVChunk:
        """Return the chunk of layer group `index` at once."""
        return self.kv[index]


class Lane:
    """Fetches batches one after the other, in the order in which they were added; holds a thread only while there are any."""

    def __init__(self, pool: ThreadPoolExecutor, store: StoreAPI, timeout_s: float) -> None:
        self._pool, self._store, self._timeout_s = pool, store, timeout_s
        self._waiting: deque[Sequence[StoredSource]] = deque()
        self._lock, self._is_running = threading.Lock(), False

    def add(self, sources: Sequence[StoredSource]) -> None:
        """Have chunks fetched behind those added before; each gets the whole timeout from when its fetch begins."""
        with self._lock:
            self._waiting.append(sources)
            if self._is_running:
                return
            self._is_running = True
        try:
            self._pool.submit(tracing.carried(self._run))
        except RuntimeError:  # the pool was shut down
            for source in sources:
                source.fail(ClosedError("the worker is closing"))

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            with tracing.span("larder.fetch", {"larder.chunks": len(batch)}) as span:
                fetch(self._store, batch, self._timeout_s)
                if span is not None:
                    span.set_attribute("larder.bytes", sum(source.nbytes for source in batch))

    def _next(self) -> Sequence[StoredSource] | None:
        """Return the next batch; without one, the lane rests."""
        with self._lock:
            self._is_running = bool(self._waiting)
            return self._waiting.popleft() if self._waiting else None


class Loader:
    """Knows the loads under way, so that two requests of a tenant for one chunk cause one, and keeps what they decoded. Thread-safe.

    Parameters
    ----------
    n_threads : int
        Lanes that are served at once.
    timeout_s : float
        Most seconds that a fetch may take.
    codec_of : function
        Finds the codec of a stored chunk, with the tables of its calibrated stages.
    """

    def __init__(
        self,
        identity: ModelIdentity,
        device: str,
        device_tier: DeviceTier,
        n_threads: int = 4,
        timeout_s: float = 5.0,
        codec_of: CodecOf = pipeline_of,
    ) -> None:
        self._codec_of = codec_of
        self._identity, self._device, self._device_tier, self._timeout_s = identity, device, device_tier, timeout_s
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="load")
        self._lock = threading.Lock()
        self._flights: dict[TenantKey, StoredSource] = {}

    def lane(self, store: StoreAPI) -> Lane:
        """Return a new lane for one request."""
        return Lane(self._pool, store, self._timeout_s)

    def hold(self, tenant: str, key: ChunkKey, n_tokens: int) -> StoredSource:
        """Return the source of a chunk, the same for all who hold it at one time; whoever holds it adds it to a lane and releases it."""
        with self._lock:
            source = self._flights.get((tenant, key))
            if source is not None and not source.failure:
                source.n_holders += 1
                return source
            source = self._flights[tenant, key] = StoredSource(key, self._identity, n_tokens, self._device, self._codec_of)
            return source

    def release(self, tenant: str, source: StoredSource) -> None:
        """Say that one holder needs a source no more; without holders, its fetch ends behind the part under way."""
        with self._lock:
            source.n_holders -= 1
            if not source.n_holders and self._flights.get((tenant, source.key)) is source:
                del self._flights[tenant, source.key]

    def keep(self, tenant: str, source: StoredSource) -> None:
        """Put a passage that has arrived into the device tier, where only the same tenant finds it."""
        kv, tier = source.decoded(), self._device_tier
        if kv is not None and tier.takes(sum(chunk.nbytes for chunk in kv)) and not tier.nbytes((tenant, source.key)):
            # Raw chunks alias the store's memory, which a copy of our own lets go.
            tier.put((tenant, source.key), tuple(chunk.copy() for chunk in kv))

    def close(self) -> None:
        """Stop taking fetches; those under way end by their deadlines."""
        self._pool.shutdown(wait=False, cancel_futures=True)
