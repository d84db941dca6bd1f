"""StoreAPI over gRPC: what an embedded store does, done by one elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import TypeVar

from kvclient import wire
from kvclient.channel import ClientTLS, bearer, open_channel
from kvclient.retry import Deadline, Retry
from kvclient.status import typed
from kvclient.stream import StreamReader, next_message, read_hit
from kvproto.v1 import store_pb2 as pb
from kvproto.v1.store_pb2_grpc import StoreServiceStub
from kvstore.core.api import Entry, Explanation, Hit, PutNote, PutReceipt, Scope, StoreStats
from kvstore.core.blob import Buffer, iter_pieces, key_of, parse_header
from kvstore.core.errors import KVError
from kvstore.core.key import ChunkKey

T = TypeVar("T")

MAX_BLOB_NBYTES = 1 << 30


class GrpcTransport:
    """Implements `StoreAPI` for the tenant that the token stands for. Thread-safe; raises nothing but KVError.

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
    """

    def __init__(
        self,
        address: str,
        token: str,
        tls: ClientTLS | None = None,
        timeout_s: float = 30.0,
        retry: Retry | None = None,
        max_blob_bytes: int = MAX_BLOB_NBYTES,
    ) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._retry = retry or Retry()
        self._max_blob_bytes = max_blob_bytes
        self._metadata = bearer(token)
        self._channel = open_channel(address, tls)
        self._stub = StoreServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def lookup(self, keys: Sequence[ChunkKey], lease_s: float = 0.0) -> list[Hit]:
        """Return one hit per key, in order; one round trip for up to 16384 keys."""
        starts = range(0, len(keys), wire.MAX_KEYS)
        return list(chain.from_iterable(self._lookup_batch(keys[at : at + wire.MAX_KEYS], lease_s) for at in starts))

    def get(self, key: ChunkKey, timeout_s: float | None = None) -> StreamReader | None:
        """Open a chunk; the deadline covers the reading of its parts too. None is a miss."""
        request = pb.GetRequest(key=wire.key_to_wire(key))
        return self._again(lambda left_s: self._open(key, request, left_s), timeout_s)

    def put(self, blob: Buffer, note: PutNote) -> PutReceipt:
        """Send a whole blob and return when the server has published it. Copies each piece three times on the way out."""
        key = key_of(parse_header(blob).manifest)
        head = pb.PutRequest(note=wire.note_to_wire(key, len(blob), note))

        def send(left_s: float) -> PutReceipt:
            pieces = (pb.PutRequest(piece=bytes(piece)) for piece in iter_pieces(blob, wire.PIECE_NBYTES))
            with typed():
                answer = self._stub.Put(chain((head,), pieces), timeout=left_s, metadata=self._metadata)
            return wire.receipt_from_wire(key, answer)

        return self._again(send)

    def delete(self, keys: Sequence[ChunkKey]) -> int:
        """Remove chunks; a count after a retry may miss what the first try removed."""
        return sum(self._delete_batch(keys[at : at + wire.MAX_KEYS]) for at in range(0, len(keys), wire.MAX_KEYS))

    def invalidate(self, scope: Scope) -> int:
        """Make a scope a miss and return its new epoch; never tried again, because each try is another epoch."""
        return int(self._unary(self._stub.Invalidate, wire.scope_to_wire(scope), self._timeout_s).epoch)

    def entries(self, limit: int = 1000) -> Iterator[Entry]:
        """Iterate over at most `limit` stored chunks, most recently used first."""
        request = pb.ListRequest(limit=max(0, min(limit, wire.MAX_ENTRIES)))
        with typed():
            stream = self._stub.List(request, timeout=self._timeout_s, metadata=self._metadata)
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

    def close(self) -> None:
        """Close the channel; what is still being read ends with an error."""
        self._channel.close()

    def _lookup_batch(self, keys: Sequence[ChunkKey], lease_s: float) -> list[Hit]:
        """Look up one message's worth of keys; an answer for other keys raises KVError."""
        request = pb.LookupRequest(keys=map(wire.key_to_wire, keys), lease_s=lease_s)
        hits = list(map(wire.hit_from_wire, self._again(lambda left_s: self._unary(self._stub.Lookup, request, left_s)).hits))
        if [hit.key for hit in hits] != list(keys):
            raise KVError(f"{self.address} answered a lookup of {len(keys)} keys with {len(hits)} hits that are not theirs")
        return hits

    def _delete_batch(self, keys: Sequence[ChunkKey]) -> int:
        """Delete one message's worth of keys."""
        request = pb.DeleteRequest(keys=map(wire.key_to_wire, keys))
        return int(self._again(lambda left_s: self._unary(self._stub.Delete, request, left_s)).deleted)

    def _open(self, key: ChunkKey, request: pb.GetRequest, left_s: float) -> StreamReader | None:
        """Begin one read and verify its header."""
        with typed():
            stream = self._stub.Get(request, timeout=left_s, metadata=self._metadata)
        try:
            announced = read_hit(next_message(stream), self._max_blob_bytes)
            return StreamReader(stream, key, *announced) if announced else None
        except KVError:
            stream.cancel()
            raise

    def _unary(self, method: Callable[..., T], request: object, left_s: float) -> T:
        """Make one call."""
        with typed():
            return method(request, timeout=left_s, metadata=self._metadata)

    def _again(self, operation: Callable[[float], T], timeout_s: float | None = None) -> T:
        """Run an idempotent operation, trying again as `retry` says."""
        return self._retry.call(operation, Deadline.after(self._timeout_s if timeout_s is None else timeout_s))
