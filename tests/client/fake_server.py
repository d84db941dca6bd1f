"""A server on loopback that answers both services from memory and misbehaves on demand."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np

from kvclient import wire
from kvclient.lanes.frames import Found, pack_found, parse_keys
from kvclient.lanes.grpc_lane import SERVICE
from kvclient.status import ERROR_KEY
from kvproto.v1 import context_pb2, context_pb2_grpc, store_pb2, store_pb2_grpc
from kvstore.core.api import Entry, Explanation, Hit, Scope, Status, StoreStats, TierStats
from kvstore.core.blob import build_blob
from kvstore.core.errors import KVError, NotFoundError
from kvstore.core.key import ChunkKey, Kind, content_key
from kvstore.core.manifest import FieldSpec, Manifest, PartSpec
from kvstore.core.stages import PipelineSpec, StageSpec

TOKEN = "a-token-of-the-tests"
NAMESPACE = bytes(range(32))
RAW = PipelineSpec((StageSpec("raw"),))
WORDS = ("mar", "ble", "\x1b[31m", ".")


class FakeServer(context_pb2_grpc.ContextServiceServicer, store_pb2_grpc.StoreServiceServicer):
    """Serves on a free port of loopback.

    Attributes
    ----------
    faults : dict
        Method -> errors to fail its next calls with, first to last.
    late_faults : dict
        Method -> error to fail with behind its first answer.
    stalls : set
        Methods that never answer.
    codecs : dict
        Passage id -> codec of its chunk, where it is not raw.
    calls : Counter
        How often each method was called.
    """

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.faults: dict[str, list[KVError]] = {}
        self.late_faults: dict[str, KVError] = {}
        self.stalls: set[str] = set()
        self.calls: Counter[str] = Counter()
        self.requests: dict[str, Any] = {}
        self.passages: dict[str, tuple[context_pb2.PassageRef, tuple[int, ...]]] = {}
        self.blobs: dict[ChunkKey, bytes] = {}
        self.codecs: dict[str, PipelineSpec] = {}
        self.scopes: list[Scope] = []
        self.health = b"\x08\x01"
        self.store_address = ""
        self.is_released = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(8))
        place = "127.0.0.1:0"
        self.port = self._server.add_secure_port(place, credentials) if credentials else self._server.add_insecure_port(place)

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def start(self, *, has_worker: bool = True) -> None:
        """Serve; without a worker there is a store only."""
        if has_worker:
            context_pb2_grpc.add_ContextServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        store_pb2_grpc.add_StoreServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        check: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(lambda request, context: self.health)
        lane: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Fetch": grpc.unary_unary_rpc_method_handler(self._fetch),
            "Get": grpc.unary_stream_rpc_method_handler(self._get),
        }
        for service, methods in (("grpc.health.v1.Health", {"Check": check}), (SERVICE, lane)):
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
        self._server.start()

    def stop(self) -> None:
        """Let stalled calls go and stop."""
        self.is_released.set()
        self._server.stop(None).wait()

    def _begin(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        """Count a call, check who calls, and misbehave if asked to."""
        self.calls[method] += 1
        self.requests[method] = request
        if ("authorization", f"Bearer {TOKEN}") not in [tuple(pair) for pair in context.invocation_metadata()]:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
        if method in self.stalls:
            self.is_released.wait(30)
        if self.faults.get(method):
            fail(context, self.faults[method].pop(0))

    def Ingest(self, request: context_pb2.IngestRequest, context: grpc.ServicerContext) -> Iterator[context_pb2.IngestResponse]:  # noqa: N802
        """Store a chunk for each passage; a token per word."""
        self._begin("Ingest", request, context)
        for index, text in enumerate(request.passages):
            ref, is_new = self.add_passage(request.source, index, text)
            nbytes = len(self.blobs[self.key_of(ref.id)])
            n_read = ref.n_tokens if is_new else 0
            yield context_pb2.IngestResponse(
                passage=ref, computed=is_new, nbytes=nbytes, n_passages=len(request.passages), tokens_read=n_read
            )
            if "Ingest" in self.late_faults:
                fail(context, self.late_faults["Ingest"])

    def Ask(self, request: context_pb2.AskRequest, context: grpc.ServicerContext) -> Iterator[context_pb2.AskResponse]:  # noqa: N802
        """Answer the same words to every question."""
        self._begin("Ask", request, context)
        refs = [self._find(name, context)[0] for name in request.passage_ids]
        for i, text in enumerate(WORDS):
            yield context_pb2.AskResponse(token=context_pb2.Token(id=i, text=text))
            if "Ask" in self.late_faults:
                fail(context, self.late_faults["Ask"])
        yield context_pb2.AskResponse(report=make_report(refs, request))

    def Resolve(self, request: context_pb2.ResolveRequest, context: grpc.ServicerContext) -> context_pb2.ResolveResponse:  # noqa: N802
        """Return keys and tokens."""
        self._begin("Resolve", request, context)
        found = [self._find(name, context) for name in request.passage_ids]
        rows = [
            context_pb2.ResolvedPassage(passage=ref, key=wire.key_to_wire(self.key_of(ref.id)), token_ids=token_ids)
            for ref, token_ids in found
        ]
        return context_pb2.ResolveResponse(passages=rows)

    def Passages(  # noqa: N802
        self, request: context_pb2.PassagesRequest, context: grpc.ServicerContext
    ) -> Iterator[context_pb2.PassagesResponse]:
        """List them."""
        self._begin("Passages", request, context)
        for ref, _ in list(self.passages.values())[: request.limit]:
            if request.source in ("", ref.source):
                yield context_pb2.PassagesResponse(passage=ref)

    def Forget(self, request: context_pb2.ForgetRequest, context: grpc.ServicerContext) -> context_pb2.ForgetResponse:  # noqa: N802
        """Forget a document's passages."""
        self._begin("Forget", request, context)
        gone = [name for name, (ref, _) in self.passages.items() if ref.source == request.source]
        for name in gone:
            del self.passages[name]
        return context_pb2.ForgetResponse(n_chunks=len(gone))

    def ExplainAnswer(  # noqa: N802
        self, request: context_pb2.ExplainAnswerRequest, context: grpc.ServicerContext
    ) -> context_pb2.ExplainAnswerResponse:
        """Know the request r-1 only."""
        self._begin("ExplainAnswer", request, context)
        if request.request_id not in ("", "r-1"):
            fail(context, NotFoundError(f"no request {request.request_id}"))
        refs = [ref for ref, _ in self.passages.values()]
        return context_pb2.ExplainAnswerResponse(report=make_report(refs, context_pb2.AskRequest()), lines=["loading was cheaper"])

    def Info(self, request: context_pb2.InfoRequest, context: grpc.ServicerContext) -> context_pb2.InfoResponse:  # noqa: N802
        """Say what is served."""
        self._begin("Info", request, context)
        return context_pb2.InfoResponse(
            model="tiny",
            namespace=NAMESPACE.hex(),
            device="cpu",
            codec="raw",
            max_context_tokens=512,
            store_address=self.store_address,
        )

    def _get(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Send chunks in pieces of 100 B."""
        self._begin("Get", request, context)
        keys, _ = parse_keys(request)
        yield pack_found(map(self._found, keys))
        blob = b"".join(self.blobs.get(key, b"") for key in keys)
        yield from (blob[at : at + 100] for at in range(0, len(blob), 100))

    def _fetch(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Say what there is and leave the chunks to `_get`."""
        self._begin("Fetch", request, context)
        head = pack_found(map(self._found, parse_keys(request)[0]))
        return len(head).to_bytes(4, "little") + b"\0" + head

    def Lookup(self, request: store_pb2.LookupRequest, context: grpc.ServicerContext) -> store_pb2.LookupResponse:  # noqa: N802
        """Say what there is."""
        self._begin("Lookup", request, context)
        return store_pb2.LookupResponse(hits=[wire.hit_to_wire(self._hit(key)) for key in wire.keys_from_wire(request.keys)])

    def Delete(self, request: store_pb2.DeleteRequest, context: grpc.ServicerContext) -> store_pb2.DeleteResponse:  # noqa: N802
        """Delete."""
        self._begin("Delete", request, context)
        gone = [self.blobs.pop(key, None) for key in wire.keys_from_wire(request.keys)]
        return store_pb2.DeleteResponse(deleted=sum(blob is not None for blob in gone))

    def Invalidate(  # noqa: N802
        self, request: store_pb2.InvalidateRequest, context: grpc.ServicerContext
    ) -> store_pb2.InvalidateResponse:
        """Note the scope."""
        self._begin("Invalidate", request, context)
        self.scopes.append(wire.scope_from_wire(request))
        return store_pb2.InvalidateResponse(epoch=len(self.scopes))

    def List(self, request: store_pb2.ListRequest, context: grpc.ServicerContext) -> Iterator[store_pb2.ListResponse]:  # noqa: N802
        """List the chunks."""
        self._begin("List", request, context)
        for key, blob in list(self.blobs.items())[: request.limit]:
            yield wire.entry_to_wire(Entry(key, "alone", 3, len(blob), "raw", ("memory", "disk"), "notes.txt"))

    def Stats(self, request: store_pb2.StatsRequest, context: grpc.ServicerContext) -> store_pb2.StatsResponse:  # noqa: N802
        """Report one tier that is up and one that is down."""
        self._begin("Stats", request, context)
        memory = TierStats("memory", sum(map(len, self.blobs.values())), 1 << 20, len(self.blobs), True, False)
        redis = TierStats("redis", 0, 0, 0, False, False)
        return wire.stats_to_wire(StoreStats({"hits": 3.0, "misses": 1.0}, (memory, redis)))

    def Explain(self, request: store_pb2.ExplainRequest, context: grpc.ServicerContext) -> store_pb2.ExplainResponse:  # noqa: N802
        """Explain."""
        self._begin("Explain", request, context)
        hit = self._hit(wire.key_from_wire(request.key))
        return wire.explanation_to_wire(Explanation(hit, 1, 2, ("memory: looked",)))

    def add_passage(self, source: str, index: int, text: str) -> tuple[context_pb2.PassageRef, bool]:
        """Store a passage's chunk; tell whether it is new."""
        token_ids = tuple(len(word) for word in text.split())
        key, blob = make_chunk(token_ids)
        ref = context_pb2.PassageRef(id=key.content.hex(), source=source, index=index, n_tokens=len(token_ids), preview=text[:20])
        is_new = key not in self.blobs
        self.blobs[key] = blob
        self.passages[ref.id] = ref, token_ids
        return ref, is_new

    def key_of(self, passage_id: str) -> ChunkKey:
        """Return the key of a passage's chunk."""
        return ChunkKey(NAMESPACE, bytes.fromhex(passage_id), self.codecs.get(passage_id, RAW).variant())

    def _find(self, name: str, context: grpc.ServicerContext) -> tuple[context_pb2.PassageRef, tuple[int, ...]]:
        """Return a passage by the start of its id or by name."""
        for ref, token_ids in self.passages.values():
            if ref.id.startswith(name) or f"{ref.source}#{ref.index}" == name:
                return ref, token_ids
        fail(context, NotFoundError(f"no passage {name}"))
        raise AssertionError("an ended call goes on")

    def _hit(self, key: ChunkKey) -> Hit:
        """Return what is known about a key."""
        blob = self.blobs.get(key)
        return Hit(key, Status.READY, "memory", len(blob)) if blob else Hit(key, Status.ABSENT, reason="never_stored")

    def _found(self, key: ChunkKey) -> Found:
        """Return the same as a lane tells it."""
        hit = self._hit(key)
        return Found(hit.status, hit.tier or hit.reason, hit.nbytes)


def fail(context: grpc.ServicerContext, error: KVError) -> None:
    """End a call the way a server of ours does; does not return."""
    context.set_trailing_metadata(((ERROR_KEY, type(error).__name__),))
    context.abort(grpc.StatusCode[error.code], str(error))


def make_chunk(token_ids: tuple[int, ...]) -> tuple[ChunkKey, bytes]:
    """Return the key and the blob of a chunk of two layers, one head and width 4, whose values count upwards."""
    content = content_key(NAMESPACE, Kind.ALONE, token_ids)
    shape = (2, 1, len(token_ids), 4)
    fields = tuple(FieldSpec(f"{side}.values", "float32", shape) for side in "kv")
    part = PartSpec(0, (0, 1), 1, 4, 4, fields)
    values = np.arange(2 * np.prod(shape), dtype="<f4").reshape(2, *shape)
    manifest = Manifest(NAMESPACE, content, Kind.ALONE, b"", len(token_ids), "float32", RAW, (part,))
    return ChunkKey(NAMESPACE, content, RAW.variant()), bytes(build_blob(manifest, [[values[0].tobytes(), values[1].tobytes()]]))


def make_report(refs: list[context_pb2.PassageRef], request: context_pb2.AskRequest) -> context_pb2.Report:
    """Return a report that loads every passage."""
    loaded = {"action": "load", "tier": "memory", "variant": "raw", "nbytes": 512, "seconds": 0.25, "why": "cheaper"}
    read_as = request.read_as or context_pb2.READ_AS_DOCUMENT
    rows = [context_pb2.PassageReport(passage=ref, read_as=read_as, **loaded) for ref in refs]  # type: ignore[arg-type]
    return context_pb2.Report(
        request_id="r-1",
        passages=rows,
        planner=request.planner or "min_cost",
        policy=request.policy or "none",
        ttft_split_s={"lookup": 0.125, "plan": 0.0, "load": 0.25, "prefill": 0.5},
        ttft_s=0.875,
        tokens_loaded=7,
        tokens_generated=len(WORDS),
        quality="unmeasured",
        target=f"a first token in {request.ttft_target_s:g} s" if request.ttft_target_s else "",
    )
