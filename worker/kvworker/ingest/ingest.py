"""Read documents and store their KV: what is stored already is not computed again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import torch

from kvstore.core import tracing
from kvstore.core.api import Hit, PutNote, PutReceipt, Scope, Status, StoreAPI
from kvstore.core.errors import InvalidInputError
from kvstore.core.key import ChunkKey
from kvworker.answer.costs import CostBook
from kvworker.answer.load import StoredSource, fetch
from kvworker.chunk import PassageKV
from kvworker.codec.artifacts import Artifacts
from kvworker.codec.stages import Calibrated
from kvworker.engine.engine import Engine, LoadFailed
from kvworker.ingest.catalog import Catalog
from kvworker.ingest.passages import Passage
from kvworker.ingest.push import PushQueue
from kvworker.ingest.steps import Step, Task, ingest_steps
from kvworker.ingest.windows import document_windows
from kvworker.quality.ladder import Ladder

_FETCH_TIMEOUT_S = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ingested:
    """What became of one passage: computed now, or found; `nbytes` is the size of its stored chunks, one for each way it is read.

    `tokens_read` is how many tokens went through the model for it, those of passages that only gave context included.
    """

    passage: Passage
    computed: bool
    nbytes: int
    n_passages: int
    tokens_read: int = 0


@dataclass(frozen=True)
class _Pending:
    """A chunk on its way to the store (receipt), for which some tokens were read, or one that was there (nbytes)."""

    receipt: Future[PutReceipt] | None = None
    nbytes: int = 0
    tokens_read: int = 0

    def stored_nbytes(self) -> int:
        """Wait until it is stored and return its size; raises what the store raised."""
        return self.receipt.result().nbytes if self.receipt else self.nbytes


class Ingestor:
    """Turns texts into stored chunks. Thread-safe: the engine is used under `engine_lock`, one window at a time.

    Where `is_need_noted`, passages that are read alone also learn how much they need their document, which reads it once more.
    """

    def __init__(
        self,
        engine: Engine,
        engine_lock: threading.Lock,
        catalog: Catalog,
        ladder: Ladder,
        artifacts: Artifacts,
        push: PushQueue,
        costs: CostBook,
        window_tokens: int,
        is_need_noted: bool,
    ) -> None:
        self._engine, self._lock, self._catalog, self._costs, self._is_need_noted = engine, engine_lock, catalog, costs, is_need_noted
        self._ladder, self._artifacts, self._push, self._window_tokens = ladder, artifacts, push, window_tokens
        self._namespace = engine.identity.namespace

    def ingest(self, tenant: str, store: StoreAPI, source: str, texts: Sequence[str], read_as: str) -> Iterator[Ingested]:
        """Read the passages of one source, in order, and yield each as it is stored or found.

        The passages are in the catalog before the first is computed, so that questions can be asked, slower, even if storing fails. What
        an earlier ingest of this source stored and the source no longer says is deleted. Raises InvalidInputError for an empty passage or
        one longer than the model reads at once, CapacityError for a full catalog, and what the store raises.
        """
        tokens = self.tokenize(texts)
        steps = ingest_steps(self._namespace, source, texts, tokens, self._window_tokens, read_as)
        if superseded := self._keys(self._record(tenant, source, steps)):
            store.delete(superseded)
        waiting: list[Callable[[], Ingested]] = []
        for step in steps:
            before, waiting = waiting, self._take(store, step, len(texts))
            yield from (finish() for finish in before)
        yield from (finish() for finish in waiting)

    def forget(self, tenant: str, store: StoreAPI, source: str) -> list[ChunkKey]:
        """Take a document back: its passages from the catalog, its chunks from the store; return the keys that its chunks had.

        What it shares with another document is computed again when that one is asked about. Raises what the store raises: then nobody
        finds the document by name any more, and a second call makes sure of its chunks.
        """
        keys = self._keys(self._catalog.forget(tenant, source))
        store.invalidate(Scope("source", source))
        store.delete(keys)
        return keys

    def tokenize(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return each text's token ids behind a BOS of its own, where the model has one."""
        bos = () if self._engine.bos_id is None else (self._engine.bos_id,)
        tokens = [(*bos, *self._engine.encode(text)) for text in texts]
        for index, ids in enumerate(tokens):
            if len(ids) == len(bos):
                raise InvalidInputError(f"passage {index} has no text; leave it out")
        return tokens

    def restore(self, tenant: str, store: StoreAPI, passage: Passage) -> None:
        """Compute and push the chunk of a passage that the store lost; returns once it is stored and raises what the store raises."""
        read = tuple(self._catalog.chain(tenant, passage))
        task = Task(read, len(read) - 1)
        for pending in self._store(store, Step((), (task,), *self._around(tenant, passage))).values():
            pending.stored_nbytes()

    def _around(self, tenant: str, passage: Passage) -> tuple[tuple[Passage, ...], tuple[Passage | None, ...]]:
        """Return `Step.window` and `Step.alone` of a passage as it stands in its document now, up to itself; empty where it does not."""
        document = self._catalog.listing(tenant, passage.source, passage.index + 1)
        if passage.parent is not None or [p.token_ids for p in document[passage.index :]] != [passage.token_ids]:
            return (), ()
        window = document_windows([len(p.token_ids) for p in document], self._window_tokens)[-1]
        others = document[window.start : passage.index]
        return (*others, passage), (*(None for _ in others), passage)

    def _record(self, tenant: str, source: str, steps: Sequence[Step]) -> list[bytes]:
        """Write what the document consists of now to the catalog; return the contents that it no longer consists of."""
        placed: dict[str, list[Passage]] = {}
        for step in steps:
            for reading in chain.from_iterable(step.rows):
                placed.setdefault(reading.read_as, []).append(reading.passage)
        behind = [p for step in steps for task in step.tasks for p in task.chain]
        return self._catalog.add(tenant, source, placed, behind)

    def _keys(self, contents: Sequence[bytes]) -> list[ChunkKey]:
        """Return the keys that chunks may have, by their contents."""
        return [key for content in contents for key in self._ladder.keys(content)]

    def _take(self, store: StoreAPI, step: Step, n_passages: int) -> list[Callable[[], Ingested]]:
        """Compute and queue what the store lacks of one step; return what waits for each of its passages."""
        found = self._store(store, step)
        waiting: list[Callable[[], Ingested]] = []
        for readings in step.rows:
            contents = list(dict.fromkeys(r.passage.content for r in readings))
            waiting.append(partial(_finish, readings[0].passage, [found[c] for c in contents], n_passages))
            found.update((c, replace(found[c], tokens_read=0)) for c in contents)  # a text that comes twice was read once
        return waiting

    def _store(self, store: StoreAPI, step: Step) -> dict[bytes, _Pending]:
        """Look up what a step's tasks read, and compute and queue what is to be stored and lacking; return what became of each content."""
        hits = self._look(store, {p.content for task in step.tasks for p in task.chain})
        found = {content: _Pending(nbytes=hit.nbytes) for content, hit in hits.items() if hit.status is not Status.ABSENT}
        needs, n_read = self._needs(step, found) if self._is_need_noted else ({}, {})
        for task in step.tasks:
            found |= self._compute(store, task, found, hits, needs)
        return found | {c: replace(found[c], tokens_read=found[c].tokens_read + n) for c, n in n_read.items()}

    def _look(self, store: StoreAPI, contents: Collection[bytes]) -> dict[bytes, Hit]:
        """Return what the store has of each content, in whatever codec; the codec asked for where it has several, or none."""
        keys = {content: self._ladder.keys(content) for content in contents}
        found = iter(store.lookup([key for own in keys.values() for key in own]))
        hits = {content: [next(found) for _ in own] for content, own in keys.items()}
        return {content: next((hit for hit in own if hit.status is not Status.ABSENT), own[0]) for content, own in hits.items()}

    def _needs(self, step: Step, found: Container[bytes]) -> tuple[dict[bytes, torch.Tensor], dict[bytes, int]]:
        """Return `KVChunk.need` by content, of the passages to be read alone, and the tokens read for it, all under the first of them.

        The first passage of a document needs nothing that precedes it.
        """
        if not step.window:
            return {}, {}
        first = step.window[0]
        needs = {first.content: torch.zeros(len(first.token_ids), dtype=torch.float16)} if first.parent is None else {}
        lacking = {i: p.content for i, p in enumerate(step.alone) if i and p is not None and p.content not in found}
        if not lacking:
            return needs, {}
        with self._lock:
            measured = self._engine.dependence([p.token_ids for p in step.window])
        needs |= {content: measured[i] for i, content in lacking.items()}
        return needs, {next(iter(lacking.values())): sum(len(p.token_ids) for p in step.window)}

    def _compute(
        self, store: StoreAPI, task: Task, found: Container[bytes], hits: Mapping[bytes, Hit], needs: Mapping[bytes, torch.Tensor]
    ) -> dict[bytes, _Pending]:
        """Read a task up to the last passage that is lacking, from the store as far as that gives the same, and queue what was lacking."""
        lacking = [i for i, p in enumerate(task.chain) if i >= task.first_new and p.content not in found]
        if not lacking:
            return {}
        read = task.chain[: lacking[-1] + 1]
        sources = self._sources(store, {i: (p, hits[p.content]) for i, p in enumerate(read) if i not in lacking})
        exported, n_read, seconds = self._export(read, sources)
        shares, result, n_before = self._shares(read, exported), {}, 0
        for i, p in enumerate(read):
            n_before += n_read[i]
            if i in lacking:
                receipt = self._queue(store, p, _with_need(exported[i], needs.get(p.content)), seconds * shares[i])
                result[p.content] = _Pending(receipt, tokens_read=n_before)
                n_before = 0
        return result

    def _sources(self, store: StoreAPI, stored: Mapping[int, tuple[Passage, Hit]]) -> dict[int, StoredSource]:
        """Fetch the chunks of passages that others are read behind; none where the codec would make them differ from what was read."""
        if not self._ladder.first.traits.is_bit_exact:
            return {}
        sources = {}
        for i, (passage, hit) in stored.items():
            if hit.status is Status.READY:
                n_tokens = len(passage.token_ids)
                sources[i] = StoredSource(hit.key, self._engine.identity, n_tokens, self._engine.device, self._ladder.codec_of)
        fetch(store, list(sources.values()), _FETCH_TIMEOUT_S)
        return {i: source for i, source in sources.items() if source.has_arrived}

    def _export(self, read: Sequence[Passage], sources: Mapping[int, StoredSource]) -> tuple[dict[int, PassageKV], list[int], float]:
        """Compute the KV of passages without a source; return it by place, how many tokens of each passage were read, and the seconds."""
        with self._lock:
            started = time.perf_counter()
            try:
                exported = self._engine.export([p.token_ids for p in read], sources, self._ladder.n_observed)
            except LoadFailed as error:
                _log.warning("a stored chunk could not be read on, so its document is read from the start: %s", error)
                exported, sources = self._engine.export([p.token_ids for p in read], n_observed=self._ladder.n_observed), {}
            seconds = time.perf_counter() - started
        n_read = [0 if i in sources else len(p.token_ids) for i, p in enumerate(read)]
        return dict(zip((i for i in range(len(read)) if i not in sources), exported, strict=True)), n_read, seconds

    def _shares(self, read: Sequence[Passage], computed: Container[int]) -> dict[int, float]:
        """Return what share of the time each computed passage of a chain took: a later one sees more keys."""
        weights: dict[int, float] = {}
        start = 0
        for i, passage in enumerate(read):
            n_tokens = len(passage.token_ids)
            if i in computed:
                weights[i] = self._costs.model.predict_prefill(n_tokens, start + (n_tokens + 1) / 2) or float(n_tokens)
            start += n_tokens
        total = sum(weights.values())
        return {i: weight / total for i, weight in weights.items()}

    def _queue(self, store: StoreAPI, passage: Passage, kv: PassageKV, recompute_s: float) -> Future[PutReceipt]:
        """Hand one passage's KV to the push queue."""
        note = PutNote(source=passage.source, recompute_s=recompute_s)

        def put(kv: PassageKV) -> PutReceipt:
            codec = self._ladder.form(kv, passage.content, self._costs.model)
            for stage in codec.stages:
                if isinstance(stage, Calibrated):
                    self._artifacts.publish(stage.artifact, stage.subject, store)
            with tracing.span("larder.encode"):
                blob = codec.encode(kv, self._engine.identity, passage.kind, passage.content, passage.parent)
            with tracing.span("larder.put", {"larder.bytes": len(blob)}):
                return store.put(blob, note)

        return self._push.submit(kv, put)


def _with_need(kv: PassageKV, need: torch.Tensor | None) -> PassageKV:
    """Return a passage whose first layer group says how much its rows need their document."""
    return (replace(kv[0], need=need), *kv[1:])


def _finish(passage: Passage, pending: Sequence[_Pending], n_passages: int) -> Ingested:
    """Wait until a passage is stored in all the ways it is read."""
    nbytes = sum(p.stored_nbytes() for p in pending)
    tokens_read = sum(p.tokens_read for p in pending)
    return Ingested(passage, tokens_read > 0, nbytes, n_passages, tokens_read)
