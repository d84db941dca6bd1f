"""Decisions about where records go: functions of what the tiers are."""

from __future__ import annotations

import pytest

from kvstore.core.errors import CapacityError, UnsupportedError
from kvstore.store.decide import Placement, explain_miss, place_promotion, place_put, search_order
from kvstore.store.tier import TierInfo

MEMORY = TierInfo("memory", 100)
DISK = TierInfo("disk", 1000, is_durable=True)
REDIS = TierInfo("redis", 0, is_remote=True)
ALL = (MEMORY, DISK, REDIS)


@pytest.mark.parametrize(
    ("nbytes", "held", "durable", "expected"),
    [
        (50, (), False, Placement(None, (0, 1, 2), (0, 1, 2))),
        (50, (), True, Placement(1, (0, 1), (0, 2))),
        (500, (), False, Placement(None, (1, 2), (1, 2))),
        (50, (0,), False, Placement(None, (), ())),
        (50, (0,), True, Placement(1, (), ())),
        (50, (0, 1), True, Placement(None, (), ())),
    ],
)
def test_a_put_goes_where_it_fits_and_is_not_yet(nbytes: int, held: tuple[int, ...], durable: bool, expected: Placement) -> None:
    """Must, may and later, for a new chunk and for one that is there."""
    assert place_put(ALL, nbytes, held, durable) == expected


def test_a_record_that_no_local_tier_can_take_is_refused() -> None:
    """A remote tier alone may lose it at any moment."""
    with pytest.raises(CapacityError, match=r"2000 B .* the largest has 1000 B"):
        place_put(ALL, 2000)


def test_durability_needs_a_tier_that_has_it() -> None:
    """None at all, or none that is large enough: two different things to change."""
    with pytest.raises(UnsupportedError, match="add a disk tier"):
        place_put((MEMORY, REDIS), 50, durable=True)
    with pytest.raises(CapacityError):
        place_put((TierInfo("memory", 10_000), DISK), 5000, durable=True)


def test_promotion_goes_to_the_fastest_tier_above_that_fits() -> None:
    """Never to where it was found, never to a remote tier."""
    assert [place_promotion(ALL, 50, at) for at in (0, 1, 2)] == [None, 0, 0]
    assert [place_promotion(ALL, 500, at) for at in (0, 1, 2)] == [None, None, 1]
    assert place_promotion((REDIS, DISK), 50, 1) is None


def test_remote_tiers_are_asked_whatever_is_known() -> None:
    """Another server may have written there since."""
    assert [search_order(ALL, held) for held in ((), (1,), (0, 1, 2))] == [[2], [1, 2], [0, 1, 2]]


def test_what_went_wrong_on_the_way_explains_a_miss_before_what_is_remembered() -> None:
    """A chunk that may be there behind a dead tier was not just never stored."""
    assert explain_miss([], "evicted") == "evicted"
    assert explain_miss(["unavailable", "timeout"], "never_stored") == "timeout"
    assert explain_miss(["timeout", "corrupt"], "evicted") == "corrupt"
