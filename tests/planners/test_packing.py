"""Byte stages by the planner's costs: over which links they pay, and that reader and writer agree on it."""

from __future__ import annotations

import pytest

from kvstore.planners.cost import CostModel
from kvstore.planners.linear import LinearCost
from kvstore.planners.min_cost import MinCost
from kvstore.planners.packing import Sized, packing_pays
from kvstore.planners.plan import Load, Offer, PassageAsk, Request
from kvstore.planners.samples import PREFILL, SPLICE, codec_subject, tier_subject

NBYTES = 64 << 20
MEASURED = {
    "bf16 in planes, zstd 1": (1.440, 2.8e9, 0.86e9),
    "bf16 as is, zstd 1": (1.257, 1.31e9, 0.27e9),
    "int4, zstd 1": (1.104, 1.40e9, 0.13e9),
    "int2, zstd 1": (1.372, 1.77e9, 0.48e9),
}
"""Ratio and unpacking speed as measured on one core, and the speed of the link (1 - 1/r) * speed below which packing pays, in B/s."""
each_measured = pytest.mark.parametrize(("ratio", "unpacked_per_s", "break_even"), MEASURED.values(), ids=MEASURED)


def costs(ratio: float, unpacked_per_s: float, reads: dict[str, tuple[float, int]]) -> CostModel:
    """Return costs of tiers by name, each a link in B/s and how often it was read; the plain form decodes at no cost."""
    links = {tier_subject(tier): LinearCost((0.0, 1 / speed), 0.0, n_reads) for tier, (speed, n_reads) in reads.items()}
    decodes = {"plain": 0.0, "packed": ratio / unpacked_per_s}  # a stored byte is `ratio` bytes unpacked
    codecs = {codec_subject(codec): LinearCost((0.0, byte_s), 0.0, 9) for codec, byte_s in decodes.items()}
    return CostModel({**links, **codecs, SPLICE: LinearCost((0.0, 0.0), 0.0, 9), PREFILL: LinearCost((0.0, 1.0, 0.0), 0.0, 9)})


def is_written_packed(ratio: float, known: CostModel) -> bool:
    """Ask the writer's rule."""
    return packing_pays(known, Sized("packed", NBYTES / ratio), Sized("plain", NBYTES))


def loaded(ratio: float, known: CostModel, tier: str = "link") -> str:
    """Return the form that a planner loads where the store has both."""
    offers = [Offer(tier, NBYTES, b"\1" * 32, "plain"), Offer(tier, int(NBYTES / ratio), b"\2" * 32, "packed")]
    (item,) = MinCost().plan(Request((PassageAsk(0, 512, 0),), 8), {0: offers}, known).items
    assert isinstance(item, Load)
    return item.offer.codec


@each_measured
def test_packing_pays_below_the_break_even_of_the_link(ratio: float, unpacked_per_s: float, break_even: float) -> None:
    for share, is_packed in ((0.97, True), (1.03, False)):
        known = costs(ratio, unpacked_per_s, {"link": (share * break_even, 5)})
        assert is_written_packed(ratio, known) is is_packed


@each_measured
def test_a_planner_that_has_both_forms_takes_the_packed_one_over_slow_links_only(
    ratio: float, unpacked_per_s: float, break_even: float
) -> None:
    for share, codec in ((0.97, "packed"), (1.03, "plain")):
        assert loaded(ratio, costs(ratio, unpacked_per_s, {"link": (share * break_even, 5)})) == codec


@pytest.mark.parametrize(
    ("tier", "speed", "codec"), [("shared memory", 10e9, "plain"), ("10 Gb/s", 1.2e9, "plain"), ("1 Gb/s", 0.12e9, "packed")]
)
def test_lossless_is_for_slow_links_and_never_for_shared_memory_or_a_fast_network(tier: str, speed: float, codec: str) -> None:
    ratio, unpacked_per_s, _ = MEASURED["bf16 in planes, zstd 1"]
    known = costs(ratio, unpacked_per_s, {tier: (speed, 5)})
    assert loaded(ratio, known, tier) == codec
    assert is_written_packed(ratio, known) is (codec == "packed")


@pytest.mark.parametrize(("n_remote", "is_packed"), [(1, False), (50, True)])
def test_a_chunk_is_packed_for_the_tiers_that_reads_come_from(n_remote: int, is_packed: bool) -> None:
    """A read over 0.1 GB/s wins 181 ms by packing, one from memory loses 22 ms."""
    ratio, unpacked_per_s, _ = MEASURED["bf16 in planes, zstd 1"]
    known = costs(ratio, unpacked_per_s, {"memory": (10e9, 100), "redis": (0.1e9, n_remote)})
    assert is_written_packed(ratio, known) is is_packed


def test_tiers_that_hold_decoded_copies_do_not_count() -> None:
    known = costs(1.44, 2.8e9, {"device": (1e12, 1000), "redis": (0.1e9, 1)})
    forms = Sized("packed", NBYTES / 1.44), Sized("plain", NBYTES)
    assert not packing_pays(known, *forms)
    assert packing_pays(known, *forms, unread={"device"})


def test_what_nobody_measured_is_packed_as_was_asked_for() -> None:
    assert packing_pays(CostModel(), Sized("packed", 1.0), Sized("plain", 2.0))
    assert packing_pays(costs(1.1, 1e9, {"link": (1e12, 1)}), Sized("unknown", 1.0), Sized("plain", 2.0))


def test_reads_are_counted_by_tier() -> None:
    assert costs(1.1, 1e9, {"disk": (1e9, 3), "a b": (1e9, 4)}).reads == {"disk": 3, "a b": 4}
