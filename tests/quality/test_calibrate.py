"""Calibrating the reference model: bounded, honest about the basis, and used by the worker that finds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kvclient.cli.main import main
from kvworker.codec.specs import find_codec
from kvworker.engine.engine_hf import HFEngine
from kvworker.quality import calibrate
from kvworker.quality.calibrate import Extent, calibrate_quality, knows, undecided, undisturbed
from kvworker.quality.calibration import Calibration, Measured
from tests.engine.prompts import load_tiny

SMALL, BUDGET = Extent(ratios=(), n_questions=40, per_kind=2), 0.01


@pytest.fixture(scope="session")
def calibration(engine: HFEngine) -> Calibration:
    """Measure the reference model with lossless and 2-bit chunks."""
    return calibrate_quality(engine, [find_codec("raw"), find_codec("kivi2")], "{question}", SMALL, BUDGET)


def test_every_combination_is_asked_a_first_context(calibration: Calibration) -> None:
    """Costs are compared over the same questions; of eight, the model knows more than half."""
    assert min(row.n_asked for row in calibration.rows) >= 5


def measured(policy: str, n_lost: int, cost: float, n_asked: int = 100, reading: str = "alone") -> Measured:
    """Return a row."""
    return Measured(reading, "lossless", policy, n_asked, n_lost, cost, 0.0)


def asked(*rows: Measured) -> list[str]:
    """Return the policies that are asked further."""
    names = {policy for _, _, policy in undecided(rows, BUDGET)}
    return [row.policy for row in rows if row.policy in names]


def test_the_cheapest_that_seems_to_fit_is_asked_with_one_more_behind_it() -> None:
    """The other is there for when the first turns out to lose too much; a third would be asked in vain."""
    assert asked(measured("none", 0, 0.1), measured("first_k", 0, 0.2), measured("deviation", 0, 0.3)) == ["none", "first_k"]


def test_repairing_nothing_is_never_dearer_than_repairing_something() -> None:
    """Whatever else the machine did while it was timed; other costs stay as they were measured."""
    rows = [measured("none", 0, 0.6), measured("first_k", 0, 0.3), measured("none", 0, 0.5, reading="document")]
    assert [row.cost for row in undisturbed(rows)] == [0.3, 0.3, 0.5]


def test_what_is_uncertain_does_not_keep_the_next_from_being_asked() -> None:
    """Two of a hundred lost may yet turn out as less than one."""
    rows = measured("none", 2, 0.1), measured("first_k", 0, 0.2), measured("deviation", 0, 0.3)
    assert asked(*rows) == ["none", "first_k", "deviation"]


def test_what_certainly_loses_too_much_is_asked_no_further() -> None:
    """Half of the answers are lost."""
    assert asked(measured("none", 50, 0.1), measured("first_k", 0, 0.2)) == ["first_k"]


def test_what_costs_more_than_one_that_certainly_fits_is_asked_no_further() -> None:
    """It would not be chosen whatever came."""
    assert asked(measured("none", 0, 0.1, 2000), measured("first_k", 0, 0.2)) == []


def test_few_questions_rule_nothing_out() -> None:
    """One of three lost says little."""
    assert asked(measured("none", 1, 0.1, 3), measured("first_k", 0, 0.2, 3)) == ["none", "first_k"]


def test_combinations_compete_within_their_reading_only() -> None:
    """What suffices for one reading says nothing about the other."""
    assert asked(measured("none", 0, 0.1, 2000, "document"), measured("first_k", 0, 0.2)) == ["first_k"]


def test_what_does_not_read_in_turn_competes_with_its_like() -> None:
    """It is measured, so that its loss can be declared, and rules out nothing that the gate may choose."""
    assert asked(measured("segment_mask", 0, 0.1, 2000), measured("first_k", 0, 0.2)) == ["first_k"]


def test_a_lucky_guess_is_not_known() -> None:
    """Right answers count from even odds on: log 1, 2 and 1 in proportion are 1/4, 1/2 and 1/4."""
    even, below = torch.tensor([1.0, 2.0, 1.0]).log(), torch.tensor([1.0, 1.9, 1.0]).log()
    assert [knows(even, frozenset({1})), knows(below, frozenset({1})), knows(even, frozenset({0}))] == [True, False, False]


def test_only_what_full_prefill_knows_counts(calibration: Calibration) -> None:
    """A model without two-hop reasoning knows about three of four."""
    assert calibration.basis == "known"
    assert max(row.n_asked for row in calibration.rows) <= 35


def test_measuring_ends_when_all_is_decided(engine: HFEngine) -> None:
    """Where the budget is whole, the cheapest fits before it was asked."""
    asked: list[int] = []
    calibrate_quality(engine, [find_codec("raw")], "{question}", Extent(ratios=()), 1.0, asked.append)
    assert sum(asked) == 8


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
    assert calibrate_quality(tiny.engine, [find_codec("raw")], "{question}", Extent((), 8, 2, 2), BUDGET).basis == "all"


def test_measuring_ends_in_time(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the eighth question, where the time was over before."""
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(calibrate.time, "monotonic", lambda: float(next(clock)))
    asked: list[int] = []
    calibrate_quality(engine, [find_codec("raw")], "{question}", Extent((), 400, seconds=50.0), BUDGET, asked.append)
    assert sum(asked) == 8


def test_the_command_keeps_what_it_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON object per combination, and a file for the worker."""
    monkeypatch.setattr("kvworker.quality.command.QUICK", Extent((), 8, 4, 1))
    assert main(["calibrate", "--quick", "--json", "--data-dir", str(tmp_path)]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (file,) = tmp_path.glob("worker/*/quality-cpu.json")
    kept = json.loads(file.read_text())["rows"]
    assert sorted((row["reading"], row["policy"]) for row in printed) == sorted((row["reading"], row["policy"]) for row in kept)


def test_codecs_to_measure_beside_may_hold_commas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As most with parameters do; each is given by itself."""
    monkeypatch.setattr("kvworker.quality.command.QUICK", Extent((), 8, 4, 1))
    command = ["calibrate", "--quick", "--json", "--data-dir", str(tmp_path), "--codec", "raw"]
    assert main([*command, "--beside", "kivi:bits=2,group=32", "--beside", "int8"]) == 0
    printed = {json.loads(line)["codec"] for line in capsys.readouterr().out.splitlines()}
    assert printed == {"lossless", "kivi:bits=2,group=32", "int8"}


def test_a_file_may_be_named_to_go_with_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the weights every worker finds it."""
    monkeypatch.setattr("kvworker.quality.command.QUICK", Extent((), 8, 4, 1))
    out = tmp_path / "larder-quality.json"
    assert main(["calibrate", "--quick", "--json", "--data-dir", str(tmp_path), "--out", str(out)]) == 0
    assert json.loads(out.read_text())["basis"] in ("known", "all")
