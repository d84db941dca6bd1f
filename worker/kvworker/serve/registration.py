"""Say to a server that it offers the context service, whoever answers it; loads no model runtime."""

from __future__ import annotations

import grpc

from kvproto.v1 import context_pb2 as pb
from kvproto.v1 import context_pb2_grpc as pb_grpc
from kvstore.server.grpc_server import Registration


def registration(servicer: pb_grpc.ContextServiceServicer) -> Registration:
    """Return the context service for a server."""

    def add(server: grpc.Server) -> None:
        pb_grpc.add_ContextServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]

    return Registration(pb.DESCRIPTOR.services_by_name["ContextService"].full_name, add)
