"""One tiny model and one calibration for all tests of the worker; a store and a worker of its own for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvstore.planners.cost import CostModel
from kvstore.server.config import DiskConfig, MemoryConfig, StoreConfig, TiersConfig
from kvstore.server.opening import open_store
from kvstore.server.service import StoreService
from kvworker.answer.measure import calibrate
from kvworker.codec.specs import find_codec
from kvworker.serve import runtime
from kvworker.serve.runtime import Caller, Worker
from kvworker.settings import WorkerSettings
from tests.engine.prompts import Tiny, load_tiny
from tests.redis_server import RedisServer
from tests.worker.lab import Lab

TIERS = TiersConfig(memory=MemoryConfig(capacity=32 << 20), disk=DiskConfig(capacity=0))
MakeLab = Callable[..., Lab]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread: tiny tensors lose more to waking others than they win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Return the plainest tiny model: 4 layers in 2 layer groups."""
    return load_tiny("llama", tmp_path_factory.mktemp("worker-llama"))


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """Run one Redis for all tests of catalogs."""
    with RedisServer() as running:
        yield running


@pytest.fixture(scope="session")
def costs(tiny: Tiny) -> CostModel:
    """Measure the tiny model once."""
    return calibrate(tiny.engine, [find_codec("raw")], None)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[StoreService]:
    """Open a store in memory."""
    service = open_store(StoreConfig(data_dir=str(tmp_path / "store"), tiers=TIERS))
    yield service
    service.close()


@pytest.fixture
def make_lab(tiny: Tiny, costs: CostModel, service: StoreService, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeLab]:
    """Yield a function that opens a worker with other settings than the defaults; closes them all behind the test."""
    monkeypatch.setattr(runtime, "calibrate", lambda *_: costs)
    workers: list[Worker] = []

    def make(data_dir: Path | None = None, model_dir: Path | None = None, **settings: object) -> Lab:
        worker = Worker(tiny.engine, replace(WorkerSettings(), **settings), None, data_dir, model_dir)  # type: ignore[arg-type]
        workers.append(worker)
        return Lab(tiny, worker, service, Caller("alice", service.bind("alice")))

    yield make
    for worker in workers:
        worker.close()


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    """Return a worker with default settings."""
    return make_lab()
