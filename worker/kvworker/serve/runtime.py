"""A worker: one engine and everything around it. Embedded use is this class; `serve.py` puts it on the wire."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvclient.records import AnswerExplanation, Report, Token
from kvstore.core.api import StoreAPI
from kvstore.core.errors import NotFoundError
from kvstore.core.key import ChunkKey
from kvstore.planners.planner import find_planner
from kvworker.answer.answer import Answerer, Question
from kvworker.answer.costs import CostBook, saved_costs
from kvworker.answer.device_tier import DeviceTier
from kvworker.answer.load import Loader
from kvworker.answer.measure import calibrate
from kvworker.answer.policy import parse_policy
from kvworker.codec.specs import find_codec
from kvworker.engine.engine import Engine
from kvworker.ingest.catalog import Catalog
from kvworker.ingest.ingest import Ingested, Ingestor
from kvworker.ingest.passages import AUTO, Passage
from kvworker.ingest.push import PushQueue
from kvworker.ingest.restore import Restorer
from kvworker.settings import WorkerSettings

_KEPT_REPORTS = 256


@dataclass(frozen=True)
class Caller:
    """Whose request it is: the authenticated tenant, and the store as that tenant sees it."""

    tenant: str
    store: StoreAPI


class Worker:
    """Ingests documents and answers questions over them. Thread-safe.

    Parameters
    ----------
    engine : Engine
        Used by one thread at a time, under a lock of the worker's.
    probe_store : StoreAPI or None
        A store to time at start; None leaves its speed assumed until the first reads.
    data_dir : Path or None
        Where the catalog and the measured costs are kept; None keeps them in memory.
    """

    def __init__(self, engine: Engine, settings: WorkerSettings, probe_store: StoreAPI | None = None, data_dir: Path | None = None) -> None:
        self.engine, self.settings = engine, settings
        self.pipeline = find_codec(settings.codec)
        parse_policy(settings.policy)  # a default that does not exist fails here and not with every question
        find_planner(settings.planner)
        namespace = engine.identity.namespace
        folder = _folder(data_dir, namespace)
        self.catalog = Catalog(namespace, folder / "passages.sqlite" if folder else None, settings.catalog_bytes)
        self.device_tier = DeviceTier(settings.device_bytes)
        self.costs = self._measured_costs(folder, probe_store)
        lock = threading.Lock()
        self._push = PushQueue(settings.push_bytes)
        self._loader = Loader(engine.identity, engine.device, self.device_tier, settings.load_threads)
        window = min(settings.window_tokens or engine.max_context_tokens, engine.max_context_tokens)
        self._ingestor = Ingestor(engine, lock, self.catalog, self.pipeline, self._push, window)
        self._restorer = Restorer(self._ingestor, settings.restore_passages)
        self._answerer = Answerer(
            engine, lock, self.catalog, self.pipeline, self._loader, self.device_tier, self.costs, self._restorer, settings
        )
        self._reports: dict[str, deque[Report]] = {}
        self._reports_lock = threading.Lock()

    def ingest(self, caller: Caller, source: str, texts: Sequence[str], read_as: str = "document") -> Iterator[Ingested]:
        """Read the passages of one source and store their KV; see `Ingestor.ingest`."""
        return self._ingestor.ingest(caller.tenant, caller.store, source, texts, read_as)

    def ask(self, caller: Caller, question: Question) -> Iterator[Token | Report]:
        """Answer a question; see `Answerer.answer`. What the store lacked is stored again behind the answer."""
        for event in self._answerer.answer(caller.tenant, caller.store, question):
            if isinstance(event, Report):
                with self._reports_lock:
                    self._reports.setdefault(caller.tenant, deque(maxlen=_KEPT_REPORTS)).append(event)
            yield event

    def forget(self, caller: Caller, source: str) -> int:
        """Take a document back: its chunks, wherever they are, and everything that is known of it; return how many it consisted of."""
        keys = self._ingestor.forget(caller.tenant, caller.store, source)
        self.device_tier.drop((caller.tenant, key) for key in keys)
        return len(keys)

    def resolve(self, caller: Caller, names: Sequence[str], read_as: str = AUTO) -> list[tuple[Passage, ChunkKey]]:
        """Return passages by name with the keys of their chunks, in the best of the readings allowed; raises NotFoundError."""
        namespace, variant = self.engine.identity.namespace, self.pipeline.spec.variant()
        found = self.catalog.readings(caller.tenant, names, read_as)
        lacking = [name for name, (_, readings) in zip(names, found, strict=True) if not readings]
        if lacking:
            raise NotFoundError(f"{lacking[0]} was never read in its document; ingest its document so")
        best = [readings[0].passage for _, readings in found]
        return [(p, p.key(namespace, variant)) for p in best]

    def explain(self, tenant: str, request_id: str = "") -> AnswerExplanation:
        """Say what was decided for one of the tenant's last 256 requests, by default the latest; raises NotFoundError."""
        with self._reports_lock:
            reports = list(self._reports.get(tenant, ()))
        found = next((r for r in reversed(reports) if not request_id or r.request_id.startswith(request_id)), None)
        if found is None:
            raise NotFoundError(f"no request {request_id or 'of this tenant'} among the last {_KEPT_REPORTS}")
        return AnswerExplanation(found, tuple(_lines(found)))

    def close(self) -> None:
        """Finish what is queued, keep what was measured and close the files. The engine and the store stay open."""
        self._restorer.close()
        self._push.close()
        self._loader.close()
        self.costs.save()
        self.catalog.close()

    def _measured_costs(self, folder: Path | None, probe_store: StoreAPI | None) -> CostBook:
        """Return the costs that were kept for this model, device and codec, else measure them."""
        name = f"costs-{self.engine.device.replace(':', '')}-{self.pipeline.spec.variant().hex()[:12]}.json"
        path = folder / name if folder else None
        known = saved_costs(path)
        book = CostBook(known or calibrate(self.engine, self.pipeline, probe_store), path)
        book.save()
        return book


def _folder(data_dir: Path | None, namespace: bytes) -> Path | None:
    """Return the worker's folder for one model, made if needed, for its owner only."""
    if data_dir is None:
        return None
    folder = data_dir / "worker" / namespace.hex()[:16]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _lines(report: Report) -> Iterator[str]:
    """Yield the decisions of a request for people."""
    yield f"request {report.request_id}: planner {report.planner}, policy {report.policy}, quality {report.quality}"
    yield f"time to first token: predicted {report.predicted_ttft_s * 1e3:.1f} ms, took {report.ttft_s * 1e3:.1f} ms"
    yield "of it: " + ", ".join(f"{step} {seconds * 1e3:.1f} ms" for step, seconds in report.ttft_split_s.items())
    for row in report.passages:
        yield f"{row.passage.source}#{row.passage.index} ({row.passage.id[:12]}): {row.why}"
