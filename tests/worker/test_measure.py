"""Measuring at start gives a model that planners can decide by, whatever the store does."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kvstore.core.api import PutNote, PutReceipt, StoreAPI
from kvstore.core.blob import Buffer
from kvstore.core.errors import DeadlineError, KVError, TierUnavailableError
from kvstore.core.key import ChunkKey
from kvstore.planners.plan import Load, Offer, PassageAsk, Request
from kvstore.planners.planner import find_planner
from kvstore.server.service import StoreService
from kvworker.answer.measure import calibrate
from kvworker.codec.pipeline import Pipeline
from kvworker.codec.specs import find_codec
from kvworker.engine.engine import Generation, Segment
from kvworker.engine.sampling import Sampling
from tests.engine.prompts import Tiny
from tests.worker.lab import FailingGet, LosingGet, Refusing, TamperedParts, Wrapped

RAW = find_codec("raw")
TIERS = ("device", "memory", "disk", "redis")


class Keeping(Wrapped):
    """Fails to delete."""

    def delete(self, keys: Sequence[ChunkKey]) -> int:
        """Raise."""
        raise TierUnavailableError("gone")


def failing(service: StoreService) -> list[StoreAPI | None]:
    """Return no store, and stores that fail."""
    store = service.bind("calibration")
    return [
        None,
        FailingGet(store, DeadlineError("late")),
        LosingGet(store),
        Refusing(store, KVError("full")),
        Keeping(store),
    ]


@pytest.mark.parametrize("codec", ["raw", "int8"])
def test_a_measured_model_lets_the_planner_decide(tiny: Tiny, service: StoreService, codec: str) -> None:
    """Prefill, decoding, splicing and the tier in use are known; what costs more is predicted to cost more."""
    pipeline = find_codec(codec)
    model = calibrate(tiny.engine, [pipeline], service.bind("calibration"))
    short, long = model.predict_prefill(32, 16), model.predict_prefill(4096, 2048)
    assert short is not None
    assert long is not None
    assert 0 < short <= long
    assert model.load_rates("memory", pipeline.spec.label)
    assert 0 < model.overlap < 1


def test_the_measured_model_prefers_loading_much_to_computing_it(tiny: Tiny, service: StoreService) -> None:
    """A chunk in device memory costs next to nothing."""
    model = calibrate(tiny.engine, [RAW], service.bind("calibration"))
    request = Request((PassageAsk(0, 4000, 0),), 10)
    plan = find_planner("min_cost").plan(request, {0: [Offer("device", 1 << 20, bytes(32), "decoded")]}, model)
    assert isinstance(plan.items[0], Load)


@pytest.mark.parametrize("index", range(5))
def test_a_store_that_fails_leaves_assumed_speeds(tiny: Tiny, service: StoreService, index: int) -> None:
    """A worker starts without a store."""
    model = calibrate(tiny.engine, [RAW], failing(service)[index])
    assert model.predict_prefill(100, 50)
    for tier in ("device", "disk", "redis"):
        assert model.load_rates(tier, "decoded" if tier == "device" else "raw") is not None


class Once(Wrapped):
    """Has what is put to it the first time only."""

    def put(self, blob: Buffer, note: PutNote) -> PutReceipt:
        """Fail from the second time on."""
        if self.puts:
            raise TierUnavailableError("gone")
        return super().put(blob, note)


def test_a_store_that_goes_between_two_reads_is_as_good_as_none(tiny: Tiny, service: StoreService) -> None:
    """One size says nothing of what the other costs, and a worker starts nevertheless."""
    model = calibrate(tiny.engine, [RAW], Once(service.bind("calibration")))
    assert model.load_rates("memory", "raw") is None
    assert model.load_rates("disk", "raw") is not None


def test_workers_that_start_together_do_not_read_each_other_s_probes(tiny: Tiny, service: StoreService) -> None:
    """The first to be ready would delete what the other one measures."""
    stores = [Wrapped(service.bind("calibration")) for _ in range(2)]
    for store in stores:
        calibrate(tiny.engine, [RAW], store)
    assert not set(stores[0].gets) & set(stores[1].gets)


def test_nothing_is_left_in_the_store(tiny: Tiny, service: StoreService) -> None:
    """Probes are nobody's text."""
    store = service.bind("calibration")
    calibrate(tiny.engine, [RAW], store)
    assert list(store.entries()) == []


def breaks(index: int, data: memoryview) -> memoryview:
    """Raise instead of the last part."""
    if index:
        raise TierUnavailableError("gone in the middle")
    return data


def test_a_read_that_fails_in_the_middle_leaves_no_reader_open(tiny: Tiny, service: StoreService) -> None:
    """An open reader keeps memory of the store."""
    store = TamperedParts(service.bind("calibration"), breaks)
    calibrate(tiny.engine, [RAW], store)
    assert store.readers
    assert all(reader.closed == 1 for reader in store.readers)


class _Small:
    """An engine whose model reads few tokens."""

    def __init__(self, tiny: Tiny, n_tokens: int) -> None:
        self._engine, self.max_context_tokens = tiny.engine, n_tokens
        self.longest = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def prefill(self, segments: Sequence[Segment], rows: Sequence[int], sampling: Sampling) -> Generation:
        """Note the length of the prompt and pass on."""
        self.longest = max(self.longest, sum(len(segment.token_ids) for segment in segments))
        return self._engine.prefill(segments, rows, sampling)


@pytest.mark.parametrize("n_tokens", [16, 100, 127, 128, 512])
def test_no_prompt_is_longer_than_the_model_reads(tiny: Tiny, n_tokens: int) -> None:
    """Also where the context is smaller than the usual sizes."""
    engine = _Small(tiny, n_tokens)
    pipeline: Pipeline = RAW
    assert calibrate(engine, [pipeline], None).predict_prefill(10, 5)  # type: ignore[arg-type]
    assert engine.longest <= n_tokens
