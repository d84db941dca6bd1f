"""The context service of several workers together: the same calls, each handed on to the worker that is best placed to answer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from threading import Lock
from typing import Any

import grpc

from kvclient.messages import report_from
from kvclient.usual import Usual
from kvproto.v1 import context_pb2 as pb
from kvproto.v1 import context_pb2_grpc as pb_grpc
from kvstore.server.access.auth import Authenticate
from kvworker.route.board import Board
from kvworker.route.forward import Forwarder, Request
from kvworker.route.learn import learn
from kvworker.route.links import Links
from kvworker.route.names import Names
from kvworker.route.turn import Turn

_MOST_REQUESTS = 4096


class Front(pb_grpc.ContextServiceServicer):
    """Serves every tenant's calls from the workers of a board; they check the caller's token once more."""

    def __init__(self, board: Board, links: Links, authenticate: Authenticate) -> None:
        self._board, self._authenticate = board, authenticate
        self._forwarder, self._names = Forwarder(board, links), Names()
        self._usual = Usual()  # of the time to the first token
        self._answered_by: OrderedDict[tuple[str, str], str] = OrderedDict()  # by tenant and request; "" is the tenant's latest
        self._lock = Lock()

    def Ask(self, request: pb.AskRequest, context: grpc.ServicerContext) -> Iterator[pb.AskResponse]:  # noqa: N802
        """Stream an answer from the worker that has most of it at hand, weighed against its queue."""
        tenant = self._authenticate(context.invocation_metadata()).tenant
        call = Request("Ask", request, self._names.wanted(tenant, request.passage_ids), _token_of, usual=self._usual)
        for turn, response in self._forwarder.stream(call, context):
            if response.HasField("report"):
                self._learn(tenant, request, response.report, turn)
            yield response

    def Ingest(self, request: pb.IngestRequest, context: grpc.ServicerContext) -> Iterator[pb.IngestResponse]:  # noqa: N802
        """Have one worker read a document."""
        self._authenticate(context.invocation_metadata())
        for _, response in self._forwarder.stream(Request("Ingest", request, same=_passage_of), context):
            yield response

    def Passages(self, request: pb.PassagesRequest, context: grpc.ServicerContext) -> Iterator[pb.PassagesResponse]:  # noqa: N802
        """Stream the tenant's passages."""
        self._authenticate(context.invocation_metadata())
        for _, response in self._forwarder.stream(Request("Passages", request), context):
            yield response

    def Resolve(self, request: pb.ResolveRequest, context: grpc.ServicerContext) -> pb.ResolveResponse:  # noqa: N802
        """Return passages with the keys of their chunks."""
        return self._one("Resolve", request, context)  # type: ignore[no-any-return]

    def Forget(self, request: pb.ForgetRequest, context: grpc.ServicerContext) -> pb.ForgetResponse:  # noqa: N802
        """Take a document back; copies that other workers have at hand are out of reach with it, and leave with their next lookup."""
        return self._one("Forget", request, context)  # type: ignore[no-any-return]

    def Info(self, request: pb.InfoRequest, context: grpc.ServicerContext) -> pb.InfoResponse:  # noqa: N802
        """Say what the workers serve."""
        return self._one("Info", request, context)  # type: ignore[no-any-return]

    def ExplainAnswer(self, request: pb.ExplainAnswerRequest, context: grpc.ServicerContext) -> pb.ExplainAnswerResponse:  # noqa: N802
        """Have the worker that answered say what it decided."""
        tenant = self._authenticate(context.invocation_metadata()).tenant
        with self._lock:
            name = self._answered_by.get((tenant, request.request_id), "")
        return self._forwarder.one(Request("ExplainAnswer", request, only=name), context)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Hand on no more calls."""
        self._forwarder.close()

    def _one(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        """Hand on a call that any worker answers alike."""
        self._authenticate(context.invocation_metadata())
        return self._forwarder.one(Request(method, request), context)

    def _learn(self, tenant: str, request: pb.AskRequest, report: pb.Report, turn: Turn) -> None:
        """Take in what a report says of who holds what, and how fast it came."""
        learn(self._board, self._names, turn, tenant, request.passage_ids, report_from(report))
        with self._lock:
            for request_id in (report.request_id, ""):
                self._answered_by[tenant, request_id] = turn.name
                self._answered_by.move_to_end((tenant, request_id))
            while len(self._answered_by) > _MOST_REQUESTS:
                self._answered_by.popitem(last=False)


def _token_of(response: pb.AskResponse) -> object:
    """Return what two workers answer alike: the tokens; times differ."""
    return response.token.id if response.HasField("token") else "report"


def _passage_of(response: pb.IngestResponse) -> object:
    """Return what two workers answer alike: the passages; one finds stored what another computed."""
    return response.passage.id
