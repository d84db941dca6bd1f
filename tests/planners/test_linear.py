"""Fitting and correcting a linear cost."""

from __future__ import annotations

import random

import pytest

from kvstore.core.errors import FormatError, InvalidInputError
from kvstore.planners.linear import LinearCost, first_guess, fit

SIZES = [(1.0, float(n), n * c) for n in (1, 64, 512, 2048) for c in (8.0, 300.0, 4000.0)]


def test_exact_samples_give_back_their_coefficients() -> None:
    """No noise, nothing to average."""
    truth = LinearCost((2e-3, 3e-5, 4e-9))
    found = fit(SIZES, [truth.predict(row) for row in SIZES])
    assert found.coefficients == pytest.approx(truth.coefficients, rel=1e-6)


def test_noise_of_five_percent_moves_predictions_by_less_and_is_reported() -> None:
    """Ten measurements per size; averaging beats a single one, and the reported error is the noise that was put in."""
    rng, truth = random.Random(0), LinearCost((2e-3, 3e-5, 4e-9))
    rows = SIZES * 10
    found = fit(rows, [truth.predict(row) * rng.gauss(1, 0.05) for row in rows])
    assert all(found.predict(row) == pytest.approx(truth.predict(row), rel=0.05) for row in SIZES)
    assert found.relative_error == pytest.approx(0.05, rel=0.3)


def test_no_coefficient_is_negative_even_where_that_would_fit_better() -> None:
    """A negative cost per row would make a plan that computes more look faster."""
    found = fit([(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)], [3.0, 2.0, 1.0])
    assert found.coefficients[0] > 0
    assert found.coefficients[1] == 0


def test_as_many_samples_as_coefficients_leave_the_error_unknown() -> None:
    """A line through two points always fits; that says nothing about how well it predicts."""
    assert fit([(1.0, 1.0), (1.0, 2.0)], [1.0, 2.0]).relative_error == 1.0


def test_too_few_different_sizes_are_refused() -> None:
    """Latency and bandwidth cannot be told apart from reads of one size."""
    with pytest.raises(InvalidInputError, match="samples of 1 different sizes do not tell 2 coefficients apart"):
        fit([(1.0, 8.0)] * 5, [1.0] * 5)


def test_no_samples_are_refused() -> None:
    """There is nothing to fit."""
    with pytest.raises(InvalidInputError, match="samples of 0 different sizes"):
        fit([], [])


def test_the_first_guess_explains_a_measurement_by_its_size() -> None:
    """Taking it for latency instead would make every larger load look free."""
    assert first_guess((1.0, 4.0), 2.0) == LinearCost((0.0, 0.5), relative_error=1.0, n_samples=1)


def test_a_fourfold_change_is_followed_to_ten_percent_within_a_dozen_observations() -> None:
    """4 ** (0.8 ** 12) = 1.100."""
    cost = LinearCost((0.0, 1e-9), relative_error=0.05, n_samples=100)
    for _ in range(12):
        cost = cost.observe((1.0, 1e6), 4e-3)
    assert cost.predict((1.0, 1e6)) == pytest.approx(4e-3, rel=0.1)


def test_one_stalled_observation_moves_a_settled_cost_less_than_twofold() -> None:
    """16 ** 0.2 = 1.74; a read that hung for a minute must not switch loading off."""
    cost = LinearCost((0.0, 1e-9), relative_error=0.05, n_samples=100)
    assert cost.observe((1.0, 1e6), 60.0).predict((1.0, 1e6)) < 2 * cost.predict((1.0, 1e6))


def test_the_error_shrinks_while_predictions_hold() -> None:
    """Trust is earned by observations that agree: sqrt(1/2 * 2/3 * 3/4 * 0.8 ** 17) = 0.075."""
    cost = first_guess((1.0, 1e6), 1e-3)
    for _ in range(20):
        cost = cost.observe((1.0, 1e6), 1e-3)
    assert cost.relative_error == pytest.approx(0.075, rel=0.01)


def test_the_error_grows_when_predictions_fail() -> None:
    """A link whose speed changed is not known to 5 % any more."""
    cost = LinearCost((0.0, 1e-9), relative_error=0.05, n_samples=100)
    assert cost.observe((1.0, 1e6), 4e-3).relative_error > 0.5


def test_a_cost_of_zero_is_replaced_by_what_is_observed() -> None:
    """Nothing can be scaled from zero."""
    assert LinearCost((0.0, 0.0)).observe((1.0, 4.0), 2.0).predict((1.0, 8.0)) == 4.0


def test_a_cost_survives_json() -> None:
    """It is kept between runs."""
    cost = LinearCost((0.1, 1e-9), 0.2, 3)
    assert LinearCost.from_json(cost.to_json(), 2) == cost


@pytest.mark.parametrize(
    "change",
    [{"coefficients": [1.0]}, {"coefficients": [-1.0, 0.0]}, {"coefficients": None}, {"relative_error": float("nan")}, {"n_samples": -1}],
)
def test_a_malformed_cost_is_refused(change: dict[str, object]) -> None:
    """A file on disk may have been edited; a negative or undefined cost would poison every plan."""
    with pytest.raises(FormatError):
        LinearCost.from_json({**LinearCost((0.1, 1e-9)).to_json(), **change}, 2)
