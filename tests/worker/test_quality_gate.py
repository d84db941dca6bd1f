"""The gate at work: a worker whose policy is "auto" answers by what was measured of its model, and says so."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from kvstore.core.errors import ConfigError, CorruptError, IdentityError, InvalidInputError
from kvworker.answer.answer import Question
from kvworker.quality.calibration import LOSSLESS, Calibration, Measured, calibration_path, shipped_calibration
from kvworker.quality.gate import Gate
from kvworker.reference import MODEL_FOLDER
from kvworker.serve.config import ModelConfig
from kvworker.serve.local import open_engine
from kvworker.serve.runtime import model_folder
from kvworker.settings import WorkerSettings
from tests.engine.prompts import Tiny
from tests.worker.conftest import MakeLab
from tests.worker.lab import Lab

ROWS = (
    Measured("document", "lossless", "none", 2000, 1000, 0.1, 0.5),
    Measured("document", "lossless", "first_k:k=2", 2000, 2, 0.2, 0.1),
    Measured("alone", "lossless", "first_k:k=3", 2000, 3, 0.3, 0.1),
)


def keep(tiny: Tiny, data_dir: Path, rows: tuple[Measured, ...] = ROWS, namespace: bytes = b"") -> Path:
    """Write a calibration where the tiny model's worker looks for it."""
    own = tiny.engine.identity.namespace
    path = calibration_path(model_folder(data_dir, own), tiny.engine.device)
    Calibration((namespace or own).hex(), "cpu", "known", "2026-01-01", rows).save(path)
    return path


def test_auto_takes_the_cheapest_policy_inside_the_budget(make_lab: MakeLab, tiny: Tiny, tmp_path: Path) -> None:
    """`none` is cheaper, and loses half of the answers; the report declares what was chosen."""
    keep(tiny, tmp_path)
    lab = make_lab(tmp_path, policy="auto")
    report = lab.ask(lab.names()[::-1], policy="").report
    assert report.policy == "first_k:k=2"
    assert report.quality == "codec lossless, policy first_k:k=2: 0.10% of answers lost, at most 0.54% (2000 asked)"


def test_auto_looks_at_how_the_passages_were_read(make_lab: MakeLab, tiny: Tiny, tmp_path: Path) -> None:
    """What suffices behind late chunking does not for passages read alone."""
    keep(tiny, tmp_path)
    lab = make_lab(tmp_path, policy="auto")
    lab.ingest(read_as="alone")
    assert lab.ask(["a.txt#2", "a.txt#1"], policy="").report.policy == "first_k:k=3"


@pytest.mark.parametrize(("ttft_target_s", "policy"), [(1e3, "exact"), (1e-9, "first_k:k=2"), (0.0, "first_k:k=2")])
def test_time_that_a_target_leaves_is_spent_on_quality(
    make_lab: MakeLab, tiny: Tiny, tmp_path: Path, ttft_target_s: float, policy: str
) -> None:
    """Computing loses nothing and keeps to a target of minutes; nothing keeps to a nanosecond, so that the cheapest is taken."""
    keep(tiny, tmp_path)
    lab = make_lab(tmp_path, policy="auto", planner="min_cost", ttft_target_s=ttft_target_s)
    assert lab.ask(lab.names()[::-1], policy="", planner="").report.policy == policy


@pytest.mark.parametrize(("ttft_target_s", "policy"), [(1e3, "exact"), (1e-9, "first_k:k=2"), (0.0, "first_k:k=2")])
def test_a_question_has_a_target_of_its_own(make_lab: MakeLab, tiny: Tiny, tmp_path: Path, ttft_target_s: float, policy: str) -> None:
    """It overrides the worker's, which nothing keeps to; 0 leaves that in force."""
    keep(tiny, tmp_path)
    lab = make_lab(tmp_path, policy="auto", planner="min_cost", ttft_target_s=1e-9)
    assert lab.ask(lab.names()[::-1], policy="", planner="", ttft_target_s=ttft_target_s).report.policy == policy


@pytest.mark.parametrize(
    ("ttft_target_s", "policy", "words"),
    [
        (500.0, "", "a first token in 500 s leaves time for the most careful policy that may be chosen: exact ("),
        (1e-9, "", "a first token in 0.001 us is not promised by any policy that may be chosen: first_k:k=2 ("),
        (500.0, "none", "a first token in 500 s leaves time for the most careful policy that may be chosen: none ("),
    ],
)
def test_the_report_says_what_a_target_changed(
    make_lab: MakeLab, tiny: Tiny, tmp_path: Path, ttft_target_s: float, policy: str, words: str
) -> None:
    """A policy that was named is the only one that may be chosen. The explanation has it too."""
    keep(tiny, tmp_path)
    lab = make_lab(tmp_path, policy="auto", planner="min_cost")
    report = lab.ask(lab.names()[::-1], policy=policy, planner="", ttft_target_s=ttft_target_s).report
    assert report.target.startswith(words)
    assert f"target: {report.target}" in lab.worker.explain("alice", report.request_id).lines


