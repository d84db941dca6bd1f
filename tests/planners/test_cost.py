"""The cost model: calibration, prediction, what is unknown."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvstore.core.errors import FormatError, InvalidInputError
from kvstore.planners.cost import CostModel, Landed, fit_samples
from kvstore.planners.linear import LinearCost
from kvstore.planners.samples import (
    CostSample,
    DecodeSample,
    Manner,
    OutcomeSample,
    Pass,
    PrefillSample,
    ReadSample,
    SpliceSample,
    WaitSample,
)

PREFILL = [PrefillSample(n, c, 1e-3 + 1e-5 * n + 1e-9 * n * c) for n in (16, 256, 1024) for c in (16.0, 512.0)]
READS = [ReadSample("disk", n, 1e-4 + n / 1e9) for n in (1 << 12, 1 << 16, 1 << 22)]
DECODES = [DecodeSample("int8", n, 2e-5 + n / 4e9) for n in (1 << 12, 1 << 16, 1 << 22)]
SPLICES = [SpliceSample(8, n, 8e-5 + n * 1e-7) for n in (128, 1024)]
CALIBRATED = CostModel.calibrated([*PREFILL, *READS, *DECODES, *SPLICES])


def test_calibration_finds_the_prefill_curve() -> None:
    """1 ms per pass, 10 us per row, 1 ns per pair of row and key."""
    assert CALIBRATED.predict_prefill(100, 200.0) == pytest.approx(1e-3 + 1e-3 + 2e-5, rel=1e-6)


def test_a_load_is_read_and_decoded_and_spliced() -> None:
    """1 MB over 1 GB/s, decoded at 4 GB/s, and 100 tokens; each with its own fixed cost."""
    rates = CALIBRATED.load_rates("disk", "int8")
    assert rates is not None
    assert rates == pytest.approx((1e-4, 1e-9, 2e-5 + 1e-5, 2.5e-10, 1e-7), rel=1e-6)


@pytest.mark.parametrize(("tier", "codec"), [("redis", "int8"), ("disk", "kivi")])
def test_a_tier_or_codec_that_was_never_measured_is_unknown(tier: str, codec: str) -> None:
    """Unknown is not fast."""
    assert CALIBRATED.load_rates(tier, codec) is None


def test_a_load_is_unknown_while_splicing_was_never_measured() -> None:
    """All three steps have to be known."""
    assert CostModel.calibrated([*READS, *DECODES]).load_rates("disk", "int8") is None


def test_prefill_is_unknown_before_any_measurement() -> None:
    """A fresh model knows nothing."""
    assert CostModel().predict_prefill(1, 1.0) is None


def test_an_observation_moves_only_its_own_subject() -> None:
    """A slow disk says nothing about decoding."""
    observed = CALIBRATED.observe(ReadSample("disk", 1 << 16, 1.0))
    changed = {subject for subject, cost in observed.costs.items() if cost != CALIBRATED.costs[subject]}
    assert changed == {"tier disk"}


def test_the_first_observation_of_a_tier_makes_it_known() -> None:
    """1000 bytes in 1 ms are 1 MB/s until more is seen."""
    model = CALIBRATED.observe(ReadSample("redis", 1000, 1e-3))
    assert model.costs["tier redis"] == LinearCost((0.0, 1e-6), 1.0, 1)


def test_observing_leaves_the_model_itself_alone() -> None:
    """Plans in flight keep the model that they were made with."""
    before = CALIBRATED.to_json()
    CALIBRATED.observe(SpliceSample(1, 10, 1.0))
    assert CALIBRATED.to_json() == before


def test_a_load_keeps_its_tier_and_then_the_device_busy() -> None:
    """Reading is the tier's share, decoding and splicing the device's."""
    rates = CALIBRATED.load_rates("disk", "int8")
    assert rates is not None
    assert rates == pytest.approx((1e-4, 1e-9, 2e-5 + 1e-5, 0.25e-9, 1e-7), rel=1e-6)


def test_waits_are_averaged_and_may_be_none() -> None:
    """5 reads waited for a second, then 20 for nothing: 0.8 ** 20 = 1.2 % of it is left."""
    model = CostModel()
    for seconds in [1.0] * 5 + [0.0] * 20:
        model = model.observe(WaitSample("redis", seconds))
    assert model.waits["redis"] == pytest.approx(0.8**20)


def test_the_error_of_a_prediction_adds_up_from_its_costs() -> None:
    """3 s of computing known to 10 % and 4 s of loading known to 10 %: independent errors of 0.3 and 0.4 s make 0.5 s."""
    model = CostModel({"prefill": LinearCost((0.0, 1.0, 0.0), 0.1, 9), "tier disk": LinearCost((0.0, 1.0), 0.1, 9)})
    assert model.predict(Manner.RACED, 5.0, 3.0, 4.0, ["disk"]) == pytest.approx((5.0, 0.5))


def test_a_tier_that_was_never_measured_has_the_whole_load_for_its_error() -> None:
    """Unknown is not certain."""
    model = CostModel({"prefill": LinearCost((0.0, 1.0, 0.0), 0.0, 9)})
    assert model.predict(Manner.RACED, 5.0, 3.0, 4.0, ["disk"]).error_s == 4.0


def test_outcomes_correct_predictions_and_replace_their_error() -> None:
    """Requests that take twice what was planned, 40 times: planned again, 4 s become 8."""
    model = CostModel({"prefill": LinearCost((0.0, 1.0, 0.0), 0.5, 9)})
    for _ in range(40):
        model = model.observe(OutcomeSample(Manner.LOADED, planned_s=2.0, ttft_s=4.0))
    predicted = model.predict(Manner.LOADED, 4.0, 4.0, 0.0, [])
    assert predicted.seconds == pytest.approx(8.0, rel=1e-3)
    assert predicted.error_s < 0.1 * predicted.seconds


def test_outcomes_of_one_manner_say_nothing_about_another() -> None:
    """Loads and computing that hinder each other do so in races only."""
    model = CALIBRATED.observe(OutcomeSample(Manner.RACED, planned_s=2.0, ttft_s=4.0))
    assert model.predict(Manner.RACED, 2.0, 1.0, 1.0, []).seconds > 2.0
    assert model.predict(Manner.LOADED, 2.0, 1.0, 1.0, []).seconds == 2.0


def test_the_first_outcome_moves_predictions_by_a_fifth_of_what_they_missed() -> None:
    """2 ** 0.2: the costs that a plan adds up are corrected by what they took themselves."""
    model = CALIBRATED.observe(OutcomeSample(Manner.RACED, planned_s=2.0, ttft_s=4.0))
    assert model.predict(Manner.RACED, 1.0, 1.0, 1.0, []).seconds == pytest.approx(2**0.2)


def seen(work: Pass, factor: float, n_times: int) -> CostModel:
    """Return the model after passes of 100 rows that took so many times what was measured at start."""
    model = CALIBRATED
    for _ in range(n_times):
        sample = model.pass_sample(work, PrefillSample(100, 200.0, factor * 2.02e-3))
        assert sample
        model = model.observe(sample)
    return model


@pytest.mark.parametrize("work", Pass)
def test_passes_of_one_kind_are_predicted_by_what_such_passes_lately_took(work: Pass) -> None:
    """Half as quick 20 times, whatever the other kinds do: 1 / 20 of the first error would be left, 0.8 ** 16 more of it is not."""
    model = seen(work, 2.0, 20)
    for kind in Pass:
        cost = model.prefill(kind)
        assert cost
        assert cost.predict((1.0, 50.0, 50 * 400.0)) == pytest.approx(1.52e-3 * (2 if kind is work else 1), rel=0.01)


def test_whole_passes_are_what_a_prefill_is_predicted_by() -> None:
    """2.02 ms at start; the first observation counts as much as what was measured then."""
    assert seen(Pass.WHOLE, 4.0, 1).predict_prefill(100, 200.0) == pytest.approx(2 * 2.02e-3)


def test_landing_takes_as_much_longer_as_last_steps_lately_did() -> None:
    """Reading from a tier takes what it took."""
    before, after = CALIBRATED.load_rates("disk", "int8"), seen(Pass.LAST, 4.0, 1).load_rates("disk", "int8")
    assert before
    assert after
    assert after == pytest.approx((*before[:2], *(2 * rate for rate in before[2:])))


def test_a_pass_is_compared_with_its_rows_and_all_that_it_landed() -> None:
    """2.02 ms of rows, and two chunks of 1 MB and 100 tokens: 270 us of decoding and 20 us of splicing each; a new codec adds nothing."""
    landed = [Landed("int8", 1_000_000, 100)] * 2 + [Landed("kivi", 1_000_000, 100)]
    sample = CALIBRATED.pass_sample(Pass.LAST, PrefillSample(100, 200.0, 1.0), landed)
    assert sample
    assert sample.planned_s == pytest.approx(2.02e-3 + 2 * (20e-6 + 250e-6) + 3 * 20e-6, rel=1e-6)


def test_a_pass_tells_nothing_while_prefill_was_never_measured() -> None:
    """There is nothing to compare it with."""
    assert CostModel().pass_sample(Pass.STEP, PrefillSample(1, 1.0, 1.0)) is None


def test_a_model_survives_json() -> None:
    """The worker keeps it per model and device."""
    model = CALIBRATED.observe(WaitSample("disk", 0.5))
    assert CostModel.from_json(json.loads(json.dumps(model.to_json()))) == model


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"costs": [], "overlap": 0},
        {"costs": {}, "overlap": None, "waits": {}},
        {"costs": {}, "overlap": 0},
        {"costs": {}, "overlap": 0, "waits": {"disk": "long"}},
        {"costs": {"prefill": {"coefficients": [1, 1], "relative_error": 1, "n_samples": 1}}, "overlap": 0, "waits": {}},
        {"costs": {"tier disk": {"coefficients": [1, "x"], "relative_error": 1, "n_samples": 1}}, "overlap": 0, "waits": {}},
    ],
)
def test_a_malformed_model_is_refused(value: dict[str, Any]) -> None:
    """It is read from a file."""
    with pytest.raises(FormatError):
        CostModel.from_json(value)


@pytest.mark.parametrize("overlap", [-0.1, 1.1, float("nan")])
def test_an_overlap_outside_none_and_all_is_refused(overlap: float) -> None:
    """More than all cannot be hidden."""
    with pytest.raises(InvalidInputError, match="overlap is a share"):
        CostModel(overlap=overlap)


@pytest.mark.parametrize("wait_s", [-1.0, float("nan"), float("inf")])
def test_a_wait_that_is_no_duration_is_refused(wait_s: float) -> None:
    """It would make a tier free before time began, or never."""
    with pytest.raises(InvalidInputError, match="at least 0"):
        WaitSample("disk", wait_s)
    with pytest.raises(InvalidInputError, match="not negative"):
        CostModel(waits={"disk": wait_s})


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_sample_without_a_real_duration_is_refused(seconds: float) -> None:
    """A duration of zero would make a tier infinitely fast."""
    with pytest.raises(InvalidInputError, match="ReadSample: seconds must be finite and above 0"):
        ReadSample("disk", 1, seconds)


def test_samples_of_two_subjects_are_not_mixed() -> None:
    """One line through two tiers describes neither."""
    samples: list[CostSample] = [ReadSample("disk", 1, 1.0), ReadSample("redis", 2, 1.0)]
    with pytest.raises(InvalidInputError, match="got tier disk, tier redis"):
        fit_samples(samples)


def test_calibration_names_the_subject_with_too_few_sizes() -> None:
    """The person who reads it has to know what to measure."""
    with pytest.raises(InvalidInputError, match="codec int8: samples of 1 different sizes"):
        CostModel.calibrated([*READS, DECODES[0]])
