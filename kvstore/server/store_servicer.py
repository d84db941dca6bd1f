"""The store service on the wire: messages in, StoreAPI calls, messages out. Errors leave as KVError; the guard gives them a status."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import grpc
import numpy as np

from kvclient import wire
from kvproto.v1 import store_pb2 as pb
from kvproto.v1 import store_pb2_grpc as pb_grpc
from kvstore.core.api import Hit, Status
from kvstore.core.blob import iter_pieces, key_of, parse_header
from kvstore.core.errors import FormatError, IdentityError
from kvstore.server.auth import Authenticate
from kvstore.server.budget import ByteBudget
from kvstore.server.grpc_server import Registration
from kvstore.server.service import BoundStore, StoreService


def register_store(service: StoreService, authenticate: Authenticate, budget: ByteBudget) -> Registration:
    """Return the registration of the store service."""
    servicer = StoreServicer(service, authenticate, budget)
    return Registration(
        pb.DESCRIPTOR.services_by_name["StoreService"].full_name,
        partial(pb_grpc.add_StoreServiceServicer_to_server, servicer),
    )


class StoreServicer(pb_grpc.StoreServiceServicer):
    """Serves every tenant's calls from one `StoreService`; the tenant is what the call's token stands for."""

    def __init__(self, service: StoreService, authenticate: Authenticate, budget: ByteBudget) -> None:
        self._service = service
        self._authenticate = authenticate
        self._budget = budget

    def _bind(self, context: grpc.ServicerContext) -> BoundStore:
        """Return the store of the calling tenant; raises AuthError."""
        return self._service.bind(self._authenticate(context.invocation_metadata()))

    def Lookup(self, request: pb.LookupRequest, context: grpc.ServicerContext) -> pb.LookupResponse:  # noqa: N802
        """Return one hit per key."""
        hits = self._bind(context).lookup(wire.keys_from_wire(request.keys), request.lease_s)
        return pb.LookupResponse(hits=map(wire.hit_to_wire, hits))

    def Get(self, request: pb.GetRequest, context: grpc.ServicerContext) -> Iterator[pb.GetResponse]:  # noqa: N802
        """Stream a chunk: its description, then its bytes. Copies each piece twice: to bytes, and into the message."""
        store = self._bind(context)
        key, timeout_s = wire.key_from_wire(request.key), context.time_remaining()
        reader = store.read(key, timeout_s if timeout_s and math.isfinite(timeout_s) else None)
        if isinstance(reader, Hit):
            yield pb.GetResponse(hit=wire.hit_to_wire(reader))
            return
        with self._budget.lend(reader.nbytes):
            yield pb.GetResponse(hit=wire.hit_to_wire(Hit(key, Status.READY, reader.tier, reader.nbytes)))
            for piece in iter_pieces(reader.blob, wire.PIECE_NBYTES):
                yield pb.GetResponse(piece=bytes(piece))

    def Put(self, request_iterator: Iterator[pb.PutRequest], context: grpc.ServicerContext) -> pb.PutResponse:  # noqa: N802
        """Collect a chunk in one buffer, verify and publish it."""
        store = self._bind(context)
        note = _first_note(request_iterator)
        key = wire.key_from_wire(note.key)
        self._service.check_size(note.nbytes)
        with self._budget.lend(note.nbytes):
            blob = _collect(request_iterator, note.nbytes)
            held = key_of(parse_header(blob).manifest)
            if held != key:
                raise IdentityError(f"the chunk was announced as {key} and is {held}")
            return wire.receipt_to_wire(store.put(blob, wire.note_from_wire(note)))

    def Delete(self, request: pb.DeleteRequest, context: grpc.ServicerContext) -> pb.DeleteResponse:  # noqa: N802
        """Remove chunks."""
        return pb.DeleteResponse(deleted=self._bind(context).delete(wire.keys_from_wire(request.keys)))

    def Invalidate(self, request: pb.InvalidateRequest, context: grpc.ServicerContext) -> pb.InvalidateResponse:  # noqa: N802
        """Make a scope a miss."""
        return pb.InvalidateResponse(epoch=self._bind(context).invalidate(wire.scope_from_wire(request)))

    def List(self, request: pb.ListRequest, context: grpc.ServicerContext) -> Iterator[pb.ListResponse]:  # noqa: N802
        """Stream the tenant's chunks."""
        yield from map(wire.entry_to_wire, self._bind(context).entries(min(request.limit, wire.MAX_ENTRIES)))

    def Stats(self, request: pb.StatsRequest, context: grpc.ServicerContext) -> pb.StatsResponse:  # noqa: N802
        """Return counters and tier use."""
        return wire.stats_to_wire(self._bind(context).stats())

    def Explain(self, request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:  # noqa: N802
        """Say why a chunk is or is not served."""
        return wire.explanation_to_wire(self._bind(context).explain(wire.key_from_wire(request.key)))


def _first_note(requests: Iterator[pb.PutRequest]) -> pb.PutNote:
    """Return the note that opens a put; anything else raises FormatError."""
    first = next(requests, None)
    if first is None or first.WhichOneof("kind") != "note":
        raise FormatError("a put begins with its note")
    return first.note


def _collect(requests: Iterator[pb.PutRequest], nbytes: int) -> memoryview:
    """Return the pieces joined; a second note, an empty or oversized piece, or more or fewer bytes than announced raise FormatError.

    The buffer's pages are touched as pieces arrive, so a client that announces much and sends little costs little.
    """
    blob, at = np.empty(nbytes, np.uint8).data, 0
    for request in requests:
        piece = request.piece
        if request.WhichOneof("kind") != "piece" or not 0 < len(piece) <= wire.PIECE_NBYTES:
            raise FormatError(f"behind its note a put has pieces of 1 to {wire.PIECE_NBYTES} B, got {len(piece)} B")
        if at + len(piece) > nbytes:
            raise FormatError(f"more than the {nbytes} B that were announced")
        blob[at : at + len(piece)] = piece
        at += len(piece)
    if at != nbytes:
        raise FormatError(f"{nbytes} B were announced, {at} B came")
    return blob
