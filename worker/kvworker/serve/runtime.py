"""A worker: one engine and everything around it. Embedded use is this class; `serve.py` puts it on the wire."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kvclient.records import AnswerExplanation, Report, Token
from kvstore.core.api import Status, StoreAPI
from kvstore.core.errors import KVError, NotFoundError
from kvstore.core.key import ChunkKey
from kvstore.planners.planner import find_planner
from kvstore.store.secret import SECRET_NBYTES, load_secret
from kvworker.answer.answer import Answerer, Question
from kvworker.answer.costs import CostBook, saved_costs
from kvworker.answer.device_tier import DeviceTier
from kvworker.answer.explain import Explanations
from kvworker.answer.load import Loader
from kvworker.answer.measure import calibrate
from kvworker.codec.artifacts import ARTIFACTS, Artifacts
from kvworker.codec.registry import bound_pipeline_of
from kvworker.engine.engine import Engine
from kvworker.ingest.ingest import Ingested, Ingestor
from kvworker.ingest.open_catalog import open_catalog
from kvworker.ingest.passages import Passage
from kvworker.ingest.push import PushQueue
from kvworker.ingest.restore import Restorer
from kvworker.quality.calibration import calibration_path, codec_id, load_calibration, shipped_calibration
from kvworker.quality.gate import Gate
from kvworker.quality.ladder import ladder_of
from kvworker.serve.compiling import compile_codecs
from kvworker.serve.ledger import Ledger
from kvworker.serve.recorder import TraceRecorder
from kvworker.settings import WorkerSettings

_log = logging.getLogger(__name__)


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
    model_dir : Path or None
        Where the model came from: a calibration that lies there counts where the data directory has none.
    """

    def __init__(
        self,
        engine: Engine,
        settings: WorkerSettings,
        probe_store: StoreAPI | None = None,
        data_dir: Path | None = None,
        model_dir: Path | None = None,
    ) -> None:
        self.engine, self.settings = engine, settings
        find_planner(settings.planner)  # a default that does not exist fails here and not with every question
        namespace = engine.identity.namespace
        folder = model_folder(data_dir, namespace) if data_dir else None
        self.artifacts = Artifacts(namespace, folder / ARTIFACTS if folder else None, probe_store)
        self.ladder = ladder_of(settings.codec, engine.identity, self.artifacts, engine.needs_fine_keys)
        self.pipeline = self.ladder.first
        gate = self._gate(folder, model_dir)
        self.catalog = open_catalog(settings.catalog_url, namespace, folder, settings.catalog_bytes)
        self.device_tier = DeviceTier(settings.device_bytes)
        self.costs = self._measured_costs(folder, probe_store)
        lock = threading.Lock()
        self._push = PushQueue(settings.push_bytes)
        codec_of = partial(bound_pipeline_of, self.artifacts)
        self._loader = Loader(engine.identity, engine.device, self.device_tier, settings.load_threads, settings.load_timeout_s, codec_of)
        window = min(settings.window_tokens or engine.max_reading_tokens, engine.max_reading_tokens)
        is_need_noted = gate.choose(settings.policy, "alone").policy.reads_need
        self._ingestor = Ingestor(engine, lock, self.catalog, self.ladder, self.artifacts, self._push, self.costs, window, is_need_noted)
        self._restorer = Restorer(self._ingestor, settings.restore_passages)
        self._explanations = Explanations()
        self._answerer = self._new_answerer(lock, gate)
        self._recorder = _recorder(settings, data_dir)
        self.ledger = Ledger()

    def _new_answerer(self, lock: threading.Lock, gate: Gate) -> Answerer:
        """Return what answers questions, once everything else is there."""
        return Answerer(
            self.engine,
            lock,
            self.catalog,
            self.ladder,
            self._loader,
            self.device_tier,
            self.costs,
            gate,
            self._restorer,
            self._explanations,
            self.settings,
        )

    def ingest(self, caller: Caller, source: str, texts: Sequence[str], read_as: str = "document") -> Iterator[Ingested]:
        """Read the passages of one source and store their KV; see `Ingestor.ingest`."""
        return self._ingestor.ingest(caller.tenant, caller.store, source, texts, read_as)

    def ask(self, caller: Caller, question: Question) -> Iterator[Token | Report]:
        """Answer a question; see `Answerer.answer`. What the store lacked is stored again behind the answer."""
        with self.ledger.running():
            for event in self._answerer.answer(caller.tenant, caller.store, question):
                if isinstance(event, Report):
                    self._note(caller.tenant, event)
                yield event

    def _note(self, tenant: str, report: Report) -> None:
        """Count an answered request, log a line that names nothing it was about, and record it where traffic is recorded."""
        self.ledger.record(tenant, report)
        _log.info(
            "answered request %s: first token after %.3f s, %d tokens loaded, %d computed, %d generated",
            *(report.request_id, report.ttft_s, report.tokens_loaded, report.tokens_recomputed, report.tokens_generated),
        )
        if self._recorder:
            self._recorder.record(tenant, report)

    def forget(self, caller: Caller, source: str) -> int:
        """Take a document back: its chunks, wherever they are, and everything that is known of it; return how many it consisted of."""
        keys = self._ingestor.forget(caller.tenant, caller.store, source)
        self.device_tier.drop((caller.tenant, key) for key in keys)
        return len(keys)

    def resolve(self, caller: Caller, names: Sequence[str], read_as: str = "auto") -> list[tuple[Passage, ChunkKey]]:
        """Return passages by name with the keys of their chunks, in the best of the readings allowed; raises NotFoundError."""
        found = self.catalog.readings(caller.tenant, names, read_as)
        lacking = [name for name, (_, readings) in zip(names, found, strict=True) if not readings]
        if lacking:
            raise NotFoundError(f"{lacking[0]} was never read in its document; ingest its document so")
        best = [readings[0].passage for _, readings in found]
        return list(zip(best, self._stored_keys(caller.store, [p.content for p in best]), strict=True))

    def _stored_keys(self, store: StoreAPI, contents: Sequence[bytes]) -> list[ChunkKey]:
        """Return where the chunk of each content is: in the codec asked for, unless the store says that it has another of the preset."""
        keys = [self.ladder.keys(content) for content in contents]
        if len(self.ladder.codecs) == 1:
            return [own[0] for own in keys]
        try:
            stored = {hit.key for hit in store.lookup([key for own in keys for key in own]) if hit.status is not Status.ABSENT}
        except KVError as error:
            _log.warning("lookup failed, passages are resolved to the codec asked for: %s", error)
            stored = set()
        return [next((key for key in own if key in stored), own[0]) for own in keys]

    def explain(self, tenant: str, request_id: str = "") -> AnswerExplanation:
        """Say what was decided for one of the tenant's last 256 requests, by default the latest; raises NotFoundError."""
        return self._explanations.find(tenant, request_id)

    def compile_codecs(self) -> None:
        """Have what codecs spend their time in compiled for the CPU; for a process that serves: torch compiles nothing new afterwards."""
        compile_codecs(self.engine.device, self.ladder.codecs, self.engine.identity)

    def close(self) -> None:
        """Finish what is queued, keep what was measured and close the files. The engine and the store stay open."""
        self._restorer.close()
        self._push.close()
        self._loader.close()
        self.costs.save()
        self.catalog.close()
        if self._recorder:
            self._recorder.close()

    @property
    def held_bytes(self) -> tuple[int, int]:
        """Bytes of KV that wait to be stored, and of decoded passages on the device."""
        return self._push.used_bytes, self.device_tier.stats().used_bytes

    def _gate(self, folder: Path | None, model_dir: Path | None) -> Gate:
        """Return the gate of this model, device and codec; a calibration of our own that was damaged, or is another model's, raises."""
        namespace = self.engine.identity.namespace
        found = load_calibration(calibration_path(folder, self.engine.device), namespace) if folder else None
        found = found or (shipped_calibration(model_dir, namespace) if model_dir else None)
        gate = Gate(found, self.settings.quality_budget, codec_id(self.pipeline))
        if note := gate.choose(self.settings.policy, "alone").note:  # a default that does not exist fails here too
            _log.warning("%s: what is no exact prefix is computed; run `larder calibrate` for this model and codec", note)
        return gate

    def _measured_costs(self, folder: Path | None, probe_store: StoreAPI | None) -> CostBook:
        """Return the costs that were kept for this model, device and codec, else measure them."""
        name = f"costs-{self.engine.device.replace(':', '')}-{self.ladder.first.spec.variant().hex()[:12]}.json"
        path = folder / name if folder else None
        known = saved_costs(path)
        if known is not None and not all(known.knows(codec.spec.label) for codec in self.ladder.codecs):
            known = None
        book = CostBook(known or calibrate(self.engine, self.ladder.codecs, probe_store), path)
        book.save()
        return book


def model_folder(data_dir: Path, namespace: bytes) -> Path:
    """Return the worker's folder for one model, made if needed, for its owner only."""
    folder = data_dir / "worker" / namespace.hex()[:16]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _recorder(settings: WorkerSettings, data_dir: Path | None) -> TraceRecorder | None:
    """Return what records traffic, if the settings name a file; its secret is kept in the data directory."""
    if not settings.trace_file:
        return None
    secret = load_secret(data_dir / "worker" / "trace.secret") if data_dir else secrets.token_bytes(SECRET_NBYTES)
    return TraceRecorder(Path(settings.trace_file).expanduser(), secret, settings.trace_bytes)
