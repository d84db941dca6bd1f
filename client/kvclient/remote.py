"""StoreAPI over the network: what an embedded store does, done by one elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import TypeVar

from kvclient import wire
from kvclient.channel import ClientTLS, bearer, open_channel
from kvclient.lanes.choice import LaneName, Lanes
from kvclient.lanes.frames import Found
from kvclient.lanes.grpc_lane import GrpcLane
from kvclient.lanes.lane import Lane
from kvclient.on_behalf import on_behalf
from kvclient.retry import Deadline, Retry
from kvclient.status import answered, typed
from kvproto.v1 import store_pb2 as pb
from kvproto.v1.store_pb2_grpc import StoreServiceStub
from kvstore.core.api import BlobReader, Entry, Explanation, Hit, PutNote, PutReceipt, Scope, StoreStats
from kvstore.core.blob import Buffer, blob_nbytes, header_nbytes
from kvstore.core.epochs import EpochAnswer, EpochBook
from kvstore.core.errors import CorruptError, FormatError, IdentityError, KVError, TierUnavailableError, UnsupportedError
from kvstore.core.key import ChunkKey
from kvstore.core.landing import Landing
from kvstore.core.pool import BufferPool
from kvstore.core.reading import PartReader

T = TypeVar("T")

logger = logging.getLogger(__name__)

MAX_BLOB_NBYTES = 1 << 30
POOL_NBYTES = 256 << 20
_SCRUB_TIMEOUT_S = 5.0
_DAMAGE = (CorruptError, FormatError, IdentityError)


class RemoteStore:
    """Implements `StoreAPI` for the tenant that the token stands for. Thread-safe; raises nothing but KVError.

    Chunks travel by the fastest lane that client and store agree on; everything else by gRPC.

    Parameters
    ----------
    address : str
        host:port of a store server.
    token : str
        Bearer token; `kvclient.channel.discover_token` finds one.
    tls : ClientTLS or None
        None sends plain text, the token included: for this machine or a private network.
    timeout_s : float
        Deadline of every call that isn't given another one, retries included.
    retry : Retry or None
        How to try again what may be tried again; None for the default.
    max_blob_bytes : int
        Largest chunk this client allocates memory for.
    lane : str
        "auto", or the only one to use: "shm", "tcp" or "grpc".
    pool : BufferPool or None
        Memory that chunks land in; None keeps up to 256 MiB for reuse.
    socket_buffer_bytes : int or None
        Buffer of each TCP connection; None takes 256 KiB on loopback and what the store says elsewhere.
    stripes : int or None
        TCP connections that carry a large chunk together; None takes one on loopback and two elsewhere.
    """

    def __init__(
        self,
        address: str,
        token: str,
        tls: ClientTLS | None = None,
        timeout_s: float = 30.0,
        retry: Retry | None = None,
        max_blob_bytes: int = MAX_BLOB_NBYTES,
        lane: LaneName = "auto",
        pool: BufferPool | None = None,
        socket_buffer_bytes: int | None = None,
        stripes: int | None = None,
    ) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._retry = retry or Retry()
        self._metadata = bearer(token)
        self._channel = open_channel(address, tls)
        self._stub = StoreServiceStub(self._channel)  # type: ignore[no-untyped-call]
        pool = pool or BufferPool(POOL_NBYTES)
        grpc_lane = GrpcLane(self._channel, self._metadata, pool, max_blob_bytes)
        self._lanes = Lanes(address, self._open_lane, grpc_lane, tls, lane, pool, max_blob_bytes, socket_buffer_bytes, stripes)

    def lane(self) -> str:
        """Return the name of the lane that chunks travel by now."""
        return self._lanes.take(time.monotonic() + self._timeout_s).name

    def lookup(self, keys: Sequence[ChunkKey], lease_s: float = 0.0, timeout_s: float | None = None) -> list[Hit]:
        """Return one hit per key, in order; one round trip for up to 16384 keys, each within `timeout_s`."""
        starts = range(0, len(keys), wire.MAX_KEYS)
        return list(chain.from_iterable(self._lookup_batch(keys[at : at + wire.MAX_KEYS], lease_s, timeout_s) for at in starts))

    def get(self, key: ChunkKey, timeout_s: float | None = None) -> BlobReader | None:
        """Open a chunk; the deadline covers the reading of its parts too. None is a miss."""
        return self.get_batch([key], timeout_s)[0]

    def get_batch(self, keys: Sequence[ChunkKey], timeout_s: float | None = None) -> list[BlobReader | None]:
        """Open several chunks in one round trip; the deadline covers the reading of their parts too. None is a miss."""
        if not keys:
            return []
        answers = self._again(lambda left_s: self._with_lane(left_s, lambda lane, deadline: lane.get(keys, deadline)), timeout_s)
        return self._readers(keys, answers)

    def view(self, key: ChunkKey, timeout_s: float | None = None) -> BlobReader | None:
        """Open a chunk in the memory that the store shares, and copy nothing; None is a miss.

        Parts are views of that memory: valid until the reader is closed; the store takes it back after 20 to 30 s. Raises
        UnsupportedError on another lane than shm.
        """

        def ask(lane: Lane, deadline: float) -> list[tuple[Found, Landing | None]]:
            if lane.name != "shm":
                raise UnsupportedError(f"lane {lane.name} shares no memory; use get")
            return lane.view([key], deadline)  # type: ignore[attr-defined, no-any-return]

        return self._readers([key], self._again(lambda left_s: self._with_lane(left_s, ask), timeout_s))[0]

    def put(self, blob: Buffer, note: PutNote) -> PutReceipt:
        """Send a whole blob and return when the store has verified and published it; the lane says how often its bytes are copied."""
        nbytes = header_nbytes(blob)
        if blob_nbytes(blob) != len(blob):
            raise FormatError(f"the chunk should have {blob_nbytes(blob)} B, got {len(blob)} B")
        return self._again(lambda left_s: self._with_lane(left_s, lambda lane, deadline: lane.put(blob, nbytes, note, deadline)))

    def delete(self, keys: Sequence[ChunkKey]) -> int:
        """Remove chunks; a count after a retry may miss what the first try removed."""
        return sum(self._delete_batch(keys[at : at + wire.MAX_KEYS]) for at in range(0, len(keys), wire.MAX_KEYS))

    def invalidate(self, scope: Scope) -> int:
        """Make a scope a miss and return its new epoch; never tried again, because each try is another epoch."""
        return int(self._unary(self._stub.Invalidate, wire.scope_to_wire(scope), self._timeout_s).epoch)

    def agree(self, at_least: EpochBook, known_digest: bytes = b"", timeout_s: float | None = None) -> EpochAnswer:
        """Raise epochs to at least these and return all of one's own; `epochs` is None where `known_digest` still stands for them."""
        raised = wire.epochs_to_wire(at_least)
        while len(raised) > wire.MAX_EPOCHS:
            self._agree(pb.EpochsRequest(at_least=raised[: wire.MAX_EPOCHS], known_digest=known_digest), timeout_s)
            raised = raised[wire.MAX_EPOCHS :]
        return self._agree(pb.EpochsRequest(at_least=raised, known_digest=known_digest), timeout_s)

    def _agree(self, request: pb.EpochsRequest, timeout_s: float | None) -> EpochAnswer:
        """Make one call to agree on epochs."""

        def ask(left_s: float) -> EpochAnswer:
            with typed():
                stream = self._stub.Epochs(request, timeout=left_s, metadata=on_behalf(self._metadata))
                try:
                    return wire.epoch_answer_from_wire(stream)
                finally:
                    stream.cancel()

        return self._again(ask, timeout_s)

    def entries(self, limit: int = 1000) -> Iterator[Entry]:
        """Iterate over at most `limit` stored chunks, most recently used first."""
        request = pb.ListRequest(limit=max(0, min(limit, wire.MAX_ENTRIES)))
        with typed():
            stream = self._stub.List(request, timeout=self._timeout_s, metadata=on_behalf(self._metadata))
            try:
                yield from map(wire.entry_from_wire, stream)
            finally:
                stream.cancel()

    def stats(self) -> StoreStats:
        """Return counters and tier use."""
        return wire.stats_from_wire(self._again(lambda left_s: self._unary(self._stub.Stats, pb.StatsRequest(), left_s)))

    def explain(self, key: ChunkKey) -> Explanation:
        """Say why a chunk is or is not served."""
        request = pb.ExplainRequest(key=wire.key_to_wire(key))
        return wire.explanation_from_wire(self._again(lambda left_s: self._unary(self._stub.Explain, request, left_s)))

    def scrub(self, key: ChunkKey) -> None:
        """Have the store verify its copies of a chunk that came damaged; what it finds is in its log and counters."""
        with suppress(KVError):
            self._unary(self._stub.Scrub, pb.ScrubRequest(keys=[wire.key_to_wire(key)]), min(self._timeout_s, _SCRUB_TIMEOUT_S))

    def close(self) -> None:
        """Close lanes and channel; what is still being read ends with an error."""
        self._lanes.close()
        self._channel.close()

    def _readers(self, keys: Sequence[ChunkKey], answers: Sequence[tuple[Found, Landing | None]]) -> list[BlobReader | None]:
        """Return a reader per chunk that is there; one whose header is damaged closes all of them and raises."""
        readers: list[BlobReader | None] = []
        try:
            for key, (found, landing) in zip(keys, answers, strict=True):
                readers.append(_RemoteReader(self, landing, key, found.text) if landing is not None else None)
        except BaseException:
            for _, landing in answers:
                if landing is not None:
                    landing.close()
            raise
        return readers

    def _with_lane(self, left_s: float, operation: Callable[[Lane, float], T]) -> T:
        """Do something on the lane of the hour, and note when it does not answer."""
        deadline = time.monotonic() + left_s
        lane = self._lanes.take(deadline)
        try:
            return operation(lane, deadline)
        except TierUnavailableError as error:
            self._lanes.failed(lane, error)
            raise

    def _open_lane(self, deadline: float) -> pb.OpenLaneResponse:
        answer: pb.OpenLaneResponse = self._unary(self._stub.OpenLane, pb.OpenLaneRequest(), max(0.001, deadline - time.monotonic()))
        return answer

    def _lookup_batch(self, keys: Sequence[ChunkKey], lease_s: float, timeout_s: float | None) -> list[Hit]:
        """Look up one message's worth of keys; an answer for other keys raises KVError."""
        request = pb.LookupRequest(keys=map(wire.key_to_wire, keys), lease_s=lease_s)
        answer = self._again(lambda left_s: self._unary(self._stub.Lookup, request, left_s), timeout_s)
        hits = list(map(wire.hit_from_wire, answer.hits))
        if [hit.key for hit in hits] != list(keys):
            raise KVError(f"{self.address} answered a lookup of {len(keys)} keys with {len(hits)} hits that are not theirs")
        return hits

    def _delete_batch(self, keys: Sequence[ChunkKey]) -> int:
        """Delete one message's worth of keys."""
        request = pb.DeleteRequest(keys=map(wire.key_to_wire, keys))
        return int(self._again(lambda left_s: self._unary(self._stub.Delete, request, left_s)).deleted)

    def _unary(self, method: Callable[..., T], request: object, left_s: float) -> T:
        """Make one call."""
        with typed():
            return answered(method(request, timeout=left_s, metadata=on_behalf(self._metadata)))

    def _again(self, operation: Callable[[float], T], timeout_s: float | None = None) -> T:
        """Run an idempotent operation, trying again as `retry` says."""
        return self._retry.call(operation, Deadline.after(self._timeout_s if timeout_s is None else timeout_s))


class _RemoteReader(PartReader):
    """A chunk from a remote store; damage is told to the store, which takes a damaged copy out of use."""

    def __init__(self, store: RemoteStore, landing: Landing, key: ChunkKey, tier: str) -> None:
        self._store, self._key = store, key
        try:
            super().__init__(landing, key, tier)
        except _DAMAGE:
            store.scrub(key)
            raise

    def part(self, index: int) -> memoryview:
        """Return part `index`, waiting for it; raises CorruptError, DeadlineError or TierUnavailableError."""
        try:
            return super().part(index)
        except _DAMAGE:
            self._store.scrub(self._key)
            raise
