"""The context service on the wire: messages in, `Worker` calls, messages out. Errors leave as KVError; the server's guard names them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import grpc

from kvclient.records import AnswerExplanation, Report, Token
from kvclient.records import Passage as PassageRecord
from kvclient.wire import key_to_wire
from kvproto.v1 import context_pb2 as pb
from kvproto.v1 import context_pb2_grpc as pb_grpc
from kvstore.core import calling
from kvstore.core.api import StoreAPI
from kvstore.core.errors import InvalidInputError
from kvstore.server.access.auth import Authenticate
from kvworker.answer.answer import Question
from kvworker.answer.report import passage_record
from kvworker.engine.sampling import Sampling
from kvworker.ingest.passages import ALONE, AUTO, DOCUMENT
from kvworker.ingest.steps import BOTH
from kvworker.serve.runtime import Caller, Worker

StoreOf = Callable[[str, str], StoreAPI]
"""From a tenant and its bearer token to the store as that tenant sees it."""

MAX_PASSAGES = 4096
_DEFAULT_MAX_TOKENS = 256
_ASK_AS: dict[int, str] = {pb.READ_AS_UNSPECIFIED: AUTO, pb.READ_AS_DOCUMENT: DOCUMENT, pb.READ_AS_ALONE: ALONE}
_INGEST_AS: dict[int, str] = {**_ASK_AS, pb.READ_AS_UNSPECIFIED: DOCUMENT, pb.READ_AS_BOTH: BOTH}
_REPORTED = {"": pb.READ_AS_UNSPECIFIED, DOCUMENT: pb.READ_AS_DOCUMENT, ALONE: pb.READ_AS_ALONE}


class ContextServicer(pb_grpc.ContextServiceServicer):
    """Serves every tenant's calls from one `Worker`; `info` says what it is."""

    def __init__(self, worker: Worker, authenticate: Authenticate, store_of: StoreOf, info: pb.InfoResponse) -> None:
        self._worker, self._authenticate, self._store_of, self._info = worker, authenticate, store_of, info

    def _caller(self, context: grpc.ServicerContext) -> Caller:
        """Return who calls; raises AuthError."""
        metadata = context.invocation_metadata()
        tenant = self._authenticate(metadata).tenant
        calling.begin_request()
        calling.work_for(tenant)
        token = next(str(value) for key, value in metadata if key == "authorization").split(" ", 1)[1].strip()
        return Caller(tenant, self._store_of(tenant, token))

    def Ingest(self, request: pb.IngestRequest, context: grpc.ServicerContext) -> Iterator[pb.IngestResponse]:  # noqa: N802
        """Read one document; answer per passage."""
        caller = self._caller(context)
        _check_count(len(request.passages))
        for done in self._worker.ingest(caller, request.source, list(request.passages), _read_as(request.read_as, _INGEST_AS)):
            yield pb.IngestResponse(
                passage=_ref(passage_record(done.passage)),
                computed=done.computed,
                nbytes=done.nbytes,
                n_passages=done.n_passages,
                tokens_read=done.tokens_read,
            )

    def Ask(self, request: pb.AskRequest, context: grpc.ServicerContext) -> Iterator[pb.AskResponse]:  # noqa: N802
        """Stream an answer, then its report."""
        caller = self._caller(context)
        if len(request.passage_ids) > MAX_PASSAGES:
            raise InvalidInputError(f"{len(request.passage_ids)} passages; a question names at most {MAX_PASSAGES}")
        n_tokens = request.max_tokens or min(_DEFAULT_MAX_TOKENS, self._worker.settings.max_new_tokens)
        sampling = Sampling(max_new_tokens=n_tokens, temperature=request.temperature, seed=request.seed)
        read_as = _read_as(request.read_as, _ASK_AS)
        passages, target_s = tuple(request.passage_ids), request.ttft_target_s
        question = Question(passages, request.question, sampling, request.policy, request.planner, read_as, target_s)
        for event in self._worker.ask(caller, question):
            if isinstance(event, Token):
                yield pb.AskResponse(token=pb.Token(id=event.id, text=event.text))
            else:
                yield pb.AskResponse(report=_report(event))

    def Resolve(self, request: pb.ResolveRequest, context: grpc.ServicerContext) -> pb.ResolveResponse:  # noqa: N802
        """Return passages with the keys of their chunks."""
        caller = self._caller(context)
        _check_count(len(request.passage_ids))
        found = self._worker.resolve(caller, list(request.passage_ids), _read_as(request.read_as, _ASK_AS))
        rows = [pb.ResolvedPassage(passage=_ref(passage_record(p)), key=key_to_wire(key), token_ids=p.token_ids) for p, key in found]
        return pb.ResolveResponse(passages=rows)

    def Passages(self, request: pb.PassagesRequest, context: grpc.ServicerContext) -> Iterator[pb.PassagesResponse]:  # noqa: N802
        """Stream the tenant's passages."""
        tenant = self._caller(context).tenant
        for passage in self._worker.catalog.listing(tenant, request.source, request.limit or 1000):
            yield pb.PassagesResponse(passage=_ref(passage_record(passage)))

    def Forget(self, request: pb.ForgetRequest, context: grpc.ServicerContext) -> pb.ForgetResponse:  # noqa: N802
        """Take a document back."""
        caller = self._caller(context)
        if not request.source:
            raise InvalidInputError("forget needs the name of a document")
        return pb.ForgetResponse(n_chunks=self._worker.forget(caller, request.source))

    def ExplainAnswer(self, request: pb.ExplainAnswerRequest, context: grpc.ServicerContext) -> pb.ExplainAnswerResponse:  # noqa: N802
        """Say what was decided for an earlier question."""
        explanation: AnswerExplanation = self._worker.explain(self._caller(context).tenant, request.request_id)
        return pb.ExplainAnswerResponse(report=_report(explanation.report), lines=explanation.lines)

    def Info(self, request: pb.InfoRequest, context: grpc.ServicerContext) -> pb.InfoResponse:  # noqa: N802
        """Say what this worker serves."""
        self._caller(context)
        return self._info


