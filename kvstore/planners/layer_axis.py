"""P5: compute the lower layers of a whole passage while the upper ones are loaded (CacheFlow, 2604.25080), or split it by tokens.

Layer m of a row needs its layers 0..m-1, so only this direction works. One layer of all tokens costs the same at every depth, where tokens
get dearer towards the end: layers win for short texts, whose computing hardly rises but where steps over few rows use the device badly;
tokens win for long ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from kvstore.planners.prefix_split import Split, split_prefix


class AxisSplit(NamedTuple):
    """The better of the two axes, and the split along it: `split.first_loaded` counts layers or chunks."""

    axis: Literal["layers", "tokens"]
    split: Split


def split_layers(compute_s: Sequence[float], load_s: Sequence[float]) -> Split:
    """Return the best split between layers that are computed for all tokens, from the lowest, and layers that are loaded.

    One cost per layer in both lists. The same crossing as of a prefix: layers take the place of chunks.
    """
    return split_prefix(compute_s, load_s)


def better_axis(tokens: Split, layers: Split) -> AxisSplit:
    """Return the axis that is done sooner; tokens when both are equal, because a split by tokens can be raced."""
    return AxisSplit("layers", layers) if layers.seconds < tokens.seconds else AxisSplit("tokens", tokens)
