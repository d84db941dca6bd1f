"""What queries ask of keys: how much an error of each channel of K matters to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from kvstore.core.identity import LayerGroup

Span = tuple[int, int]
"""The first row of a passage and the row behind its last."""
Asked = torch.Tensor | None
"""What the rows of a passage ask for (L, H, D) float32, if they were observed; see `KVChunk.asked`."""


def last_rows(spans: Sequence[Span], n_observed: int) -> list[range]:
    """Return the last rows of each passage, at most `n_observed`."""
    return [range(max(start, stop - n_observed), stop) for start, stop in spans]


def asked_each(queries: Mapping[int, torch.Tensor], group: LayerGroup, observed: Sequence[Sequence[int]]) -> list[Asked]:
    """Return what the rows of each passage ask for, of the queries (Q, S, D) of all of them by layer; None where nothing was observed."""
    if not queries:
        return [None for _ in observed]
    of_group = torch.stack([queries[layer] for layer in group.layers])
    return [asked_of(own, group) for own in torch.split(of_group, [len(rows) for rows in observed], 2)]


def asked_of(queries: torch.Tensor, group: LayerGroup) -> torch.Tensor:
    """Return the mean squares (..., H, D) float32 of queries (..., Q, S, D), before RoPE or after it.

    They are means over rows, over the query heads that read a KV head, and over both channels of a rotated pair (i, i + rotary_dim / 2):
    turning a pair leaves the sum of its squares as it is.
    """
    by_head = queries.float().square().mean(-2)
    squares = by_head.view(*by_head.shape[:-2], group.kv_heads, -1, by_head.shape[-1]).mean(-2)
    if group.rope is None:
        return squares
    turned, fixed = squares[..., : group.rope.rotary_dim], squares[..., group.rope.rotary_dim :]
    halves = turned.reshape(*turned.shape[:-1], 2, -1).mean(-2)
    return torch.cat((halves, halves, fixed), -1)