def _read_as(asked: int, known: Mapping[int, str]) -> str:
    """Return a way to read as the worker calls it; one that is not known raises InvalidInputError."""
    if asked not in known:
        raise InvalidInputError(f"read_as {asked} is not known here")
    return known[asked]


def _check_count(n_passages: int) -> None:
    """Raise InvalidInputError for no passages or too many."""
    if not 1 <= n_passages <= MAX_PASSAGES:
        raise InvalidInputError(f"a request names 1 to {MAX_PASSAGES} passages, got {n_passages}")


def _ref(passage: PassageRecord) -> pb.PassageRef:
    """Return the message of a passage."""
    return pb.PassageRef(id=passage.id, source=passage.source, index=passage.index, n_tokens=passage.n_tokens, preview=passage.preview)


def _report(report: Report) -> pb.Report:
    """Return the message of a report."""
    rows = [
        pb.PassageReport(
            passage=_ref(row.passage),
            action=row.action,
            tier=row.tier,
            variant=row.variant,
            nbytes=row.nbytes,
            seconds=row.seconds,
            why=row.why,
            rows_recomputed=row.rows_recomputed,
            read_as=_REPORTED[row.read_as],
            reason=row.reason,
        )
        for row in report.passages
    ]
    return pb.Report(
        request_id=report.request_id,
        passages=rows,
        planner=report.planner,
        policy=report.policy,
        ttft_split_s=report.ttft_split_s,
        ttft_s=report.ttft_s,
        predicted_ttft_s=report.predicted_ttft_s,
        tokens_loaded=report.tokens_loaded,
        tokens_recomputed=report.tokens_recomputed,
        tokens_generated=report.tokens_generated,
        quality=report.quality,
        target=report.target,
    )
