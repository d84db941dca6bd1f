"""Bounds for a share that hold whenever somebody stops asking."""

from __future__ import annotations

import random

import pytest

from kvworker.quality.confidence import at_least, at_most


@pytest.mark.parametrize(("n", "k"), [(1, 0), (10, 0), (10, 10), (300, 7), (2000, 1999)])
def test_a_share_lies_between_its_bounds(n: int, k: int) -> None:
    """Which are shares themselves."""
    assert 0 <= at_least(n, k, 0.05) <= k / n <= at_most(n, k, 0.05) <= 1


def test_nothing_asked_says_nothing() -> None:
    """Every share is possible."""
    assert (at_least(0, 0, 0.05), at_most(0, 0, 0.05)) == (0.0, 1.0)


def test_none_lost_of_432_is_less_than_one_in_a_hundred() -> None:
    """By hand: log(0.8 B(0.5, 482) / B(0.5, 50) + 0.2 B(0.5, 432.5) / B(0.5, 0.5)) - 432 log(0.99) = 2.997 > log(20), and 431 give less."""
    assert at_most(432, 0, 0.05) <= 0.01 < at_most(431, 0, 0.05)


def test_less_doubt_asks_for_more_questions() -> None:
    """Both bounds move away from what was seen."""
    assert at_most(500, 5, 0.002) > at_most(500, 5, 0.05)
    assert at_least(500, 50, 0.002) < at_least(500, 50, 0.05)


def test_asking_until_the_bound_fits_is_wrong_no_more_often_than_doubted() -> None:
    """400 askers look after every 25 of 1,500 questions whether a share of 2 % is below 2 %; at most 10 % of them may ever believe it.

    A binomial of 400 draws at 0.1 exceeds 58 with a probability of 0.1 %.
    """
    draw, n_fooled = random.Random(5), 0
    for _ in range(400):
        k = 0
        for n in range(1, 1501):
            k += draw.random() < 0.02
            if n % 25 == 0 and at_most(n, k, 0.1) < 0.02:
                n_fooled += 1
                break
    assert n_fooled <= 58
