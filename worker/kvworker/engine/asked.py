"""What queries ask of keys: how much an error of each channel of K matters to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvstore.core.identity import LayerGroup
from kvworker.engine.engine import N_PROBES

Span = tuple[int, int]
"""The first row of a passage and the row behind its last."""


def last_rows(spans: Sequence[Span]) -> list[list[int]]:
    """Return the last rows of each passage, at most N_PROBES: those whose queries are observed."""
    return [list(range(max(start, stop - N_PROBES), stop)) for start, stop in spans]


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
