"""Whether a chunk is written with byte stages or without: by the seconds until it is there when it is read again.

A chunk has one form in all tiers, since nothing that is stored is encoded again. Unpacking takes as long wherever the bytes come from, and
what packing saves is the way: over one link, without a fixed cost, packing to 1 / r pays below

    (1 - 1/r) * decode speed                  in bytes of the unpacked chunk per second

which is slower than shared memory and a local network, so by this rule byte stages are for remote tiers and slow links. Where both forms of
a content are stored, planners weigh them with the same costs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from kvstore.planners.cost import CostModel


class Sized(NamedTuple):
    """A form of a chunk: the label of its codec, and its bytes."""

    codec: str
    nbytes: float


def packing_pays(costs: CostModel, packed: Sized, plain: Sized, unread: Collection[str] = ()) -> bool:
    """Tell whether a chunk is there sooner packed, over all tiers but `unread`, each counted as often as it was read.

    Tiers and codecs that were never measured count for nothing. Where that leaves none, a chunk is packed: smaller is what was asked for.
    """
    weighed = [
        n_reads * (whole_s - packed_s)
        for tier, n_reads in costs.reads.items()
        if tier not in unread
        and (packed_s := _load_s(costs, tier, packed)) is not None
        and (whole_s := _load_s(costs, tier, plain)) is not None
    ]
    return not weighed or sum(weighed) > 0


def _load_s(costs: CostModel, tier: str, form: Sized) -> float | None:
    """Return the seconds of reading and decoding; None where they were never measured."""
    rates = costs.load_rates(tier, form.codec)
    return None if rates is None else rates.read_s + rates.land_s + (rates.read_byte_s + rates.land_byte_s) * form.nbytes
