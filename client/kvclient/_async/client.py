"""The client of a RAG backend: text in, answers out; how calls travel and how often they are tried is not its caller's concern."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from types import TracebackType

import grpc.aio

from kvclient import requests
from kvclient._async.answer import AsyncAnswer
from kvclient._async.calls import AsyncCalls
from kvclient._async.services import AsyncServices
from kvclient._async.stores import AsyncStores
from kvclient.address import discover_address
from kvclient.channel import ClientTLS, bearer, discover_token
from kvclient.health import METHOD, REQUEST, as_bytes, check_serving
from kvclient.messages import explanation_from, info_from, ingested_from, passage_from, resolved_from
from kvclient.records import AnswerExplanation, Info, Ingested, IngestedPassage, Passage, ResolvedPassage
from kvclient.retry import Retry
from kvclient.stored import KeptArtifacts, StoredPassage, needed_artifacts, stored_passage, with_artifacts
from kvclient.turns import Turns
from kvproto.v1 import context_pb2
from kvstore.core.api import Scope


class AsyncLarder:
    """Ingests passages and asks questions over them.

        async with AsyncLarder() as larder:
            notes = await larder.ingest("notes.txt", ["The first passage.", "The second passage."])
            answer = larder.ask(notes.ids, "What do the notes say?")
            async for token in answer:
                print(token, end="")
            print(answer.report)

    Every call has a deadline, `timeout_s` unless it names its own, and is tried again on a retryable error until its first answer has
    come. Every failure is a `KVError`. One client serves any number of tasks of one event loop; close it or use
    it in `async with`.

    Parameters
    ----------
    address : str or None
        host:port of a worker, or of several that share a catalog with commas between them; None takes LARDER_ADDRESS, else the default
        port of this machine. A call that one does not answer goes to the next, as long as nothing of its answer has come; a question
        whose answer is late goes to the next one too.
    token : str or None
        Who is calling; None takes LARDER_TOKEN, else the token of a server of this machine.
    timeout_s : float
        Deadline of a call in seconds, all its attempts included.
    tls : ClientTLS or None
        How to encrypt; None sends plain text, which is refused off this machine by servers unless they were told otherwise.
    retry : Retry or None
        How often and how soon a call is tried again; None takes four attempts, and ten with several workers.
    """

    def __init__(
        self,
        address: str | None = None,
        token: str | None = None,
        *,
        timeout_s: float = 60.0,
        tls: ClientTLS | None = None,
        retry: Retry | None = None,
    ) -> None:
        self._turns = Turns.among(discover_address(address))
        self._services = AsyncServices(tls)
        metadata = bearer(discover_token(self.address, token or ""))
        self._calls = AsyncCalls(metadata, timeout_s, retry or self._turns.retry(), self._turns)
        self._stores = AsyncStores(self._services, metadata, timeout_s, retry or Retry())
        self._artifacts = KeptArtifacts()

    @property
    def address(self) -> str:
        """Where the worker is that is asked next."""
        return self._turns.current

    async def ingest(self, source: str, passages: Sequence[str], read_as: str = "document", *, timeout_s: float | None = None) -> Ingested:
        """Read a document's passages, in its order, and store their KV; return when all of them are stored.

        `source` names the document; ingest it again when it was edited, `forget` it to take it back. `read_as` "document" reads each
        passage behind those before it, "alone" by itself, "both" stores both readings. What is stored already is not computed again.
        """
        stored, n_computed, nbytes, tokens_read = [], 0, 0, 0
        async for row in self.ingest_each(source, passages, read_as, timeout_s=timeout_s):
            stored.append(row.passage)
            n_computed += row.is_computed
            nbytes += row.nbytes
            tokens_read += row.tokens_read
        return Ingested(source, tuple(stored), n_computed, nbytes, tokens_read)

    def ingest_each(
        self, source: str, passages: Sequence[str], read_as: str = "document", *, timeout_s: float | None = None
    ) -> AsyncGenerator[IngestedPassage, None]:
        """Like `ingest`, but iterate over the passages as they are stored; nothing is sent before the first is asked for."""
        return self._ingest(requests.ingest_request(source, passages, read_as), timeout_s)

    async def _ingest(self, request: context_pb2.IngestRequest, timeout_s: float | None) -> AsyncGenerator[IngestedPassage, None]:
        """Send an ingest and read its answers."""
        async for message in self._calls.stream(lambda at: self._services.context(at).Ingest, request, timeout_s):
            yield ingested_from(message)

    def ask(
        self,
        passage_ids: Sequence[str],
        question: str,
        *,
        max_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        policy: str = "",
        planner: str = "",
        read_as: str = "auto",
        ttft_target_s: float = 0.0,
        timeout_s: float | None = None,
    ) -> AsyncAnswer:
        """Ask a question over passages in the order given; iterate over the answer to get its tokens as they come.

        Passages are named by id, by a start of it of at least 8 digits, or as source#index. Temperature 0 is greedy. `policy` is a
        recompute policy such as "first_k:k=8" and `planner` one such as "always_compute"; empty takes the worker's default. `read_as`
        says which readings may be loaded: "auto" the best that is stored, "document" or "alone" no other. `ttft_target_s`, 0 for the
        worker's, is when the first token is due: policy "auto" takes the most careful policy that is predicted to keep to it.
        """
        request = requests.ask_request(
            passage_ids,
            question,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            policy=policy,
            planner=planner,
            read_as=read_as,
            ttft_target_s=ttft_target_s,
        )
        return AsyncAnswer(self._calls.stream(lambda at: self._services.context(at).Ask, request, timeout_s))

    async def passages(self, source: str = "", *, limit: int = 10_000, timeout_s: float | None = None) -> list[Passage]:
        """Return at most `limit` passages that are known, of one document or of all."""
        request = requests.passages_request(source, limit)
        stream = self._calls.stream(lambda at: self._services.context(at).Passages, request, timeout_s)
        return [passage_from(message.passage) async for message in stream]

    async def resolve(self, passage_ids: Sequence[str], *, read_as: str = "auto", timeout_s: float | None = None) -> list[ResolvedPassage]:
        """Return the chunk key and the tokens of each passage, in order; raises NotFoundError for a name that nobody ingested.

        "auto" gives the better of the readings that were ingested.
        """
        request = requests.resolve_request(passage_ids, read_as)
        response = await self._calls.one(lambda at: self._services.context(at).Resolve, request, timeout_s)
        return [resolved_from(row) for row in response.passages]

    async def chunks(self, passage_ids: Sequence[str], *, read_as: str = "auto", timeout_s: float | None = None) -> list[StoredPassage]:
        """Fetch the stored chunks of passages, verified, for an engine of one's own; `to_numpy()` of each decodes it.

        A chunk that is absent, or that fails its digest, its key or its tokens, is a miss: it has no blob and says why. The artifacts of
        calibrated codecs come along; a client keeps those that it fetched last.
        """
        deadline = self._calls.deadline(timeout_s)
        resolved = await self.resolve(passage_ids, read_as=read_as, timeout_s=deadline.left_s())
        info = await self.info(timeout_s=deadline.left_s())
        store = info.store_address or self.address
        homes = await self._stores.homes(store, [row.key for row in resolved], deadline)
        found = []
        for row, home in zip(resolved, homes, strict=True):
            got = await self._stores.fetch(home, row.key, deadline)
            found.append(stored_passage(row, got.hit.tier, got.data, got.hit.reason))
        needed = {key for row in found for key in needed_artifacts(row)}
        artifacts = await self._stores.artifacts(store, needed, self._artifacts, deadline)
        return [with_artifacts(row, artifacts) for row in found]

    async def forget(self, source: str, *, timeout_s: float | None = None) -> int:
        """Take a document back, with all its chunks, its tokens and its earlier texts; return how many chunks it consisted of.

        What another document says too stays that document's.
        """
        request = requests.forget_request(source)
        response = await self._calls.one(lambda at: self._services.context(at).Forget, request, timeout_s)
        return int(response.n_chunks)

    async def invalidate(self, *, source: str = "", model: str = "", timeout_s: float | None = None) -> int:
        """Make every chunk of one document (`source`) or one model (its namespace in hex) a miss at once; return the new epoch.

        Its passages stay known, so that a question computes them again; see `forget`.
        """
        return await self._invalidate(requests.scope(source, model), timeout_s)

    async def invalidate_all(self, *, timeout_s: float | None = None) -> int:
        """Make every chunk of one's own tenant a miss at once; return the new epoch."""
        return await self._invalidate(Scope("tenant"), timeout_s)

    async def _invalidate(self, scope: Scope, timeout_s: float | None) -> int:
        """Send an invalidation to the stores that the worker names."""
        deadline = self._calls.deadline(timeout_s)
        info = await self.info(timeout_s=deadline.left_s())
        return await self._stores.invalidate(info.store_address or self.address, scope, deadline)

    async def explain(self, request_id: str = "", *, timeout_s: float | None = None) -> AnswerExplanation:
        """Return what was decided for an earlier question and why; without a request id, for the latest one."""
        request = context_pb2.ExplainAnswerRequest(request_id=request_id)
        message = await self._calls.one(lambda at: self._services.context(at).ExplainAnswer, request, timeout_s)
        return explanation_from(message)

    async def info(self, *, timeout_s: float | None = None) -> Info:
        """Return what the worker serves."""
        return info_from(await self._calls.one(lambda at: self._services.context(at).Info, context_pb2.InfoRequest(), timeout_s))

    async def ping(self, *, timeout_s: float | None = None) -> float:
        """Return the seconds that a health check takes; raises TierUnavailableError where the server does not serve."""

        def check(at: str) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
            return self._services.channel(at).unary_unary(METHOD, request_serializer=as_bytes, response_deserializer=as_bytes)

        began = time.perf_counter()
        check_serving(await self._calls.one(check, REQUEST, timeout_s), self.address)
        return time.perf_counter() - began

    async def close(self) -> None:
        """Close the client's channels."""
        self._calls.close()
        await self._services.close()

    async def __aenter__(self) -> AsyncLarder:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
