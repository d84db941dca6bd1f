"""Read documents and store their KV: what is stored already is not computed again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from kvstore.core.api import PutNote, PutReceipt, Status, StoreAPI
from kvstore.core.errors import InvalidInputError
from kvworker.chunk import PassageKV
from kvworker.codec.pipeline import Pipeline
from kvworker.engine.engine import Engine
from kvworker.ingest.catalog import Catalog
from kvworker.ingest.passages import Passage, read_window
from kvworker.ingest.push import PushQueue
from kvworker.ingest.windows import Window, document_windows

READ_AS = ("document", "alone")


@dataclass(frozen=True)
class Ingested:
    """What became of one passage: computed now, or found; `nbytes` is the size of its stored chunk."""

    passage: Passage
    computed: bool
    nbytes: int
    n_passages: int


@dataclass(frozen=True)
class _Pending:
    """A passage whose chunk is on its way to the store (receipt), or was there (nbytes)."""

    passage: Passage
    receipt: Future[PutReceipt] | None = None
    nbytes: int = 0


class Ingestor:
    """Turns texts into stored chunks. Thread-safe: the engine is used under `engine_lock`, one window at a time."""

    def __init__(
        self, engine: Engine, engine_lock: threading.Lock, catalog: Catalog, pipeline: Pipeline, push: PushQueue, window_tokens: int
    ) -> None:
        self._engine, self._lock, self._catalog = engine, engine_lock, catalog
        self._pipeline, self._push, self._window_tokens = pipeline, push, window_tokens
        self._namespace = engine.identity.namespace

    def ingest(self, tenant: str, store: StoreAPI, source: str, texts: Sequence[str], read_as: str) -> Iterator[Ingested]:
        """Read the passages of one source, in order, and yield each as it is stored or found.

        The passages are in the catalog before the first is computed, so that questions can be asked, slower, even if storing fails.
        Raises InvalidInputError for an empty passage or one longer than the model reads at once, and what the store raises.
        """
        tokens = self.tokenize(texts)
        windows = self._windows(tokens, read_as)
        readings = [read_window(self._namespace, source, texts, tokens, window) for window in windows]
        fresh = [
            passage for window, reading in zip(windows, readings, strict=True) for passage in reading[window.first_new - window.start :]
        ]
        self._catalog.add(tenant, [p for reading in readings for p in reading])
        self._catalog.place(tenant, source, [p.content for p in fresh])
        pending: list[_Pending] = []
        for window, reading in zip(windows, readings, strict=True):
            before, pending = pending, self._store_window(store, reading, window.first_new - window.start)
            yield from (_finish(p, len(texts)) for p in before)
        yield from (_finish(p, len(texts)) for p in pending)

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
        chain = self._catalog.chain(tenant, passage)
        for pending in self._store_window(store, chain, len(chain) - 1):
            _finish(pending, 1)

    def _windows(self, tokens: Sequence[tuple[int, ...]], read_as: str) -> list[Window]:
        """Return what is read together."""
        if read_as not in READ_AS:
            raise InvalidInputError(f"read_as is one of {', '.join(READ_AS)}, not {read_as!r}")
        lengths = [len(ids) for ids in tokens]
        windows = document_windows(lengths, self._window_tokens)
        return windows if read_as == "document" else [Window(i, i, i + 1) for i in range(len(tokens))]

    def _store_window(self, store: StoreAPI, reading: Sequence[Passage], first_new: int) -> list[_Pending]:
        """Compute and queue what the store lacks of `reading[first_new:]`."""
        variant = self._pipeline.spec.variant()
        hits = store.lookup([p.key(self._namespace, variant) for p in reading[first_new:]])
        lacking = [first_new + i for i, hit in enumerate(hits) if hit.status is Status.ABSENT]
        if not lacking:
            return [_Pending(p, nbytes=h.nbytes) for p, h in zip(reading[first_new:], hits, strict=True)]
        read = reading[: lacking[-1] + 1]
        with self._lock:
            started = time.perf_counter()
            exported = self._engine.export([p.token_ids for p in read])
            seconds_per_token = (time.perf_counter() - started) / sum(len(p.token_ids) for p in read)
        result = []
        for at in range(first_new, len(reading)):
            if at in lacking:
                receipt = self._queue(store, reading[at], exported[at], seconds_per_token)
                result.append(_Pending(reading[at], receipt))
            else:
                result.append(_Pending(reading[at], nbytes=hits[at - first_new].nbytes))
        return result

    def _queue(self, store: StoreAPI, passage: Passage, kv: PassageKV, seconds_per_token: float) -> Future[PutReceipt]:
        """Hand one passage's KV to the push queue."""
        note = PutNote(source=passage.source, recompute_s=seconds_per_token * len(passage.token_ids))

        def put(kv: PassageKV) -> PutReceipt:
            return store.put(self._pipeline.encode(kv, self._engine.identity, passage.kind, passage.content, passage.parent), note)

        return self._push.submit(kv, put)


def _finish(pending: _Pending, n_passages: int) -> Ingested:
    """Wait until a passage is stored."""
    nbytes = pending.receipt.result().nbytes if pending.receipt else pending.nbytes
    return Ingested(pending.passage, pending.receipt is not None, nbytes, n_passages)
