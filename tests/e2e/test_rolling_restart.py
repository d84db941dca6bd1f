"""Two stores and two workers, each restarted in turn under load: no request fails, and every answer is the one computed before."""

from __future__ import annotations

import itertools
import random
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from kvclient import Larder
from tests.e2e.processes import Process, stop
from tests.faults.soak import n_runs
from tests.forked import fork
from tests.redis_server import RedisServer
from tests.worker.waiting import until

TOKEN = "the-token-of-every-caller-0123456789"
DOCUMENTS = {f"{name}.txt": [f"Passage {i} of the document {name}." for i in range(3)] for name in "abcd"}
QUESTION = " What?"
ANSWERS_BETWEEN = 6
ANSWER_S = 120.0
PAUSE_S = 0.1  # between a client's requests, or they would take the processors from what is starting


@dataclass
class Cluster:
    """Stores and workers by name, with the environment that they share."""

    home: Path
    model: Path
    catalog: str
    running: dict[str, Process] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """Start a process, at the address that it had before."""
        home = self.home / name
        home.mkdir(exist_ok=True)
        address = ("--address", self.addresses.get(name, "127.0.0.1:0"), "--data-dir", str(home / "data"))
        auth = {f"LARDER_{part}__AUTH__TOKENS_FILE": str(self.home / "tokens") for part in ("STORE", "WORKER")}
        if name.startswith("store"):
            secret = {"LARDER_STORE__AUTH__SECRET_FILE": str(self.home / "secret")}
            started = fork(home, "store", "--memory", "32MiB", "--disk", "64MiB", *address, variables=auth | secret)
        else:
            stores = ",".join(self.addresses[each] for each in ("store-0", "store-1"))
            more = {"LARDER_WORKER__WORKER__CATALOG_URL": self.catalog, "LARDER_TOKEN": TOKEN}
            started = fork(home, "worker", "--model", str(self.model), "--store", stores, *address, variables=auth | more)
        self.running[name], self.addresses[name] = started, started.address

    def start_all(self) -> None:
        """Start both stores, then both workers."""
        for names in (("store-0", "store-1"), ("worker-0", "worker-1")):
            with ThreadPoolExecutor(2) as threads:
                list(threads.map(self.start, names))

    def restart(self, name: str) -> None:
        """Stop a process as an upgrade does, and start it again."""
        assert stop(self.running[name]) == 0
        self.start(name)

    def connect(self) -> Larder:
        """Return a client of both workers."""
        return Larder(",".join(self.addresses[each] for each in ("worker-0", "worker-1")), TOKEN, timeout_s=60)


@pytest.fixture
def cluster(model: Path, tmp_path: Path) -> Iterator[Cluster]:
    """Run two stores and two workers that share a catalog, a token and the master secret."""
    for name, text in (("tokens", f"default {TOKEN}\n"), ("secret", secrets.token_hex(32) + "\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    with RedisServer() as redis:
        cluster = Cluster(tmp_path, model, redis.url)
        try:
            cluster.start_all()
            yield cluster
        finally:
            with ThreadPoolExecutor(4) as threads:
                list(threads.map(stop, cluster.running.values()))


@dataclass
class Load:
    """Clients that ask and edit until they are told to stop; what they saw is compared with what was computed first."""

    cluster: Cluster
    expected: dict[str, str]
    n_answered: int = 0
    failures: list[str] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    def run(self, number: int) -> None:
        """Ask about a document, mostly, or edit one of this client's own."""
        chance = random.Random(number)
        with self.cluster.connect() as larder:
            for turn in itertools.count():
                if self.is_over.wait(PAUSE_S):
                    return
                try:
                    self._do(larder, number, turn, chance.choice(sorted(self.expected)))
                except Exception as error:
                    self.failures.append(f"client {number}, turn {turn}: {type(error).__name__}: {error}")
                self.n_answered += 1

    def _do(self, larder: Larder, number: int, turn: int, source: str) -> None:
        """Edit a document of this client's own every fifth time, else ask about one of all."""
        if turn % 5 == 4:
            larder.ingest(f"own-{number}.txt", ["The first passage stays.", f"The second is version {turn}."])
        elif (text := answer(larder, source)) != self.expected[source]:
            self.failures.append(f"{source} was answered with {text!r} instead of {self.expected[source]!r}")


def answer(larder: Larder, source: str) -> str:
    """Ask about a whole document, in its order."""
    names = [f"{source}#{i}" for i in range(len(DOCUMENTS[source]))]
    return larder.ask(names, QUESTION, max_tokens=4, policy="none", planner="always_load").finish().text


@pytest.mark.timeout(n_runs(full=3600, short=600))
def test_restarting_each_of_two_stores_and_two_workers_under_load_fails_no_request(cluster: Cluster) -> None:
    """What an upgrade of each does: a stop signal, and a start some time later, while clients go on."""
    with cluster.connect() as larder:
        for source, texts in DOCUMENTS.items():
            larder.ingest(source, texts)
        expected = {source: answer(larder, source) for source in DOCUMENTS}
    load = Load(cluster, expected)
    with ThreadPoolExecutor(2) as clients:
        running = [clients.submit(load.run, number) for number in range(2)]
        try:
            for name in sorted(cluster.running) * n_runs(full=10, short=1):
                cluster.restart(name)
                until(partial(_answered_more, load, load.n_answered + ANSWERS_BETWEEN), ANSWER_S)
        finally:
            load.is_over.set()
        for each in running:
            each.result(ANSWER_S)
    assert not load.failures, "\n".join(load.failures)
    with cluster.connect() as larder:
        ids = [f"{source}#{i}" for source, texts in DOCUMENTS.items() for i in range(len(texts))]
        assert [chunk.reason for chunk in larder.chunks(ids) if chunk.blob is None] == []
    assert not any("Traceback" in process.log for process in cluster.running.values())


def _answered_more(load: Load, n: int) -> bool:
    return load.n_answered >= n
