"""Several workers over one store in one process, and traces that are replayed over them."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from kvclient.records import Report, Token
from kvstore.core.tokens import DEFAULT_TENANT
from kvstore.server.config import DiskConfig, MemoryConfig, StoreConfig, TiersConfig
from kvstore.server.opening import open_store
from kvworker.answer.answer import Question
from kvworker.engine.sampling import Sampling
from kvworker.reference.notes import generate
from kvworker.route.board import Board, Decide
from kvworker.route.learn import learn
from kvworker.route.names import DEVICE, Names
from kvworker.serve.config import ModelConfig
from kvworker.serve.local import open_engine
from kvworker.serve.runtime import Caller, Worker
from kvworker.settings import WorkerSettings

Trace = Sequence[int]
"""Which document each question is about."""

N_PASSAGES = 8
N_TOKENS = 4
_STORE_BYTES = 512 << 20
_SEED = 40_000


@dataclass(frozen=True)
class Document:
    """What is stored and what is asked about it."""

    source: str
    passages: tuple[str, ...]
    question: str


def documents(n_documents: int) -> list[Document]:
    """Return documents of the reference model's notes."""
    found = []
    for n in range(n_documents):
        corpus = generate(_SEED + n, 1, N_PASSAGES, 8, "test")
        found.append(Document(f"{n}.txt", corpus.documents[0].passages, corpus.questions[0].text))
    return found


def zipf(n_documents: int, n_questions: int, exponent: float, seed: int) -> Trace:
    """Return a trace in which the document of rank r is asked for in proportion to r ** -exponent; ranks are drawn too."""
    rng = random.Random(seed)
    ranked = rng.sample(range(n_documents), n_documents)
    return rng.choices(ranked, [(rank + 1) ** -exponent for rank in range(n_documents)], k=n_questions)


@dataclass
class Replayed:
    """What a trace moved, from its second third on too, and how many answers were the computed ones."""

    moved_nbytes: int = 0
    again_nbytes: int = 0
    n_answers: int = 0
    n_equal: int = 0
    by_worker: Counter[str] = field(default_factory=Counter)


class Lab:
    """A store, workers and documents; a context manager.

    Parameters
    ----------
    share : float
        Of all passages' bytes, that each worker's device tier holds.
    """

    def __init__(self, folder: Path, n_workers: int, n_documents: int, share: float, n_callers: int) -> None:
        self._folder, self._documents, self._n_callers = folder, documents(n_documents), n_callers
        self._stack, self._lock = ExitStack(), threading.Lock()
        tiers = TiersConfig(memory=MemoryConfig(capacity=_STORE_BYTES), disk=DiskConfig(capacity=0))
        service = open_store(StoreConfig(str(folder), tiers=tiers))
        self._stack.callback(service.close)
        self._caller = Caller(DEFAULT_TENANT, service.bind(DEFAULT_TENANT))
        reader = self._open(0)
        self._ids = [self._ingest(reader, document) for document in self._documents]
        self._expected = [self._ask(reader, n, "always_compute")[0] for n in range(n_documents)]
        self._device_bytes = int(share * self._caller.store.stats().tiers[0].used_bytes)
        self._workers = {f"worker-{n}": self._open(self._device_bytes) for n in range(n_workers)}

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def replay(self, trace: Trace, decide: Decide) -> Replayed:
        """Ask the questions of a trace, several at once, of workers that have nothing at hand yet."""
        board, names, replayed = Board(self._device_bytes, decide), Names(), Replayed()
        for name, worker in self._workers.items():
            worker.device_tier.clear()
            board.join(name, name)
        with ThreadPoolExecutor(self._n_callers) as pool:
            for done in [pool.submit(self._one, board, names, replayed, n, at >= len(trace) / 3) for at, n in enumerate(trace)]:
                done.result()
        return replayed

    def _one(self, board: Board, names: Names, replayed: Replayed, n: int, is_again: bool) -> None:
        """Ask one question of the worker that is chosen, and count what it says it moved."""
        with board.turn(names.wanted(DEFAULT_TENANT, self._ids[n])) as turn:
            tokens, report = self._ask(self._workers[turn.name], n, "always_load")
            learn(board, names, turn, DEFAULT_TENANT, self._ids[n], report)
        moved = sum(row.nbytes for row in report.passages if row.action == "load" and row.tier != DEVICE)
        with self._lock:
            replayed.moved_nbytes += moved
            replayed.again_nbytes += moved * is_again
            replayed.n_answers += 1
            replayed.n_equal += tokens == self._expected[n]
            replayed.by_worker[turn.name] += 1

    def _ask(self, worker: Worker, n: int, planner: str) -> tuple[list[int], Report]:
        """Return the tokens of an answer about a document, and its report."""
        question = Question(tuple(self._ids[n]), self._documents[n].question, Sampling(max_new_tokens=N_TOKENS), "none", planner)
        *tokens, report = worker.ask(self._caller, question)
        assert isinstance(report, Report)
        return [token.id for token in tokens if isinstance(token, Token)], report

    def _ingest(self, worker: Worker, document: Document) -> list[str]:
        """Store a document and return its passages' ids."""
        return [done.passage.content.hex() for done in worker.ingest(self._caller, document.source, document.passages)]

    def _open(self, device_bytes: int) -> Worker:
        """Load the model once more, with one thread as if it had a machine of its own."""
        engine = open_engine(ModelConfig(device="cpu", threads=1), self._folder)
        worker = Worker(engine, WorkerSettings(policy="none", device_bytes=device_bytes), self._caller.store, self._folder)
        self._stack.callback(worker.close)
        return worker
