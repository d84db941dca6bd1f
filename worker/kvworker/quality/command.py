"""`larder calibrate`: measure a model's losses under reuse and keep them where its worker finds them."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from kvclient.cli.output import Number, Output, output_of
from kvclient.cli.progress import progress
from kvstore.core.errors import InvalidInputError
from kvstore.server.config import ENV_PREFIX as STORE_PREFIX
from kvstore.server.config import load
from kvworker.calibrate.calibrate import QUICK as QUICK_TEXT
from kvworker.calibrate.calibrate import Reach, prepare
from kvworker.codec.artifacts import ARTIFACTS, Artifacts
from kvworker.codec.presets import LADDER, calibrated_text
from kvworker.codec.specs import find_codec
from kvworker.quality.calibrate import QUICK, Extent, calibrate_quality, undecided
from kvworker.quality.calibration import ALL, Calibration, calibration_path, codec_id
from kvworker.quality.gate import AUTO, Gate
from kvworker.quality.variants import ReadAs
from kvworker.serve.config import ENV_PREFIX, Flags, UpConfig
from kvworker.serve.local import open_engine
from kvworker.serve.runtime import model_folder

_READINGS: tuple[ReadAs, ...] = ("document", "alone", "prefix")


def run(args: argparse.Namespace, flags: Flags) -> int:
    """Measure, keep the result in the data directory, and print it with what a worker would choose."""
    config = load(UpConfig, (STORE_PREFIX, ENV_PREFIX), args.config, None, flags)
    extent = QUICK if args.quick else Extent()
    if args.seconds is not None:
        if not args.seconds > 0:
            raise InvalidInputError(f"--seconds must be above 0, got {args.seconds:g}")
        extent = replace(extent, seconds=args.seconds)
    engine = open_engine(config.model, config.local.data_path)
    folder = model_folder(config.local.data_path, engine.identity.namespace)
    named = [find_codec(calibrated_text(name)) for name in (config.worker.codec, *_beside(args))]
    artifacts = Artifacts(engine.identity.namespace, folder / ARTIFACTS)
    codecs = prepare(engine, named, artifacts, args.text or (), QUICK_TEXT if args.quick else Reach())
    with progress("calibrating", extent.n_questions) as advance:
        calibration = calibrate_quality(engine, codecs, config.worker.question_template, extent, config.worker.quality_budget, advance)
    path = args.out or calibration_path(folder, engine.device)
    calibration.save(path)
    _show(calibration, path, Gate(calibration, config.worker.quality_budget, codec_id(codecs[0])), output_of(args))
    return 0


def _beside(args: argparse.Namespace) -> list[str]:
    """Return the codecs to measure beside the worker's: those named, else every preset, or none where it has to be quick."""
    return args.beside or ([] if args.quick else [preset.name for preset in LADDER])


def _show(calibration: Calibration, path: Path, gate: Gate, output: Output) -> None:
    """Print one row per combination, the cheapest first, then the choices."""
    rows = sorted(calibration.rows, key=lambda r: (r.reading, r.codec, r.cost))
    output.rows([{**asdict(r), "loss": r.loss, "at_least": r.at_least, "at_most": r.at_most(1)} for r in rows], _COLUMNS)
    if calibration.basis == ALL:
        output.text("The model knows too few answers to count: a loss is the share of first tokens that changed.")
    output.text(f"kept in {path}; with policy {AUTO} and a budget of {gate.budget:.2%} of answers, codec {gate.codec}:")
    for reading in _READINGS:
        choice = gate.choose(AUTO, reading)
        output.text(
            f"  passages read {_WORDS[reading]}: policy {choice.policy.spec}; {choice.quality}" + (choice.note and f"; {choice.note}")
        )
    if still := undecided(calibration.rows, gate.budget):
        output.text(f"{len(still)} combinations may lose more or less than {gate.budget:.2%}: with more --seconds they are told apart.")


_WORDS = {"document": "in their document", "alone": "alone", "prefix": "as an exact prefix"}
_COLUMNS = {
    "reading": lambda r: r["reading"],
    "codec": lambda r: r["codec"],
    "policy": lambda r: r["policy"],
    "asked": lambda r: r["n_asked"],
    "lost": lambda r: Number(f"{r['loss']:.2%}"),
    "at least": lambda r: Number(f"{r['at_least']:.2%}"),
    "at most": lambda r: Number(f"{r['at_most']:.2%}"),
    "KL, nats": lambda r: Number(f"{r['kl']:.4f}"),
    "TTFT ratio": lambda r: Number(f"{r['cost']:.2f}"),
}
