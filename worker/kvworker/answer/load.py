"""Fetch stored chunks beside the model: each source waits for the layer group it is asked for, and for nothing else."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError

from kvstore.core.api import BlobReader, StoreAPI
from kvstore.core.blob import key_of
from kvstore.core.errors import ClosedError, IdentityError, KVError
from kvstore.core.identity import ModelIdentity
from kvstore.core.key import ChunkKey
from kvstore.core.manifest import Manifest
from kvworker.answer.device_tier import DeviceTier
from kvworker.chunk import KVChunk, PassageKV
from kvworker.codec.pipeline import check_geometry, decode_part
from kvworker.engine.engine import LoadFailed

TIMEOUT = "timeout"
_Part = tuple[Manifest, memoryview]


class StoredSource:
    """A chunk on its way from the store; implements `kvworker.engine.engine.ChunkSource`.

    `tier`, `nbytes` and `seconds` describe the fetch once it has arrived; `wait_s` is how long the model waited for it. `failure` says
    why it could not be had.
    """

    def __init__(self, key: ChunkKey, identity: ModelIdentity, n_tokens: int, deadline: float, device: str) -> None:
        self.key = key
        self.tier, self.nbytes, self.seconds, self.wait_s, self.failure = "", 0, 0.0, 0.0, ""
        self._identity, self._n_tokens, self._deadline, self._device = identity, n_tokens, deadline, device
        self._parts: list[Future[_Part]] = [Future() for _ in identity.layout.groups]
        self._decoded: list[KVChunk | None] = [None] * len(identity.layout.groups)

    def group(self, index: int) -> KVChunk:
        """Return the chunk of layer group `index`, waiting for its bytes; raise LoadFailed past the deadline or on any error."""
        try:
            manifest, data = self._wait(index)
            chunk = decode_part(manifest, index, data, self._device)
        except FutureTimeoutError as error:
            self.failure = TIMEOUT
            raise LoadFailed(f"chunk {self.key}: layer group {index} did not arrive in time") from error
        except KVError as error:
            self.failure = self.failure or str(error) or type(error).__name__
            raise LoadFailed(f"chunk {self.key}: {error}") from error
        self._decoded[index] = chunk
        return chunk

    @property
    def has_arrived(self) -> bool:
        """Whether every part is here: only then `tier`, `nbytes` and `seconds` tell what a read costs."""
        return all(part.done() and part.exception() is None for part in self._parts)

    def decoded(self) -> PassageKV | None:
        """Return the whole passage if every layer group was asked for, else None."""
        chunks = tuple(chunk for chunk in self._decoded if chunk is not None)
        return chunks if len(chunks) == len(self._decoded) else None

    def fetch(self, store: StoreAPI) -> None:
        """Read the chunk part by part and wake whoever waits; runs on a loader thread."""
        started = time.perf_counter()
        try:
            reader = store.get(self.key, timeout_s=max(0.001, self._deadline - time.monotonic()))
            if reader is None:
                raise LoadFailed("the chunk is no longer stored")
            self._read(reader, started)
        except Exception as error:
            self.fail(error)

    def _wait(self, index: int) -> _Part:
        """Return a part's manifest and bytes once they are here; the wait counts, however it ends."""
        started = time.perf_counter()
        try:
            return self._parts[index].result(timeout=max(0.0, self._deadline - time.monotonic()))
        finally:
            self.wait_s += time.perf_counter() - started

    def _read(self, reader: BlobReader, started: float) -> None:
        """Check whose chunk it is and hand out its parts; who gets the last one finds `seconds` complete."""
        try:
            manifest = reader.manifest
            check_geometry(manifest, self._identity, self._n_tokens)
            if key_of(manifest) != self.key:
                raise IdentityError(f"chunk {key_of(manifest)} came where {self.key} was asked for")
            self.tier, self.nbytes = reader.tier, reader.nbytes
            for index, part in enumerate(self._parts):
                data = reader.part(index)
                self.seconds = time.perf_counter() - started
                part.set_result((manifest, data))
        finally:
            reader.close()

    def fail(self, error: Exception) -> None:
        """Give every part that has not arrived the same error; what is no KVError of ours becomes LoadFailed."""
        known = error if isinstance(error, KVError) else LoadFailed(f"{type(error).__name__}: {error}")
        self.failure = str(known) or type(known).__name__
        for part in self._parts:
            if not part.done():
                part.set_exception(known)


class DeviceSource:
    """A passage that device memory holds decoded; implements `kvworker.engine.engine.ChunkSource`."""

    def __init__(self, kv: PassageKV) -> None:
        self.kv = kv

    def group(self, index: int) -> KVChunk:
        """Return the chunk of layer group `index` at once."""
        return self.kv[index]


class Loader:
    """Starts fetches on a few threads, first asked first served, and keeps what they decoded in the device tier.

    A fetch reads its chunk to the end once it has begun, so sources never wait for each other in a circle.
    """

    def __init__(self, identity: ModelIdentity, device: str, device_tier: DeviceTier, n_threads: int = 4) -> None:
        self._identity, self._device, self._device_tier = identity, device, device_tier
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="load")

    def start(self, store: StoreAPI, key: ChunkKey, n_tokens: int, timeout_s: float) -> StoredSource:
        """Begin to fetch a chunk; its source raises LoadFailed `timeout_s` seconds from now if it is not there by then."""
        source = StoredSource(key, self._identity, n_tokens, time.monotonic() + timeout_s, self._device)
        try:
            self._pool.submit(source.fetch, store)
        except RuntimeError:  # the pool was shut down
            source.fail(ClosedError("the worker is closing"))
        return source

    def keep(self, tenant: str, source: StoredSource) -> None:
        """Put a passage that was decoded completely into the device tier, where only the same tenant finds it."""
        kv = source.decoded()
        if kv is not None:  # raw chunks alias the store's memory, which a copy of our own lets go
            self._device_tier.put((tenant, source.key), tuple(KVChunk(chunk.k.clone(), chunk.v.clone()) for chunk in kv))

    def close(self) -> None:
        """Stop taking fetches; those under way end by their deadlines."""
        self._pool.shutdown(wait=False, cancel_futures=True)
