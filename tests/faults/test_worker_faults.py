"""A store that dies, stalls or lies in the middle of a request: the answer is the computed one, and comes in time.

Every fault strikes at a byte of a chunk's transfer that a seed chooses, below the checks that every reader makes. The context is a document
in its own order, whose stored rows are exact, so that any mixture of loading and computing must give the answer of a full prefill. What
stalls does so until the test lets go, far beyond the bound.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from kvstore.core.api import BlobReader, PutNote, PutReceipt
from kvstore.core.blob import Buffer, key_of, parse_header
from kvstore.core.errors import TierUnavailableError
from kvstore.core.key import ChunkKey
from kvstore.core.landing import Landing
from kvstore.core.reading import PartReader
from kvstore.planners.samples import PrefillSample, ReadSample
from kvstore.server.config import DiskConfig, MemoryConfig, StoreConfig, TiersConfig
from kvstore.server.opening import open_store
from kvworker.answer import job
from kvworker.answer.measure import calibrate
from kvworker.codec.specs import find_codec
from kvworker.serve.runtime import Caller, Worker
from kvworker.settings import WorkerSettings
from tests.engine.prompts import load_tiny
from tests.faults.soak import n_runs
from tests.worker.lab import Lab, Wrapped

KINDS = ("kill", "stall", "garbage", "cut")
SLACK_S = 0.02
MARGIN_S = 2.0  # of a machine that does other things too; a stall lasts ten times as long
TEXTS = [f"Passage {n} says that {'salt ' * (n % 5)}comes from the river number {n * 7}." for n in range(8)]
PIECE_NBYTES = 1000


@dataclass
class Fault:
    """What goes wrong: at byte `at` of the transfer of the `nth` chunk that is asked for."""

    kind: str
    nth: int
    at: float
    gate: threading.Event


class FaultyLanding(Landing):
    """A transfer that goes wrong."""

    def __init__(self, blob: bytes, fault: Fault, store: FaultyStore) -> None:
        super().__init__(memoryview(bytearray(len(blob))))
        self._blob, self._fault, self._faulty = blob, fault, store
        self._strikes_at = int(fault.at * len(blob))

    def _receive(self, room: memoryview) -> int:
        """Copy a piece, up to where the fault strikes."""
        begin = self.nbytes - room.nbytes
        if begin < self._strikes_at or self._fault.kind == "garbage":
            end = min(begin + PIECE_NBYTES, self.nbytes if begin >= self._strikes_at else self._strikes_at)
            piece = self._blob[begin:end]
            room[: len(piece)] = piece if begin < self._strikes_at else bytes(255 - byte for byte in piece)
            return len(piece)
        if self._fault.kind == "stall":
            assert self._fault.gate.wait(20)
        self._faulty.is_dead = self._fault.kind == "kill"
        raise TierUnavailableError(f"{self._fault.kind} at byte {begin}")


class FaultyStore(Wrapped):
    """Hands out transfers of what was put, one of which goes wrong."""

    def __init__(self, store: Wrapped, blobs: dict[ChunkKey, bytes], fault: Fault) -> None:
        super().__init__(store)
        self.blobs, self.fault, self.is_dead = blobs, fault, False

    def get(self, key: ChunkKey, timeout_s: float | None = None) -> BlobReader | None:
        """Open a transfer."""
        if self.is_dead:
            raise TierUnavailableError("the store is dead")
        self.gets.append(key)
        fault = self.fault if len(self.gets) - 1 == self.fault.nth else Fault("none", -1, 1.0, self.fault.gate)
        return PartReader(FaultyLanding(self.blobs[key], fault, self), key, "memory")


class Recording(Wrapped):
    """Keeps a copy of every chunk."""

    def __init__(self, store: Wrapped) -> None:
        super().__init__(store)
        self.blobs: dict[ChunkKey, bytes] = {}

    def put(self, blob: Buffer, note: PutNote) -> PutReceipt:
        """Keep and pass on."""
        self.blobs[key_of(parse_header(blob).manifest)] = bytes(blob)
        return super().put(blob, note)


@dataclass
class Scene:
    """A worker with a stored document, and its answer."""

    lab: Lab
    names: Sequence[str]
    blobs: dict[ChunkKey, bytes]
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
    store = Recording(service.bind("alice"))  # type: ignore[arg-type]
    settings = WorkerSettings(device_bytes=0, load_slack_s=SLACK_S, load_threads=64)
    worker = Worker(tiny.engine, settings)
    lab = Lab(tiny, worker, service, Caller("alice", store))
    names = lab.names(texts=TEXTS)
    yield Scene(lab, names, store.blobs, lab.expected(names))
    worker.close()
    service.close()
    torch.set_num_threads(n_threads)


def known_costs(scene: Scene) -> None:
    """Have a race look worthwhile: loading takes about as long as computing."""
    model = calibrate_once(scene)
    nbytes = max(map(len, scene.blobs.values()))
    compute_s = model.predict_prefill(64, 32) or 0.01
    for _ in range(3):
        model = model.observe(ReadSample("memory", nbytes, compute_s / 2)).observe(PrefillSample(64, 32.0, compute_s))
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
    """Never wrong, never down; nothing is waited for beyond what computing takes and the slack that is set."""
    draw = random.Random(seed)
    fault = Fault(draw.choice(KINDS), draw.randrange(len(TEXTS)), draw.random(), threading.Event())
    store = FaultyStore(scene.lab.caller.store, scene.blobs, fault)  # type: ignore[arg-type]
    planner = draw.choice(("always_load", "min_cost"))
    known_costs(scene)
    monkeypatch.setattr(job, "is_worth_racing", lambda plan, _: plan.planned_s is not None)
    try:
        answer = scene.lab.ask(scene.names, store, policy="none", planner=planner)
    finally:
        fault.gate.set()
    assert answer.token_ids == scene.expected
    computed_s = scene.lab.worker.costs.model.predict_prefill(len(scene.lab.prompt_ids(scene.names)), 50) or 0.0
    assert answer.report.ttft_s < 2 * computed_s + SLACK_S + MARGIN_S
