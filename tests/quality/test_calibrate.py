"""Calibrating the reference model: bounded, honest about the basis, and used by the worker that finds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvclient.cli.main import main
from kvworker.codec.specs import find_codec
from kvworker.engine.engine_hf import HFEngine
from kvworker.quality import calibrate
from kvworker.quality.calibrate import Extent, calibrate_quality, worth_asking
from kvworker.quality.calibration import Calibration, Measured
from tests.engine.prompts import load_tiny

SMALL = Extent(ratios=(), n_questions=24, per_kind=2)


@pytest.fixture(scope="session")
def calibration(engine: HFEngine) -> Calibration:
    """Measure the reference model with lossless and 2-bit chunks."""
    return calibrate_quality(engine, [find_codec("raw"), find_codec("kivi2")], "{question}", SMALL)


def test_every_combination_answers_enough_questions_to_be_judged(calibration: Calibration) -> None:
    """Nothing is left out before sixteen of its answers count."""
    assert min(row.n_asked for row in calibration.rows) >= 16


def measured(policy: str, n_lost: int, cost: float, n_asked: int = 100, reading: str = "alone") -> Measured:
    """Return a row."""
    return Measured(reading, "lossless", policy, n_asked, n_lost, cost, 0.0)


def worth(*rows: Measured) -> set[tuple[str, str]]:
    """Return reading and policy of what is asked further."""
    return {(reading, policy) for reading, _, policy in worth_asking(rows)}


def test_what_costs_more_and_loses_as_much_is_asked_no_further() -> None:
    """The cheaper one would be chosen before it, unless it starts to lose."""
    assert worth(measured("none", 0, 0.1), measured("first_k", 0, 0.2)) == {("alone", "none")}
    assert worth(measured("none", 1, 0.1), measured("first_k", 0, 0.2)) == {("alone", "none"), ("alone", "first_k")}


def test_what_is_hopeless_is_asked_no_further() -> None:
    """Half of the answers are lost: nobody's budget is that wide."""
    assert worth(measured("none", 50, 0.1), measured("first_k", 5, 0.2)) == {("alone", "first_k")}


def test_few_questions_rule_nothing_out() -> None:
    """Ten questions say little."""
    assert worth(measured("none", 9, 0.1, 10), measured("first_k", 0, 0.2, 10)) == {("alone", "none"), ("alone", "first_k")}


def test_combinations_compete_within_their_reading_only() -> None:
    """What suffices for one reading says nothing about the other."""
    assert len(worth(measured("none", 0, 0.1, reading="document"), measured("first_k", 0, 0.2))) == 2


def test_only_what_full_prefill_knows_counts(calibration: Calibration) -> None:
    """Of 24 questions a model without two-hop reasoning answers fewer."""
    assert calibration.basis == "right"
    assert calibration.rows[0].n_asked <= 24


def test_reuse_of_passages_read_alone_loses_more_than_late_chunking(calibration: Calibration) -> None:
    """The gate has something to tell apart."""
    alone, document = (calibration.find(reading, "lossless", "none") for reading in ("alone", "document"))
    assert alone is not None
    assert document is not None
    assert alone.loss > document.loss + 0.1


def test_a_lossy_codec_is_measured_on_an_exact_prefix_too(calibration: Calibration) -> None:
    """Where nothing but the codec can lose anything; a lossless one needs no measurement there."""
    assert {row.codec for row in calibration.rows if row.reading == "prefix"} == {"kivi:bits=2,group=32"}


def test_a_model_without_right_answers_is_measured_by_what_changes(tmp_path: Path) -> None:
    """Random weights answer nothing; agreement with full prefill is all there is to lose."""
    tiny = load_tiny("llama", tmp_path)
    assert calibrate_quality(tiny.engine, [find_codec("raw")], "{question}", Extent((), 8, 2, 2)).basis == "all"


def test_measuring_ends_in_time(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the eighth question, where the time was over before."""
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(calibrate.time, "monotonic", lambda: float(next(clock)))
    asked: list[int] = []
    calibrate_quality(engine, [find_codec("raw")], "{question}", Extent((), 400, seconds=50.0), asked.append)
    assert sum(asked) == 8


def test_the_command_keeps_what_it_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON object per combination, and a file for the worker."""
    monkeypatch.setattr("kvworker.quality.command.QUICK", Extent((), 8, 4, 1))
    assert main(["calibrate", "--quick", "--json", "--data-dir", str(tmp_path)]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (file,) = tmp_path.glob("worker/*/quality-cpu.json")
    kept = json.loads(file.read_text())["rows"]
    assert sorted((row["reading"], row["policy"]) for row in printed) == sorted((row["reading"], row["policy"]) for row in kept)
