"""A question is one trace and one request id from the client through the worker to the store and its Redis."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvclient import Larder
from kvclient.remote import RemoteStore
from kvproto.v1 import context_pb2 as pb
from kvstore.core.tokens import Credential
from kvstore.server.access.auth import TokenAuthenticator, known_tokens
from kvstore.server.config import DiskConfig, LanesConfig, MemoryConfig, RedisConfig, ServerConfig, StoreConfig, TiersConfig
from kvstore.server.grpc_server import RpcServer
from kvstore.server.opening import open_store
from kvstore.server.service import StoreService
from kvstore.server.store_servicer import register_store
from kvworker.serve.registration import registration
from kvworker.serve.runtime import Worker
from kvworker.serve.servicer import ContextServicer
from tests.observe.recording import Recorded
from tests.redis_server import RedisServer
from tests.worker.conftest import MakeLab
from tests.worker.lab import QUESTION, TEXTS

TOKEN = "alpha-token-0123456789"
QUIET = ServerConfig(address="127.0.0.1:0", drain_s=1.0, lanes=LanesConfig(shm="off"))


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """Run a Redis."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def store(tmp_path: Path, redis: RedisServer) -> Iterator[StoreService]:
    """Open a store over memory and Redis."""
    tiers = TiersConfig(memory=MemoryConfig(capacity=32 << 20), disk=DiskConfig(capacity=0), redis=RedisConfig(url=redis.url))
    service = open_store(StoreConfig(data_dir=str(tmp_path / "shared"), tiers=tiers))
    yield service
    service.close()


def _authenticate() -> TokenAuthenticator:
    known = known_tokens([Credential("alpha", TOKEN, is_admin=True)])
    return TokenAuthenticator(lambda: known)


@pytest.fixture
def larder(make_lab: MakeLab, store: StoreService) -> Iterator[Larder]:
    """Serve the store and a worker that uses it over the network, and connect to the worker."""
    serving = RpcServer(QUIET)
    serving.start([register_store(store, _authenticate(), serving)])
    remote = RemoteStore(serving.address, TOKEN, timeout_s=10)
    worker: Worker = make_lab(policy="none").worker
    server = RpcServer(QUIET)
    server.start(
        [registration(ContextServicer(worker, _authenticate(), lambda *_: remote, pb.InfoResponse(store_address=serving.address)))]
    )
    with Larder(server.address, TOKEN, timeout_s=30) as client:
        yield client
    server.drain()
    remote.close()
    serving.drain()


def test_a_question_is_one_trace_from_client_to_redis(larder: Larder, store: StoreService, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a span for each step that takes time."""
    ids = larder.ingest("a.txt", TEXTS).ids
    store.store.drain(5.0)
    for entry in list(store.store.entries()):
        store.store._index.drop(entry.storage_key, 0, "evicted")
    recorded = Recorded(monkeypatch)
    larder.ask(ids[::-1], QUESTION, max_tokens=2, planner="always_load").finish()
    asked = recorded.named("larder.client.Ask").context.trace_id
    names = {span.name for span in recorded.spans() if span.context.trace_id == asked}
    assert names >= {
        *("larder.client.Ask", "larder.Ask", "larder.lookup", "larder.plan", "larder.prefill", "larder.decode", "larder.fetch"),
        *("larder.Lookup", "larder.redis.find"),
    }


def test_an_ingest_is_one_trace_down_to_what_is_put(larder: Larder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding and putting happen on other threads."""
    recorded = Recorded(monkeypatch)
    larder.ingest("b.txt", ["A passage that nobody has read yet."])
    assert recorded.named("larder.put").context.trace_id == recorded.named("larder.client.Ingest").context.trace_id


def test_the_id_of_a_request_is_in_its_report_and_in_the_stores_misses(larder: Larder, store: StoreService) -> None:
    """So that an operator gets from one to the other."""
    ids = larder.ingest("a.txt", TEXTS).ids
    larder.invalidate_all()
    report = larder.ask(ids, QUESTION, max_tokens=2).finish().report
    misses = store.bind("alpha").tally.misses
    assert {(note.request_id, note.reason) for note in misses if note.request_id == report.request_id} == {(report.request_id, "epoch")}


def test_each_request_has_an_id_of_its_own_that_explain_finds(larder: Larder) -> None:
    """And the log line of its answer names it."""
    ids = larder.ingest("a.txt", TEXTS).ids
    first, second = (larder.ask(ids, QUESTION, max_tokens=1).finish().report.request_id for _ in range(2))
    assert first != second
    assert larder.explain(first).report.request_id == first


def test_the_log_of_an_answer_names_its_request(larder: Larder, caplog: pytest.LogCaptureFixture) -> None:
    """And nothing of what was asked."""
    ids = larder.ingest("a.txt", TEXTS).ids
    with caplog.at_level(logging.INFO):
        request = larder.ask(ids, QUESTION, max_tokens=1).finish().report.request_id
    (line,) = [record.getMessage() for record in caplog.records if request in record.getMessage()]
    assert line.startswith(f"answered request {request}: first token after")
