"""The store service on the wire: messages in, StoreAPI calls, messages out. Errors leave as KVError; the guard gives them a status."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from kvclient import wire
from kvproto.v1 import store_pb2 as pb
from kvproto.v1 import store_pb2_grpc as pb_grpc
from kvstore.server.access.auth import TokenAuthenticator
from kvstore.server.access.entrance import Entrance
from kvstore.server.grpc_server import Registration, RpcServer
from kvstore.server.lanes.doors import Doors
from kvstore.server.lanes.grpc_lane import GrpcLaneServicer
from kvstore.server.service import BoundStore, StoreService


def register_store(service: StoreService, authenticate: TokenAuthenticator, server: RpcServer) -> Registration:
    """Open the lanes beside a server, which closes them with itself, and return the registration of the store service."""
    mode = server.config.lanes.shm
    is_shared = mode == "on" or (mode == "auto" and authenticate.admit_only_tenant())
    entrance = Entrance(service, authenticate, server.audit)
    doors = Doors(server.config, entrance, server.budget, server.watch, service.shared if is_shared else None, server.certificates)
    server.closers.append(doors.close)
    server.gauges |= {"lane_connections": lambda: doors.n_connections, "lanes_at_work": lambda: doors.n_at_work}
    servicer = StoreServicer(entrance, doors)
    lane = GrpcLaneServicer(entrance, server.budget)

    def add(server: grpc.Server) -> None:
        pb_grpc.add_StoreServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        server.add_generic_rpc_handlers((lane.handlers(),))

    return Registration(pb.DESCRIPTOR.services_by_name["StoreService"].full_name, add)


class StoreServicer(pb_grpc.StoreServiceServicer):
    """Serves every tenant's calls from one `StoreService`; the tenant is what the call's token stands for."""

    def __init__(self, entrance: Entrance, doors: Doors) -> None:
        self._entrance = entrance
        self._doors = doors

    def _bind(self, context: grpc.ServicerContext) -> BoundStore:
        """Return the store of the calling tenant, which has made one request more; raises AuthError or QuotaError."""
        store = self._entrance.bind(context)
        store.allowance.request()
        return store

    def Lookup(self, request: pb.LookupRequest, context: grpc.ServicerContext) -> pb.LookupResponse:  # noqa: N802
        """Return one hit per key."""
        store = self._entrance.bind(context)
        store.allowance.looks(len(request.keys))
        hits = store.lookup(wire.keys_from_wire(request.keys), request.lease_s)
        return pb.LookupResponse(hits=map(wire.hit_to_wire, hits))

    def OpenLane(self, request: pb.OpenLaneRequest, context: grpc.ServicerContext) -> pb.OpenLaneResponse:  # noqa: N802
        """Say which lanes there are, and let one connection in."""
        return self._doors.open_lane(self._entrance.caller(context))

    def Scrub(self, request: pb.ScrubRequest, context: grpc.ServicerContext) -> pb.ScrubResponse:  # noqa: N802
        """Verify every stored copy of chunks."""
        store = self._entrance.bind(context)
        store.allowance.request(max(1, len(request.keys)))
        return pb.ScrubResponse(damaged=store.scrub(wire.keys_from_wire(request.keys)))

    def Delete(self, request: pb.DeleteRequest, context: grpc.ServicerContext) -> pb.DeleteResponse:  # noqa: N802
        """Remove chunks."""
        store = self._entrance.bind(context)
        store.allowance.looks(len(request.keys))
        return pb.DeleteResponse(deleted=store.delete(wire.keys_from_wire(request.keys)))

    def Invalidate(self, request: pb.InvalidateRequest, context: grpc.ServicerContext) -> pb.InvalidateResponse:  # noqa: N802
        """Make a scope a miss; more than what one source says takes an admin."""
        own = self._bind(context)
        scope = wire.scope_from_wire(request)
        if scope.kind == "source":
            return pb.InvalidateResponse(epoch=own.invalidate(scope))
        with self._entrance.as_admin(context, "Invalidate", f"{scope.kind} {scope.value}") as store:
            return pb.InvalidateResponse(epoch=store.invalidate(scope))

    def Epochs(self, request: pb.EpochsRequest, context: grpc.ServicerContext) -> Iterator[pb.EpochsResponse]:  # noqa: N802
        """Agree on epochs, and stream the tenant's; no quota keeps a store from learning what is invalid."""
        answer = self._entrance.bind(context).agree(wire.epochs_from_wire(request.at_least), request.known_digest)
        yield from wire.epoch_answer_to_wire(answer)

    def List(self, request: pb.ListRequest, context: grpc.ServicerContext) -> Iterator[pb.ListResponse]:  # noqa: N802
        """Stream the tenant's chunks; it counts as a request for every 256 records that are looked at."""
        store = self._entrance.bind(context)
        store.allowance.looks(store.n_to_list)
        yield from map(wire.entry_to_wire, store.entries(min(request.limit, wire.MAX_ENTRIES)))

    def Stats(self, request: pb.StatsRequest, context: grpc.ServicerContext) -> pb.StatsResponse:  # noqa: N802
        """Return counters and tier use, which tell of every tenant: for admins."""
        with self._entrance.as_admin(context, "Stats") as store:
            return wire.stats_to_wire(store.stats())

    def Explain(self, request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:  # noqa: N802
        """Say why a chunk is or is not served."""
        return wire.explanation_to_wire(self._bind(context).explain(wire.key_from_wire(request.key)))
