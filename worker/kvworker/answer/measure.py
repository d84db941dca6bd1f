"""Measure what computing and loading cost here, in seconds at start: the numbers that planners decide by."""

from __future__ import annotations

import logging
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial

from kvstore.core.api import PutNote, StoreAPI
from kvstore.core.blob import BufferedBlob
from kvstore.core.errors import KVError
from kvstore.core.key import ChunkKey, Kind, content_key
from kvstore.planners.cost import CostModel, fit_samples
from kvstore.planners.samples import CostSample, DecodeSample, PrefillSample, ReadSample, SpliceSample
from kvworker.answer.load import DeviceSource
from kvworker.answer.prompt import DECODED, DEVICE
from kvworker.answer.stopwatch import least_seconds
from kvworker.chunk import PassageKV
from kvworker.codec.decode import decode_chunk
from kvworker.codec.pipeline import Pipeline
from kvworker.engine.engine import Engine, Generation, Segment
from kvworker.engine.sampling import Sampling

_SEED = 12345
_READS = 5
_COPIES = 8
_LEAST_SHARE = 0.01  # of a pass: less is lost in how much passes differ
_LONGEST_STEP_S = 0.4
_MOST_EXCESS = 0.3  # a quiet machine's prefills are predicted to within a tenth
_ATTEMPTS, _LONGEST_S = 3, 2.0
_SMALLEST, _LARGEST = 32, 4096
_VOCABULARY = 128  # byte fallback alone gives a model more tokens than this
# Seconds per read and bytes per second of tiers that cannot be timed before something is stored there; the first reads correct them.
_ASSUMED = {"disk": (5e-4, 1e9), "redis": (1e-3, 5e8)}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Probe:
    """Random tokens, their KV, and the same encoded."""

    token_ids: tuple[int, ...]
    kv: PassageKV
    blob: bytearray
    key: ChunkKey


def calibrate(engine: Engine, codecs: Sequence[Pipeline], store: StoreAPI | None) -> CostModel:
    """Return the costs of this engine, these codecs and this store, which is read in the first.

    Takes a few seconds: prompts double in length until one takes 0.4 s. On a busy machine it takes a few seconds more, in case no
    prefill then takes much longer than the others predict. Without a store, or with one that fails, its tiers get assumed speeds.
    """
    draw = random.Random(_SEED)
    prefills = _prefill_samples(engine, draw)
    own = random.Random()  # two workers that start together must not delete each other's probes
    passages = [_tokens(own, n) for n in sorted(sample.rows for sample in prefills)[:2]]
    by_codec = [[_probe(engine, codec, ids) for ids in passages] for codec in codecs]
    probes = by_codec[0]
    samples: list[CostSample] = [
        *prefills,
        *(sample for codec, own in zip(codecs, by_codec, strict=True) for sample in _decode_samples(codec, own)),
        *_landing_samples(engine, probes),
        *_read_samples(store, probes),
    ]
    return CostModel.calibrated(samples, overlap=1 - 1 / len(engine.identity.layout.groups))


