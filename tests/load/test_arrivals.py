"""Traffic that is fixed before it is sent."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest

from kvclient.load.arrivals import Traffic
from kvstore.core.errors import InvalidInputError


def test_requests_come_at_the_rate_asked_for() -> None:
    """Within four standard deviations of a Poisson count."""
    arrivals = list(Traffic(100.0, 100.0, (10,)).arrivals())
    assert abs(len(arrivals) - 10_000) < 4 * math.sqrt(10_000)
    assert all(before.at_s < after.at_s for before, after in pairwise(arrivals))
    assert arrivals[-1].at_s < 100.0


def test_times_between_requests_have_no_memory() -> None:
    """Their standard deviation is their mean, unlike that of a steady beat, whose server never sees a burst."""
    times = [arrival.at_s for arrival in Traffic(50.0, 200.0, (4,)).arrivals()]
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert spread == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize("exponent", [0.0, 0.8, 1.5])
def test_popularity_falls_as_a_power_of_the_rank(exponent: float) -> None:
    """The most popular passage against the one at rank 10, within a tenth."""
    asked = Counter(place for arrival in Traffic(100.0, 1000.0, (100,), 1, exponent).arrivals() for place in arrival.passages)
    counts = [count for _, count in asked.most_common()]
    if exponent:
        assert counts[0] / counts[9] == pytest.approx(10**exponent, rel=0.1)
    else:
        assert counts[0] / counts[-1] < 1.3


@pytest.mark.parametrize("per_request", [1, 3, 8])
@pytest.mark.parametrize("n_passages", [3, 8, 100])
def test_a_request_names_different_passages(n_passages: int, per_request: int) -> None:
    """As many as asked for, or all there are."""
    for arrival in Traffic(100.0, 2.0, (n_passages,), per_request, 1.2).arrivals():
        assert len(set(arrival.passages)) == len(arrival.passages) == min(per_request, n_passages)
        assert set(arrival.passages) <= set(range(n_passages))


def test_tenants_share_the_rate() -> None:
    """Evenly, and each asks about its own passages."""
    arrivals = list(Traffic(100.0, 50.0, (5, 50)).arrivals())
    counts = Counter(arrival.tenant for arrival in arrivals)
    assert counts[0] / counts[1] == pytest.approx(1.0, rel=0.1)
    assert all(max(arrival.passages) < 5 for arrival in arrivals if arrival.tenant == 0)


def test_the_same_seed_makes_the_same_traffic() -> None:
    """And another one another."""
    assert list(Traffic(10.0, 5.0, (9,), seed=3).arrivals()) == list(Traffic(10.0, 5.0, (9,), seed=3).arrivals())
    assert list(Traffic(10.0, 5.0, (9,), seed=3).arrivals()) != list(Traffic(10.0, 5.0, (9,), seed=4).arrivals())


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate_per_s": 0.0},
        {"rate_per_s": math.inf},
        {"duration_s": -1.0},
        {"n_passages": ()},
        {"n_passages": (0,)},
        {"per_request": 0},
        {"exponent": -1.0},
    ],
    ids=str,
)
def test_traffic_that_can_not_be_is_refused(wrong: dict[str, object]) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidInputError):
        Traffic(**{"rate_per_s": 1.0, "duration_s": 1.0, "n_passages": (1,), **wrong})  # type: ignore[arg-type]
