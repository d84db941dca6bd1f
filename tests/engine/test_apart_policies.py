"""The policies of models that read passages apart: their answers do not depend on what was stored, nor on order where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from kvstore.core.errors import InvalidInputError
from kvworker.answer.policy import parse_policy
from kvworker.engine.engine import Apart, Parallel, Segment
from kvworker.quality.calibration import Calibration, Measured
from kvworker.quality.gate import Gate
from kvworker.quality.variants import fixed_policies, is_for
from tests.engine.prompts import Tiny, random_passages, random_question, stored

APART = ("segment_mask", "parallel", "parallel:temperature=0.8,scale=1.1")
TOLERANCE = 1e-4  # as in the splice tests


def prompt(tiny: Tiny) -> list[Segment]:
    """Return passages that were read alone, and a question."""
    passages = random_passages((9, 14, 6))
    return stored(passages, [tiny.engine.export([p])[0] for p in passages], random_question())


def answer(tiny: Tiny, spec: str, segments: Sequence[Segment]) -> torch.Tensor:
    """Return the logits behind a prompt."""
    policy = parse_policy(spec)
    return policy.finish(tiny.engine.begin(policy.arrange(segments))).first_logits


@pytest.mark.parametrize("spec", APART)
def test_what_is_computed_answers_like_what_is_loaded(llama: Tiny, spec: str) -> None:
    """Passages that the store lacks are not to be read in another way than those that it has."""
    segments = prompt(llama)
    lacking = [replace(segment, source=None) for segment in segments]
    torch.testing.assert_close(answer(llama, spec, lacking), answer(llama, spec, segments), rtol=0, atol=TOLERANCE)


def test_the_segment_mask_over_stored_passages_is_the_policy_none(llama: Tiny) -> None:
    """The mask needs nothing but that nobody repairs."""
    segments = prompt(llama)
    assert torch.equal(answer(llama, "segment_mask", segments), answer(llama, "none", segments))


def test_parallel_passages_may_come_in_any_order(llama: Tiny) -> None:
    """Up to the order of sums."""
    first, second, third, question = prompt(llama)
    one, other = (answer(llama, "parallel", [*order, question]) for order in ((first, second, third), (third, first, second)))
    torch.testing.assert_close(one, other, rtol=0, atol=3e-6 * float(one.abs().max()))


@pytest.mark.parametrize(("spec", "apart"), [("segment_mask", Apart()), ("parallel:temperature=0.8", Parallel(0.8, 0.9)), ("none", None)])
def test_a_policy_arranges_all_but_the_question(spec: str, apart: Apart | None) -> None:
    """Which sees everything."""
    arranged = parse_policy(spec).arrange([Segment((1,)), Segment((2,)), Segment((3,))])
    assert [segment.apart for segment in arranged] == [apart, apart, None]


@pytest.mark.parametrize("spec", ["parallel:temperature=0.0", "parallel:scale=-1.0"])
def test_weights_that_weigh_nothing_are_refused(spec: str) -> None:
    """Scores are divided by the temperature."""
    with pytest.raises(InvalidInputError, match="temperature and scale must be above 0"):
        parse_policy(spec)


@pytest.mark.parametrize("spec", APART)
def test_no_reading_makes_an_answer_apart_exact(spec: str) -> None:
    """An exact prefix is one of passages that see each other."""
    assert "exact" not in Gate(None, 0.01, "lossless").choose(spec, "prefix").quality


@pytest.mark.parametrize("name", ["segment_mask", "parallel"])
def test_what_reads_apart_is_measured_over_passages_read_alone(name: str) -> None:
    """It has no use for anything else."""
    (policy,) = (policy for policy in fixed_policies() if policy.name == name)
    assert [is_for(policy, reading) for reading in ("alone", "document", "prefix")] == [True, False, False]  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", APART)
def test_only_an_operator_chooses_to_read_apart(spec: str) -> None:
    """It answers another question than full prefill does, so "auto" doesn't compare it, however well it does."""
    spec = parse_policy(spec).spec
    rows = Measured("alone", "lossless", spec, 5000, 0, 0.1, 0.0), Measured("alone", "lossless", "first_k:k=4", 5000, 0, 0.3, 0.0)
    gate = Gate(Calibration("00", "cpu", "known", "2026-01-01", rows), 0.01, "lossless")
    assert gate.choose("auto", "alone").policy.name == "first_k"
    assert "0.00% of answers lost" in gate.choose(spec, "alone").quality


@pytest.mark.parametrize("spec", APART)
def test_passages_that_are_set_apart_are_taken_as_read_alone(spec: str) -> None:
    """Other policies take what the question asks for."""
    gate = Gate(None, 0.01, "lossless")
    assert [gate.read_as(spec, asked) for asked in ("auto", "alone")] == ["alone", "alone"]
    assert gate.read_as("none", "document") == "document"
    with pytest.raises(InvalidInputError, match="read_as 'document'"):
        gate.read_as(spec, "document")
