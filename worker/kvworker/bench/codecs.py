"""Every codec on the KV of a model: bits, speed, errors, and what becomes of the answers.

Variants are presets, codecs, and transformers' quantized cache where its libraries are installed. Codecs that need tables are calibrated
on text of another split. `bits_per_value`, speeds and errors are those of passages of x tokens; `bits_per_value` counts whole blobs, and
`artifact_mb` what a model's tables take once. GB/s are of raw bytes. Errors are norms over norms, those of attention mean over layers,
judged by the queries of the 32 rows behind the passage; `worst_layer` is the model layer of `attn_err_worst_layer`. `top1`, `kl` and
`accuracy` are of first tokens of answers over contexts of eight notes, an exact prefix of the prompt: against those from raw KV, and
against the right ones.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch

from kvclient.cli.output import Number, Output, Record
from kvclient.cli.progress import progress
from kvworker.bench.benchmark import Asked
from kvworker.bench.codec_catalogue import QUICK, UNCALIBRATED, catalogue
from kvworker.bench.codec_subjects import OwnCodec, Subject, peers
from kvworker.bench.embedded import RANDOM
from kvworker.bench.random_model import write_random_model
from kvworker.bench.rows import Bench, Row, cpu_name
from kvworker.calibrate.calibrate import Reach, gather
from kvworker.calibrate.files import save_statistics
from kvworker.calibrate.fit import complete
from kvworker.calibrate.texts import readings
from kvworker.chunk import PassageKV
from kvworker.codec.artifacts import Artifacts
from kvworker.codec.presets import LADDER
from kvworker.codec.specs import find_codec
from kvworker.codec.stages import Calibrated
from kvworker.engine.engine import N_PROBES, Engine
from kvworker.engine.engine_hf import load_engine
from kvworker.quality import notes
from kvworker.quality.answers import Answers, Asking
from kvworker.quality.errors import Probes, errors_of
from kvworker.quality.ladder import ready_preset
from kvworker.reference import MODEL_FOLDER

DTYPE = "bfloat16"
RAW = "raw"
FULL, BRIEF = Reach(16_384, 120.0), Reach(2_048, 10.0)
_SEED = 60_000
_PASSAGES, _PER_KIND = 8, 8
_TIMED_S, _MOST_TURNS = 0.3, 50


@dataclass(frozen=True)
class _Text:
    """A passage from within: its KV, and the queries of the rows behind it."""

    kv: PassageKV
    probes: Probes


@dataclass(frozen=True)
class CodecsBench:
    """`larder bench codecs`.

    Parameters
    ----------
    sizes : tuple of int
        Tokens of the passages that errors, bits and speeds are measured on.
    codecs : tuple of str
        What is measured beside raw KV.
    n_texts, n_contexts : int
        Passages of each size, and contexts of 32 questions.
    reach : Reach
        How much text is calibrated on.
    """

    name: ClassVar[str] = "codecs"
    sizes: tuple[int, ...] = (1024,)
    codecs: tuple[str, ...] = field(default_factory=catalogue)
    n_texts: int = 3
    n_contexts: int = 40
    reach: Reach = FULL

    @classmethod
    def quick(cls) -> CodecsBench:
        """Return the benchmark at a size that ends within a minute on two cores."""
        return cls((512,), QUICK, 1, 3, BRIEF)

    def run(self, asked: Asked) -> Iterator[Row]:
        """Load the model in bfloat16, calibrate, and yield rows, variant by variant."""
        with tempfile.TemporaryDirectory(prefix="larder-bench-") as folder:
            engine = load_engine(_model(asked.model, Path(folder)), dtype=DTYPE)
        with progress("calibrating", self.reach.n_tokens) as advance:
            artifacts = _calibrated(engine, self.reach, advance)
        device = cpu_name() if engine.device == "cpu" else engine.device
        bench = Bench(self.name, "tokens", device, engine.identity.dtype)
        texts = {size: _read(engine, size, self.n_texts) for size in self.sizes}
        asking = Asking(engine, [notes.in_prompt(seed, _PASSAGES, _PER_KIND) for seed in range(_SEED, _SEED + self.n_contexts)])
        with progress("measuring", len(self.codecs)) as advance:
            for subject in _subjects(engine, self.codecs, artifacts):
                yield from _of_artifacts(bench, subject, artifacts, self.sizes)
                for size, found in texts.items():
                    yield from _of_passages(bench, engine, subject, size, found)
                yield from _of_answers(bench, subject.name, self.sizes, asking.ask(partial(_through, subject)))
                advance(1)

    def show(self, rows: Sequence[Row], output: Output) -> None:
        """Print one line per variant and size."""
        output.table(by_variant(rows), {heading: _cell(key, digits) for heading, (key, digits) in _COLUMNS.items()})


def by_variant(rows: Sequence[Row]) -> list[Record]:
    """Return one record per variant and size: the medians of its metrics."""
    lines: dict[tuple[str, float], dict[str, float]] = {}
    for row in rows:
        lines.setdefault((row.variant, row.x), {})[row.metric] = row.p50
    return [{"variant": name, "tokens": size, **values} for (name, size), values in lines.items()]


_COLUMNS = {
    "variant": ("variant", 0),
    "tokens": ("tokens", 0),
    "bits": ("bits_per_value", 2),
    "encode GB/s": ("encode_gb_per_s", 3),
    "decode GB/s": ("decode_gb_per_s", 3),
    "K error": ("k_err", 4),
    "V error": ("v_err", 4),
    "attention error": ("attn_err", 4),
    "worst layer": ("attn_err_worst_layer", 4),
    "top-1": ("top1", 4),
    "KL, nats": ("kl", 4),
    "accuracy": ("accuracy", 4),
}


def _cell(key: str, digits: int) -> Callable[[Record], object]:
    """Return the function that reads one column of a record; what was not measured stays empty."""
    return lambda record: record[key] if key == "variant" else Number(f"{record[key]:.{digits}f}" if key in record else "")


def _model(name: str | None, folder: Path) -> Path:
    """Return a model's directory."""
    if name == RANDOM:
        return write_random_model(MODEL_FOLDER, folder / RANDOM)
    return Path(name) if name else MODEL_FOLDER


