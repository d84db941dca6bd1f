"""A store that dies, stalls or lies in the middle of a request: the answer is the computed one, and comes in time.

Every fault strikes at a byte of a chunk's transfer that a seed chooses, below the checks that every reader makes. The context is a document
in its own order, whose stored rows are exact, so that any mixture of loading and computing must give the answer of a full prefill. What
stalls does so until the test lets go, far beyond the bound.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from kvstore.planners.samples import PrefillSample, ReadSample
from kvstore.server.config import DiskConfig, MemoryConfig, StoreConfig, TiersConfig
from kvstore.server.opening import open_store
from kvworker.answer import job
from kvworker.answer.measure import calibrate
from kvworker.bench.faulty import KINDS, Fault, FaultyStore
from kvworker.codec.specs import find_codec
from kvworker.serve.runtime import Caller, Worker
from kvworker.settings import WorkerSettings
from tests.engine.prompts import load_tiny
from tests.faults.soak import n_runs
from tests.worker.lab import Lab

SLACK_S = 0.02
MARGIN_S = 2.0  # of a machine that does other things too; a stall lasts ten times as long
TEXTS = [f"Passage {n} says that {'salt ' * (n % 5)}comes from the river number {n * 7}." for n in range(8)]
BYTES_PER_S = 1e12  # the link is not what fails


@dataclass
class Scene:
    """A worker with a stored document, and its answer."""

    lab: Lab
    store: FaultyStore
    names: Sequence[str]
    expected: list[int]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Yield one worker for all faults; it remembers no copies of its own."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tiny = load_tiny("llama", tmp_path_factory.mktemp("faults-llama"))
    folder: Path = tmp_path_factory.mktemp("faults-store")
    tiers = TiersConfig(memory=MemoryConfig(capacity=32 << 20), disk=DiskConfig(capacity=0))
    service = open_store(StoreConfig(data_dir=str(folder), tiers=tiers))
    store = FaultyStore(service.bind("alice"), BYTES_PER_S)
    settings = WorkerSettings(device_bytes=0, load_slack_s=SLACK_S, load_threads=64)
    worker = Worker(tiny.engine, settings)
    lab = Lab(tiny, worker, service, Caller("alice", store))
    names = lab.names(texts=TEXTS)
    yield Scene(lab, store, names, lab.expected(names))
    worker.close()
    service.close()
    torch.set_num_threads(n_threads)


def known_costs(scene: Scene) -> None:
    """Have a race look worthwhile: loading takes about as long as computing."""
    model = calibrate_once(scene)
    nbytes, tier = max(entry.nbytes for entry in scene.store.entries()), scene.store.tier
    compute_s = model.predict_prefill(64, 32) or 0.01
    for _ in range(3):
        model = model.observe(ReadSample(tier, nbytes, compute_s / 2)).observe(PrefillSample(64, 32.0, compute_s))
    scene.lab.worker.costs._model = model


_calibrated: dict[int, object] = {}


def calibrate_once(scene: Scene) -> object:
    """Measure the tiny model once."""
    if id(scene) not in _calibrated:
        _calibrated[id(scene)] = calibrate(scene.lab.tiny.engine, [find_codec("raw")], None)
    return _calibrated[id(scene)]


@pytest.mark.parametrize("seed", range(n_runs(500, 60)))
def test_a_store_that_fails_in_the_middle_changes_nothing_but_who_computes(
    scene: Scene, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never wrong, never down; nothing is waited for beyond the slack, and beyond computing where a planner insists on loading."""
    draw = random.Random(seed)
    fault = Fault(draw.choice(KINDS), draw.randrange(len(TEXTS)), draw.random())
    planner = draw.choice(("always_load", "min_cost"))
    known_costs(scene)
    monkeypatch.setattr(job, "is_worth_racing", lambda plan, _: plan.planned_s is not None)
    scene.store.strike(fault)
    try:
        answer = scene.lab.ask(scene.names, scene.store, policy="none", planner=planner)
    finally:
        fault.is_over.set()
    assert answer.token_ids == scene.expected
    computed_s = scene.lab.worker.costs.model.predict_prefill(len(scene.lab.prompt_ids(scene.names)), 50) or 0.0
    n_times = 2 if planner == "always_load" else 1
    assert answer.report.ttft_s < n_times * computed_s + SLACK_S + MARGIN_S
