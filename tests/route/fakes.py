"""Workers that answer by script, on real ports, behind a real front."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc

from kvclient import Larder
from kvclient.retry import Retry
from kvproto.v1 import context_pb2 as pb
from kvproto.v1 import context_pb2_grpc as pb_grpc
from kvstore.core.errors import KVError, NotFoundError, TierUnavailableError
from kvstore.server.config import AuthConfig, ServerConfig
from kvstore.server.grpc_server import RpcServer
from kvworker.route.board import Board, Decide
from kvworker.route.choose import PassageKey, WorkerState
from kvworker.route.fronted import Fronted
from kvworker.serve.registration import registration

TOKEN = "alpha-token-0123456789"
SERVER = ServerConfig(address="127.0.0.1:0", metrics_address="", drain_s=1.0, max_workers=8)
ANSWER = (5, 7, 11, 13)
PASSAGE_NBYTES = 1000


@dataclass
class Script(pb_grpc.ContextServiceServicer):
    """A worker that says these tokens, and may fail before one of them.

    `failing` is what it raises before token `fails_at`; "die" breaks the call off as a killed process does, "hang" waits for `gate`.
    """

    name: str
    tokens: Sequence[int] = ANSWER
    failing: KVError | str | None = None
    fails_at: int = 0
    asked: list[pb.AskRequest] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def Ask(self, request: pb.AskRequest, context: grpc.ServicerContext) -> Iterator[pb.AskResponse]:  # noqa: N802
        """Say the tokens, then a report in which every passage was loaded."""
        self.asked.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        context.add_callback(self.ended.set)
        for n, token in enumerate(self.tokens):
            if n == self.fails_at:
                self._fail(context)
            yield pb.AskResponse(token=pb.Token(id=token, text=str(token)))
        rows = [
            pb.PassageReport(passage=pb.PassageRef(id=f"{name:0>64}", n_tokens=4), action="load", tier="memory", nbytes=PASSAGE_NBYTES)
            for name in request.passage_ids
        ]
        yield pb.AskResponse(report=pb.Report(request_id=f"{self.name}-{len(self.asked)}", passages=rows, ttft_split_s={"load": 0.001}))

    def _fail(self, context: grpc.ServicerContext) -> None:
        if isinstance(self.failing, KVError):
            raise self.failing
        if self.failing == "die":
            context.cancel()
            raise TierUnavailableError("nobody hears this")
        if self.failing == "hang":
            self.entered.set()
            self.gate.wait(20)

    def Ingest(self, request: pb.IngestRequest, context: grpc.ServicerContext) -> Iterator[pb.IngestResponse]:  # noqa: N802
        """Say that every passage was computed here."""
        for n, text in enumerate(request.passages):
            if n == self.fails_at:
                self._fail(context)
            ref = pb.PassageRef(id=f"{n:064x}", source=request.source, index=n, n_tokens=len(text))
            yield pb.IngestResponse(passage=ref, computed=self.failing is None, nbytes=1, n_passages=len(request.passages))

    def Info(self, request: pb.InfoRequest, context: grpc.ServicerContext) -> pb.InfoResponse:  # noqa: N802
        """Say who it is."""
        self._fail(context)
        return pb.InfoResponse(model=self.name, namespace="00")

    def ExplainAnswer(self, request: pb.ExplainAnswerRequest, context: grpc.ServicerContext) -> pb.ExplainAnswerResponse:  # noqa: N802
        """Explain what it answered itself."""
        if not self.asked:
            raise NotFoundError("no request of yours was answered here")
        return pb.ExplainAnswerResponse(report=pb.Report(request_id=request.request_id), lines=[f"by {self.name}"])


@dataclass
class Scene:
    """Scripted workers, a front and a client of it."""

    board: Board
    larder: Larder
    servers: dict[str, RpcServer]

    def ask(self, *passages: str) -> list[int]:
        """Ask and return the tokens of the whole answer."""
        return [token.id for token in self.larder.ask(passages, "?").finish().tokens]


def in_order(states: Iterable[WorkerState], wanted: Mapping[PassageKey, int]) -> str | None:
    """Choose the first by name of those that take requests."""
    return min((state.name for state in states if state.is_serving and not state.is_draining), default=None)


@contextmanager
def fronted(*scripts: Script, decide: Decide = in_order) -> Iterator[Scene]:
    """Serve scripts and a front of them; the client itself tries nothing again."""
    with ExitStack() as stack:
        board, servers = Board(1 << 20, decide), {}
        for script in scripts:
            servers[script.name] = server = RpcServer(SERVER)
            server.start([registration(script)])
            stack.callback(server.drain)
            stack.callback(script.gate.set)
            board.join(script.name, server.address)
        tokens = Path(stack.enter_context(TemporaryDirectory())) / "tokens"
        tokens.write_text(f"alpha {TOKEN}\n")
        tokens.chmod(0o600)
        front = Fronted(SERVER, AuthConfig(), tokens, board)
        stack.callback(front.close)
        larder = stack.enter_context(Larder(front.address, TOKEN, timeout_s=20.0, retry=Retry(1)))
        yield Scene(board, larder, servers)
