"""Measure what computing and loading cost here, in seconds at start: the numbers that planners decide by."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from kvstore.core.api import PutNote, StoreAPI
from kvstore.core.blob import BufferedBlob
from kvstore.core.errors import KVError
from kvstore.core.key import ChunkKey, Kind, content_key
from kvstore.planners.cost import CostModel
from kvstore.planners.samples import CostSample, DecodeSample, PrefillSample, ReadSample, SpliceSample
from kvworker.answer.load import DeviceSource
from kvworker.answer.prompt import DECODED, DEVICE
from kvworker.chunk import PassageKV
from kvworker.codec.decode import decode_chunk
from kvworker.codec.pipeline import Pipeline
from kvworker.engine.engine import Engine, Segment
from kvworker.engine.sampling import Sampling

_SEED = 12345
_REPEATS = 3
_LONGEST_STEP_S = 0.4
_SMALLEST, _LARGEST = 32, 4096
_VOCABULARY = 128  # byte fallback alone gives a model more tokens than this
# Seconds per read and bytes per second of tiers that cannot be timed before something is stored there; the first reads correct them.
_ASSUMED = {"disk": (5e-4, 1e9), "redis": (1e-3, 5e8)}


@dataclass(frozen=True)
class _Probe:
    """Random tokens, their KV, and the same encoded."""

    token_ids: tuple[int, ...]
    kv: PassageKV
    blob: bytearray
    key: ChunkKey


def calibrate(engine: Engine, pipeline: Pipeline, store: StoreAPI | None) -> CostModel:
    """Return the costs of this engine, this codec and this store.

    Takes a few seconds: prompts double in length until one takes 0.4 s. Without a store, or with one that fails, its tiers get assumed
    speeds.
    """
    draw = random.Random(_SEED)
    samples: list[CostSample] = list(_prefill_samples(engine, draw))
    sizes = sorted({s.rows for s in samples if isinstance(s, PrefillSample)})[:2]
    probes = [_probe(engine, pipeline, _tokens(draw, n)) for n in sizes]
    for probe in probes:
        samples += _decode_samples(pipeline, probe)
        samples += _splice_samples(engine, probe)
    samples += _read_samples(store, probes)
    return CostModel.calibrated(samples, overlap=1 - 1 / len(engine.identity.layout.groups))


def _prefill_samples(engine: Engine, draw: random.Random) -> Iterator[PrefillSample]:
    """Yield full prefills of growing length, each size at least twice."""
    n_tokens, seconds, n_sizes = min(_SMALLEST, engine.max_context_tokens // 4), 0.0, 0
    while n_sizes < 3 or (seconds < _LONGEST_STEP_S and n_tokens <= min(_LARGEST, engine.max_context_tokens // 2)):
        ids = _tokens(draw, n_tokens)
        seconds = _median_s(lambda ids=ids: engine.prefill([Segment(ids)], range(len(ids)), Sampling(max_new_tokens=1)))  # type: ignore[misc]
        yield PrefillSample(n_tokens, (n_tokens + 1) / 2, seconds)
        n_tokens, n_sizes = n_tokens * 2, n_sizes + 1


def _tokens(draw: random.Random, n_tokens: int) -> tuple[int, ...]:
    """Return token ids that every vocabulary has."""
    return tuple(draw.randrange(_VOCABULARY) for _ in range(n_tokens))


def _probe(engine: Engine, pipeline: Pipeline, token_ids: tuple[int, ...]) -> _Probe:
    """Return a passage that no text has, computed and encoded."""
    namespace = engine.identity.namespace
    content = content_key(namespace, Kind.ALONE, token_ids)
    (kv,) = engine.export([token_ids])
    blob = pipeline.encode(kv, engine.identity, Kind.ALONE, content)
    return _Probe(token_ids, kv, blob, ChunkKey(namespace, content, pipeline.spec.variant()))


def _decode_samples(pipeline: Pipeline, probe: _Probe) -> Iterator[DecodeSample]:
    """Yield the decoding of a whole chunk, and that of a copy that is decoded already, which costs nothing worth counting."""
    reader = BufferedBlob(probe.blob, "")
    parts = [reader.part(i) for i in range(len(reader.manifest.parts))]
    seconds = _median_s(lambda: decode_chunk(reader.manifest, parts, pipeline))
    yield DecodeSample(pipeline.spec.label, len(probe.blob), seconds)
    yield DecodeSample(DECODED, sum(chunk.nbytes for chunk in probe.kv), 1e-7)


def _splice_samples(engine: Engine, probe: _Probe) -> Iterator[SpliceSample]:
    """Yield what a spliced passage adds to computing the token behind it."""
    last = Segment(probe.token_ids[:1])
    sourced = [Segment(probe.token_ids, DeviceSource(probe.kv)), last]
    sampling = Sampling(max_new_tokens=1)
    with_passage = _median_s(lambda: engine.prefill(sourced, [len(probe.token_ids)], sampling))
    without = _median_s(lambda: engine.prefill([last], [0], sampling))
    yield SpliceSample(len(probe.token_ids), max(with_passage - without, 1e-6))


def _read_samples(store: StoreAPI | None, probes: list[_Probe]) -> Iterator[ReadSample]:
    """Yield timed reads of the tier that a new chunk lands in, and assumed speeds for the others."""
    for probe in probes:
        yield ReadSample(DEVICE, sum(chunk.nbytes for chunk in probe.kv), 1e-6)
        for tier, (latency_s, bytes_per_s) in _ASSUMED.items():
            yield ReadSample(tier, len(probe.blob), latency_s + len(probe.blob) / bytes_per_s)
        try:
            yield from _timed_reads(store, probe) if store else ()
        except KVError:
            continue


def _timed_reads(store: StoreAPI, probe: _Probe) -> Iterator[ReadSample]:
    """Store a probe, read it a few times and delete it."""
    store.put(probe.blob, PutNote(source="calibration"))
    try:
        for _ in range(_REPEATS):
            started = time.perf_counter()
            reader = store.get(probe.key)
            if reader is not None:
                with closing(reader):
                    for index in range(len(reader.manifest.parts)):
                        reader.part(index)
                yield ReadSample(reader.tier, reader.nbytes, time.perf_counter() - started)
    finally:
        store.delete([probe.key])


def _median_s(run: Callable[[], object]) -> float:
    """Return the median duration of a few runs behind one that warms up."""
    run()
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return sorted(times)[_REPEATS // 2]
