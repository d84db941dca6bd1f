"""The gate: the cheapest policy inside the budget, the careful one where nothing is known, and what the answer says about it."""

from __future__ import annotations

import pytest

from kvstore.core.errors import InvalidInputError
from kvworker.quality.calibration import LOSSLESS, Calibration, Measured
from kvworker.quality.gate import NOT_CALIBRATED, Gate

INT8 = "int8"


def measured(reading: str, policy: str, n_lost: int, cost: float, codec: str = LOSSLESS, n_asked: int = 2000) -> Measured:
    """Return a row of a calibration."""
    return Measured(reading, codec, policy, n_asked, n_lost, cost, 0.0)


def gate(*rows: Measured, budget: float = 0.01, codec: str = LOSSLESS) -> Gate:
    """Return a gate over these measurements."""
    return Gate(Calibration("00", "cpu", "known", "2026-01-01", rows), budget, codec)


def test_the_cheapest_policy_inside_the_budget_is_chosen() -> None:
    """`none` is cheaper and loses too much; `first_k:k=16` loses nothing and costs more."""
    rows = [measured("alone", "none", 500, 0.1), measured("alone", "first_k:k=4", 2, 0.3), measured("alone", "first_k:k=16", 0, 0.6)]
    assert gate(*rows).choose("auto", "alone").policy.spec == "first_k:k=4"


def test_a_smaller_budget_buys_a_more_careful_policy() -> None:
    """The same measurements, another operator."""
    rows = [measured("alone", "none", 200, 0.1), measured("alone", "first_k:k=4", 20, 0.3)]
    assert [gate(*rows, budget=b).choose("auto", "alone").policy.name for b in (0.2, 0.05, 0.005)] == ["none", "first_k", "exact"]


def test_the_careful_come_before_the_cheap() -> None:
    """Exact rows only, then less and less loss that is worth its cost; what loses more and costs more is left out."""
    rows = [measured("alone", "none", 9, 0.1), measured("alone", "first_k:k=4", 4, 0.3), measured("alone", "random", 5, 0.4)]
    rows.append(measured("alone", "deviation", 0, 0.8))
    found = [choice.policy.name for choice in gate(*rows, budget=0.02).choices("auto", "alone")]
    assert found == ["exact", "deviation", "first_k", "none"]


def test_few_questions_are_not_trusted() -> None:
    """None lost of 400 leaves up to 1.1 % with 95 % confidence; none lost of 500 leaves 0.9 %."""
    few, many = (measured("alone", "none", 0, 0.1, n_asked=n) for n in (400, 500))
    assert [gate(row).choose("auto", "alone").policy.name for row in (few, many)] == ["exact", "none"]


def test_the_best_of_many_is_trusted_less() -> None:
    """One of twenty that are no better than the budget would seem to be by luck."""
    rows = [measured("alone", "none", 0, 0.1, n_asked=500), *(measured("alone", f"first_k:k={k}", 500, 0.2) for k in range(1, 20))]
    assert gate(*rows).choose("auto", "alone").policy.name == "exact"


def test_passages_read_in_their_document_have_measurements_of_their_own() -> None:
    """Late chunking needs no repair where passages read alone do."""
    rows = [measured("alone", "none", 500, 0.1), measured("alone", "first_k:k=4", 0, 0.3), measured("document", "none", 0, 0.1)]
    assert [gate(*rows).choose("auto", r).policy.name for r in ("alone", "document")] == ["first_k", "none"]  # type: ignore[arg-type]


def test_without_a_calibration_only_exact_rows_are_loaded_and_the_answer_says_so() -> None:
    """Nobody knows what this model loses."""
    choice = Gate(None, 0.5, LOSSLESS).choose("auto", "alone")
    assert (choice.policy.name, choice.quality, choice.note) == ("exact", "exact", NOT_CALIBRATED)


def test_without_a_calibration_a_lossy_codec_is_not_used_at_all() -> None:
    """An exact prefix that went through int8 is not exact."""
    assert Gate(None, 0.5, INT8).choose("auto", "prefix").policy.name == "all"


def test_a_codec_that_loses_too_much_is_not_used_for_an_exact_prefix() -> None:
    """The codec's own loss counts where no policy has anything to repair."""
    rows = [measured("prefix", "none", 500, 0.1, INT8)]
    assert [gate(*rows, budget=b, codec=INT8).choose("auto", "prefix").policy.name for b in (0.01, 0.6)] == ["all", "exact"]


def test_measurements_of_another_codec_do_not_count() -> None:
    """What is lossless with raw chunks may be worse with 2 bits."""
    assert gate(measured("alone", "none", 0, 0.1), codec=INT8).choose("auto", "alone").policy.name == "all"


def test_a_policy_that_is_named_is_used_and_its_loss_declared() -> None:
    """The gate chooses for "auto" only; what it knows it says for all."""
    choice = gate(measured("alone", "none", 500, 0.1)).choose("none", "alone")
    assert choice.quality == "codec lossless, policy none: 25.00% of answers lost, at most 29.16% (2000 asked)"


def test_a_named_policy_that_nobody_measured_is_called_unmeasured() -> None:
    """Silence would read as safety."""
    assert gate().choose("first_k:k=3", "alone").quality == "codec lossless, policy first_k:k=3: unmeasured"


def test_a_policy_that_does_not_exist_is_refused() -> None:
    """With the names that are known."""
    with pytest.raises(InvalidInputError, match="first_k"):
        gate().choose("frist_k", "alone")
