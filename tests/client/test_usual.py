"""What is late follows what was seen."""

from __future__ import annotations

import math

import pytest

from kvclient.usual import Usual


def seen(*took_s: float, least_s: float = 0.0) -> float:
    """Return from when on one is late, after these."""
    usual = Usual(least_s)
    for each_s in took_s:
        usual.saw(each_s)
    return usual.late_s


def test_nothing_is_late_before_anything_was_seen() -> None:
    """The first answers may take what they take."""
    assert seen() == math.inf


def test_the_first_is_late_when_it_is_said_to_be() -> None:
    """Where nobody else finds out that a server says nothing; what was seen counts from then on."""
    usual = Usual(0.0, first_s=10.0)
    assert usual.late_s == 10.0
    usual.saw(0.1)
    assert usual.late_s == pytest.approx(0.6)


def test_the_first_counts_as_half_as_uncertain_as_it_is_long() -> None:
    """RFC 6298, 2.2, doubled: 2 * (0.1 + 4 * 0.05)."""
    assert seen(0.1) == pytest.approx(0.6)


def test_the_second_moves_mean_and_deviation_by_their_weights() -> None:
    """RFC 6298, 2.3: the deviation by a quarter of 0.1 - 0.05, the mean by an eighth of 0.1."""
    assert seen(0.1, 0.2) == pytest.approx(2 * (0.1125 + 4 * 0.0625))


def test_what_takes_equally_long_again_and_again_is_late_at_twice_that() -> None:
    """The deviation goes to nothing."""
    assert seen(*[0.3] * 100) == pytest.approx(0.6, rel=1e-6)


def test_nothing_is_late_before_the_least() -> None:
    """Waiting for so long costs less than asking twice."""
    assert seen(*[0.001] * 100, least_s=1.0) == 1.0