def _calibrated(engine: Engine, reach: Reach, advance: Callable[[int], None]) -> Artifacts:
    """Return artifacts in memory that have the model's statistics, to fit tables with."""
    artifacts = Artifacts(engine.identity.namespace)
    save_statistics(gather(engine, readings(engine, ()), reach, advance), engine.identity, artifacts)
    return artifacts


def _subjects(engine: Engine, codecs: Sequence[str], artifacts: Artifacts) -> Iterator[Subject]:
    """Yield what is measured, each as its turn comes: fitting tables takes its time. A codec that is not known raises before the first."""
    presets = {preset.name: preset for preset in LADDER}
    names = tuple(dict.fromkeys((RAW, *codecs)))
    found = {name: find_codec(UNCALIBRATED.get(name, name)) for name in names}
    for name, codec in found.items():
        ready = ready_preset(presets[name], artifacts) if name in presets else complete(codec, artifacts)
        yield OwnCodec(name, ready, engine.identity)
    yield from peers(engine.identity)


def _read(engine: Engine, n_tokens: int, n_texts: int) -> list[_Text]:
    """Return passages of the test split with the queries of the rows behind them."""
    found: list[_Text] = []
    seed = _SEED
    bos = () if engine.bos_id is None else (engine.bos_id,)
    while len(found) < n_texts:
        ids: list[int] = []
        while len(ids) < n_tokens + N_PROBES:
            ids += [token for text in notes.in_prompt(seed, _PASSAGES, 1).texts for token in (*bos, *engine.encode(text))]
            seed += 1
        (kv,) = engine.export([ids[:n_tokens]], n_observed=N_PROBES)
        found.append(_Text(kv, engine.study(ids[: n_tokens + N_PROBES]).probes))
    return found


def _through(subject: Subject, kv: PassageKV) -> PassageKV:
    """Return what a subject gives back."""
    return subject.encode(kv).decode()


def _of_artifacts(bench: Bench, subject: Subject, artifacts: Artifacts, sizes: Sequence[int]) -> Iterator[Row]:
    """Yield what the tables of a calibrated codec take."""
    stages = subject.pipeline.stages if isinstance(subject, OwnCodec) else ()
    tables = [artifacts.find(stage.artifact, stage.subject) for stage in stages if isinstance(stage, Calibrated)]
    if tables:
        nbytes = sum(table.nbytes for found in tables for layer in found.by_layer.values() for table in layer.values())
        yield from (bench.row(subject.name, "artifact_mb", "MB", size, [nbytes / 1e6]) for size in sizes)


def _of_passages(bench: Bench, engine: Engine, subject: Subject, size: int, texts: Sequence[_Text]) -> Iterator[Row]:
    """Yield bits, speeds and errors over passages of one size."""
    encoded = [subject.encode(text.kv) for text in texts]
    n_values = sum(chunk.spec.n_values for chunk in texts[0].kv)
    nbytes = sum(chunk.nbytes for chunk in texts[0].kv)
    layout = engine.identity.layout
    errors = [errors_of(text.kv, kept.decode(), layout, text.probes) for text, kept in zip(texts, encoded, strict=True)]
    measured = {
        ("bits_per_value", "bits"): [8 * kept.nbytes / n_values for kept in encoded],
        ("encode_gb_per_s", "GB/s"): [nbytes / s / 1e9 for s in _seconds(lambda: subject.encode(texts[0].kv))],
        ("decode_gb_per_s", "GB/s"): [nbytes / s / 1e9 for s in _seconds(encoded[0].decode)],
        ("k_err", "ratio"): [e.k for e in errors],
        ("v_err", "ratio"): [e.v for e in errors],
        ("attn_err", "ratio"): [e.mean_attention for e in errors],
    }
    for (metric, unit), values in measured.items():
        yield bench.row(subject.name, metric, unit, size, values)
    by_layer = {layer: statistics.median(e.attention[layer] for e in errors) for layer in errors[0].attention}
    worst = max(by_layer, key=lambda layer: by_layer[layer])
    yield bench.row(subject.name, "attn_err_worst_layer", "ratio", size, [by_layer[worst]])
    yield bench.row(subject.name, "worst_layer", "layer", size, [float(worst)])


def _of_answers(bench: Bench, name: str, sizes: Sequence[int], answers: Answers) -> Iterator[Row]:
    """Yield what became of the answers."""
    for size in sizes:
        yield bench.row(name, "top1", "share", size, [answers.top1])
        yield bench.row(name, "kl", "nats", size, [answers.kl])
        yield bench.row(name, "accuracy", "share", size, [answers.accuracy])


def _seconds(job: Callable[[], object]) -> list[float]:
    """Return how long a job took, turn by turn, once it is warm."""
    job()
    found: list[float] = []
    while not found or (sum(found) < _TIMED_S and len(found) < _MOST_TURNS):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        job()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return found