def _prefill_samples(engine: Engine, draw: random.Random) -> list[PrefillSample]:
    """Return full prefills of growing length, at least three; measured again where they contradict each other."""
    prompts: list[tuple[int, ...]] = []
    n_tokens, seconds = min(_SMALLEST, engine.max_context_tokens // 4), 0.0
    while len(prompts) < 3 or (seconds < _LONGEST_STEP_S and n_tokens <= min(_LARGEST, engine.max_context_tokens // 2)):
        prompts.append(_tokens(draw, n_tokens))
        seconds = least_seconds([partial(_prefill, engine, prompts[-1])], 2)[0]
        n_tokens *= 2
    runs = [partial(_prefill, engine, ids) for ids in prompts]
    best, began = [math.inf] * len(runs), time.perf_counter()
    samples: list[PrefillSample] = []
    for _ in range(_ATTEMPTS):
        best = list(map(min, best, least_seconds(runs)))
        samples = [PrefillSample(len(ids), (len(ids) + 1) / 2, s) for ids, s in zip(prompts, best, strict=True)]
        if max(_excess(samples)) <= _MOST_EXCESS:
            return samples
        if time.perf_counter() - began > _LONGEST_S:
            break
    return _without_disturbed(samples)


def _without_disturbed(samples: Sequence[PrefillSample]) -> list[PrefillSample]:
    """Return the samples without those that take much longer than the others predict, down to three, and say so in the log."""
    kept = list(samples)
    while len(kept) > 3 and max(excess := _excess(kept)) > _MOST_EXCESS:
        del kept[excess.index(max(excess))]
    n_dropped = len(samples) - len(kept)
    _log.warning("the machine is busy: timed prefills contradict each other, %d of %d do not count", n_dropped, len(samples))
    return kept


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


def _decode_samples(pipeline: Pipeline, probes: Sequence[_Probe]) -> Iterator[DecodeSample]:
    """Yield the decoding of whole chunks, and that of copies that are decoded already, which costs nothing worth counting."""
    readers = [BufferedBlob(probe.blob, "") for probe in probes]
    parts = [[reader.part(i) for i in range(len(reader.manifest.parts))] for reader in readers]
    runs = [partial(decode_chunk, reader.manifest, data, pipeline) for reader, data in zip(readers, parts, strict=True)]
    for probe, seconds in zip(probes, least_seconds(runs), strict=True):
        yield DecodeSample(pipeline.spec.label, len(probe.blob), seconds)
        yield DecodeSample(DECODED, sum(chunk.nbytes for chunk in probe.kv), 1e-7)


def _landing_samples(engine: Engine, probes: Sequence[_Probe]) -> Iterator[SpliceSample | PrefillSample]:
    """Yield what spliced passages add to computing the token behind them, and what more rows behind them take.

    Several passages at once, because one takes less than a pass over the model's weights varies.
    """
    own, sampling = probes[0].token_ids, Sampling(max_new_tokens=1)
    n_copies = max(1, min(_COPIES, (engine.max_context_tokens - len(own)) // len(probes[-1].token_ids)))
    alone = partial(engine.prefill, [Segment(own[:1])], [0], sampling)
    runs = [alone, *(_behind(engine, probe, n_copies, own[:1]) for probe in probes), _behind(engine, probes[-1], n_copies, own)]
    without, *spliced, longer = least_seconds(runs)
    for probe, seconds in zip(probes, spliced, strict=True):
        yield SpliceSample(n_copies, n_copies * len(probe.token_ids), max(seconds - without, _LEAST_SHARE * seconds))
    context = n_copies * len(probes[-1].token_ids) + (len(own) + 1) / 2
    yield PrefillSample(len(own), context, max(longer - spliced[-1] + without, without))


def _behind(engine: Engine, probe: _Probe, n_copies: int, token_ids: tuple[int, ...]) -> partial[Generation]:
    """Return what computes tokens behind copies of a stored passage."""
    segments = [*[Segment(probe.token_ids, DeviceSource(probe.kv))] * n_copies, Segment(token_ids)]
    first = n_copies * len(probe.token_ids)
    return partial(engine.prefill, segments, range(first, first + len(token_ids)), Sampling(max_new_tokens=1))


def _read_samples(store: StoreAPI | None, probes: list[_Probe]) -> Iterator[ReadSample]:
    """Yield timed reads of the tier that new chunks land in, where it was timed with all of them, and assumed speeds for the others."""
    timed: list[ReadSample] = []
    for probe in probes:
        yield ReadSample(DEVICE, sum(chunk.nbytes for chunk in probe.kv), 1e-6)
        for tier, (latency_s, bytes_per_s) in _ASSUMED.items():
            yield ReadSample(tier, len(probe.blob), latency_s + len(probe.blob) / bytes_per_s)
        with suppress(KVError):
            timed += _timed_reads(store, probe) if store else ()
    n_timed = Counter(sample.tier for sample in timed)
    yield from (sample for sample in timed if sample.tier in _ASSUMED or n_timed[sample.tier] == len(probes))


def _timed_reads(store: StoreAPI, probe: _Probe) -> Iterator[ReadSample]:
    """Store a probe, read it a few times and delete it; yields the quickest read of each tier that it came from."""
    store.put(probe.blob, PutNote(source="calibration"))
    best: dict[str, ReadSample] = {}
    try:
        for _ in range(_READS):
            started = time.perf_counter()
            reader = store.get(probe.key)
            if reader is not None:
                with closing(reader):
                    for index in range(len(reader.manifest.parts)):
                        reader.part(index)
                sample = ReadSample(reader.tier, reader.nbytes, time.perf_counter() - started)
                best[sample.tier] = min(sample, best.get(sample.tier, sample), key=lambda s: s.seconds)
    finally:
        store.delete([probe.key])
    yield from best.values()


def _prefill(engine: Engine, token_ids: tuple[int, ...]) -> None:
    """Compute a prompt."""
    engine.prefill([Segment(token_ids)], range(len(token_ids)), Sampling(max_new_tokens=1))


def _excess(samples: Sequence[PrefillSample]) -> list[float]:
    """Return by how much each sample takes longer than all of them together predict, as a share."""
    cost = fit_samples(samples)
    return [sample.seconds / cost.predict(sample.features) - 1 for sample in samples]