def test_without_a_target_nothing_is_said_of_one(lab: Lab) -> None:
    """Neither in the report nor in the explanation."""
    report = lab.ask(lab.names()).report
    assert report.target == ""
    assert not any(line.startswith("target") for line in lab.worker.explain("alice").lines)


@pytest.mark.parametrize("ttft_target_s", [-1.0, float("nan"), float("inf")])
def test_a_questions_target_is_a_time(ttft_target_s: float) -> None:
    """In seconds."""
    with pytest.raises(InvalidInputError, match="ttft_target_s must be 0"):
        Question((), "What?", ttft_target_s=ttft_target_s)


@pytest.mark.parametrize("ttft_target_s", [-1.0, float("nan"), float("inf")])
def test_a_target_is_a_time(ttft_target_s: float) -> None:
    """In seconds."""
    with pytest.raises(ConfigError, match="ttft_target_s"):
        WorkerSettings(ttft_target_s=ttft_target_s)


def test_a_wider_budget_is_used(make_lab: MakeLab, tiny: Tiny, tmp_path: Path) -> None:
    """The operator says what an answer may cost."""
    keep(tiny, tmp_path)
    lab = make_lab(tmp_path, policy="auto", quality_budget=0.6)
    assert lab.ask(lab.names()[::-1], policy="").report.policy == "none"


def test_without_a_calibration_auto_answers_exactly_and_says_so(make_lab: MakeLab, caplog: pytest.LogCaptureFixture) -> None:
    """Once in the log, and in every report."""
    with caplog.at_level(logging.WARNING):
        lab = make_lab(policy="auto")
    names = lab.names()[::-1]
    answers = [lab.ask(names, policy="") for _ in range(2)]
    assert answers[0].token_ids == lab.expected(names)
    assert {answer.report.quality for answer in answers} == {"exact; not calibrated"}
    assert len([record for record in caplog.records if "larder calibrate" in record.getMessage()]) == 1


def test_without_a_calibration_auto_loads_an_exact_prefix(make_lab: MakeLab) -> None:
    """A prefix loses nothing, so that nobody has to measure it."""
    lab = make_lab(policy="auto")
    report = lab.ask(lab.names(), policy="").report
    assert (report.policy, {row.action for row in report.passages}, report.tokens_loaded > 0) == ("exact", {"load"}, True)


def test_a_named_policy_declares_what_was_measured_of_it(make_lab: MakeLab, tiny: Tiny, tmp_path: Path) -> None:
    """Nobody asked the gate, and yet it knows."""
    keep(tiny, tmp_path)
    lab = make_lab(tmp_path)
    assert "50.00% of answers lost" in lab.ask(lab.names()[::-1], policy="none").report.quality


def test_a_calibration_that_came_with_the_model_counts(make_lab: MakeLab, tiny: Tiny, tmp_path: Path) -> None:
    """Who serves it need not measure it again."""
    Calibration(tiny.engine.identity.namespace.hex(), "cpu", "known", "2026-01-01", ROWS).save(tmp_path / "larder-quality.json")
    lab = make_lab(model_dir=tmp_path)
    assert lab.ask(lab.names()[::-1], policy="").report.policy == "first_k:k=2"


def test_the_reference_model_comes_with_a_calibration_of_its_own_weights(tmp_path: Path) -> None:
    """`make calibration` makes it again when they change. What was read in its document is loaded as it is, and the rest is repaired."""
    engine = open_engine(ModelConfig(device="cpu"), tmp_path)
    gate = Gate(shipped_calibration(MODEL_FOLDER, engine.identity.namespace), WorkerSettings().quality_budget, LOSSLESS)
    assert gate.choose("auto", "document").policy.name == "none"
    assert gate.choose("auto", "alone").policy.name in ("deviation", "chunk_score")


def test_the_calibration_of_other_weights_is_refused(make_lab: MakeLab, tiny: Tiny, tmp_path: Path) -> None:
    """A file that was copied along with a model's folder."""
    keep(tiny, tmp_path, namespace=bytes([7] * 32))
    with pytest.raises(IdentityError, match="is of model 0707"):
        make_lab(tmp_path, policy="auto")


def test_a_damaged_calibration_is_refused(make_lab: MakeLab, tiny: Tiny, tmp_path: Path) -> None:
    """With what to do about it."""
    keep(tiny, tmp_path).write_text("{")
    with pytest.raises(CorruptError, match="run `larder calibrate` again, or delete"):
        make_lab(tmp_path, policy="auto")


def test_a_default_policy_that_does_not_exist_fails_at_start(make_lab: MakeLab) -> None:
    """And not with every question."""
    with pytest.raises(InvalidInputError, match="frist_k"):
        make_lab(policy="frist_k")


@pytest.mark.parametrize("budget", [-0.1, 1.1, float("nan")])
def test_a_budget_is_a_share(budget: float) -> None:
    """Of answers."""
    with pytest.raises(ConfigError, match="quality_budget"):
        WorkerSettings(quality_budget=budget)
