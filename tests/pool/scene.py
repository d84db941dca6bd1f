"""A pool of workers on a real Ray cluster, the store beside it, and callers that never stop asking."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.cluster_utils import Cluster

from kvclient import Larder
from kvclient.retry import Retry
from kvstore.core.tokens import read_tokens
from kvstore.server.access.auth import open_authenticator
from kvstore.server.config import DiskConfig, MemoryConfig, ServerConfig, StoreConfig, TiersConfig
from kvstore.server.opening import open_store, serve_store
from kvworker.ray.command import pooled
from kvworker.ray.pool import Pool
from kvworker.ray.settings import RaySettings
from kvworker.reference.notes import generate
from kvworker.route.board import Board
from kvworker.serve.config import ModelConfig, StoreAddress, WorkerConfig
from kvworker.settings import WorkerSettings

T = TypeVar("T")
OBJECT_STORE_BYTES = 80 << 20
NODE = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
NOTICES_DEATHS = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
PATIENT = {"agent_register_timeout_ms": 120_000}  # its parts start one after the other on a busy machine
BARE = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}  # each would be a process that imports Ray
N_DOCUMENTS, N_PASSAGES, N_TOKENS = 6, 3, 6
BUSY_S, CALM_S = 0.05, 0.4  # between a caller's requests: until the harm is done, and while something starts again
ASK_S = 60.0  # of a machine that starts models beside; nothing may come near it
LOOPBACK = ServerConfig(address="127.0.0.1:0", metrics_address="", drain_s=5.0)


@contextmanager
def connected_cluster(head_cpus: int = 1) -> Iterator[Cluster]:
    """Start a head and two nodes with room for one worker each, and connect to it."""
    head = {**NODE, **BARE, "num_cpus": head_cpus, "_system_config": NOTICES_DEATHS | PATIENT}
    cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    try:
        for _ in range(2):
            add_node(cluster)
        ray.init(address=cluster.address, log_to_driver=False, namespace="larder")
        yield cluster
    finally:
        ray.shutdown()
        for node in list(cluster.worker_nodes):
            cluster.remove_node(node, allow_graceful=False)
        cluster.shutdown()


def add_node(cluster: Cluster) -> None:
    """Start one more node."""
    patiently(lambda: cluster.add_node(include_log_monitor=False, **NODE))


def patiently(start: Callable[[], T], n_tries: int = 3) -> T:
    """Start a node, again where a busy machine takes longer than Ray gives to the parts of one."""
    try:
        return start()
    except Exception:  # Ray raises nothing narrower
        if n_tries == 1:
            raise
        return patiently(start, n_tries - 1)


@dataclass
class Outcome:
    """What came of the questions of a while."""

    right: Counter[str] = field(default_factory=Counter)  # by source
    wrong: list[str] = field(default_factory=list)
    pause_s: float = BUSY_S

    def calm(self) -> None:
        """Have callers ask less from now on."""
        self.pause_s = CALM_S


@dataclass
class Scene:
    """A pool under a front, and the answers that a full prefill gives."""

    cluster: Cluster
    pool: Pool
    board: Board
    address: str
    token: str
    questions: dict[str, tuple[list[str], str]]
    expected: dict[str, list[int]] = field(default_factory=dict)

    def larder(self) -> Larder:
        """Connect; nothing is tried again by the client."""
        return Larder(self.address, self.token, timeout_s=ASK_S, retry=Retry(1))

    def ask(self, larder: Larder, source: str, planner: str = "always_load") -> list[int]:
        """Ask the question about a document and return the answer's tokens."""
        ids, text = self.questions[source]
        answer = larder.ask(ids, text, max_tokens=N_TOKENS, policy="none", planner=planner).finish()
        return [token.id for token in answer.tokens]

    @contextmanager
    def load(self, n_callers: int = 3) -> Iterator[Outcome]:
        """Have callers ask about one document after another while the block runs, and wait for what they have asked."""
        outcome, stop = Outcome(), threading.Event()
        threads = [threading.Thread(target=self._keep_asking, args=(outcome, stop, n), name=f"caller-{n}") for n in range(n_callers)]
        for thread in threads:
            thread.start()
        try:
            yield outcome
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def _keep_asking(self, outcome: Outcome, stop: threading.Event, first: int) -> None:
        sources = list(self.questions)
        with self.larder() as larder:
            while not stop.wait(outcome.pause_s):
                first += 1
                source = sources[first % len(sources)]
                try:
                    tokens = self.ask(larder, source)
                except Exception as error:  # whatever it is, it is a failed request
                    outcome.wrong.append(f"{source}: {error!r}")
                    continue
                if tokens == self.expected[source]:
                    outcome.right[source] += 1
                else:
                    outcome.wrong.append(f"{source}: {tokens}, not {self.expected[source]}")

    def serving(self) -> set[str]:
        """Return the workers that take requests."""
        return {state.name for state in self.board.states({}) if state.is_serving and not state.is_draining}

    def call(self, name: str, method: str) -> Any:
        """Return what an actor answers."""
        return ray.get(getattr(self.pool.actors[name], method).remote(), timeout=60)


@contextmanager
def opened(cluster: Cluster, folder: Path) -> Iterator[Scene]:
    """Open a store, start the pool, store a few documents and note what a full prefill answers."""
    with ExitStack() as stack:
        store_address = stack.enter_context(served_store(folder))
        config = WorkerConfig(
            str(folder),
            LOOPBACK,
            store=StoreAddress(store_address),
            model=ModelConfig(device="cpu", threads=1),
            worker=WorkerSettings(device_bytes=1 << 20),
            ray=RaySettings(workers=2, host="127.0.0.1"),
        )
        front, pool = stack.enter_context(pooled(config))
        token = read_tokens(folder / "tokens")[0].token
        scene = Scene(cluster, pool, pool.board, front.address, token, {})
        with scene.larder() as larder:
            for source, passages, question in documents():
                scene.questions[source] = (larder.ingest(source, passages).ids, question)
            for source in scene.questions:
                scene.expected[source] = scene.ask(larder, source, "always_compute")
        yield scene


@contextmanager
def served_store(folder: Path) -> Iterator[str]:
    """Serve a store in memory; yield its address."""
    tiers = TiersConfig(memory=MemoryConfig(capacity=64 << 20), disk=DiskConfig(capacity=0))
    config = StoreConfig(str(folder), LOOPBACK, tiers)
    service = open_store(config)
    server = serve_store(config, service, open_authenticator(config.tokens_path, config.auth))
    yield server.address
    server.drain()
    service.close()


def documents() -> Iterator[tuple[str, Sequence[str], str]]:
    """Yield sources, their passages, and a question about each."""
    corpus = generate(7, N_DOCUMENTS, N_PASSAGES, 4, "test")
    for n, document in enumerate(corpus.documents):
        question = next(q.text for q in corpus.questions if q.passages[-1][0] == n)
        yield f"{n}.txt", document.passages, question
