"""The private KV cache of one request: stored rows are copied in, computed rows overwrite theirs, nothing is written back."""

from __future__ import annotations

import torch

from kvstore.core.identity import KVLayout, LayerGroup

Rows = slice | torch.Tensor
"""Rows of a prompt: a slice where they are consecutive, else int64 indices (S,)."""


class Overlay:
    """K and V of all layers, preallocated for prompt and answer.

    Sliding layers hold all rows too; the window is in the mask, or in what `update` returns when a single row asks. Attention modules
    call `update`, the one method of a cache that they use.
    """

    def __init__(self, layout: KVLayout, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        self._rows: Rows = slice(0, 0)
        self._n_tokens = 0
        self._k = [_empty(group, group.k_dim, capacity, dtype, device) for group in layout.groups]
        self._v = [_empty(group, group.v_dim, capacity, dtype, device) for group in layout.groups]
        self._layers = {
            layer: (self._k[g][i : i + 1], self._v[g][i : i + 1], group.window)
            for g, group in enumerate(layout.groups)
            for i, layer in enumerate(group.layers)
        }

    def begin(self, rows: Rows, n_tokens: int) -> None:
        """Start a pass that computes `rows` of a sequence of n_tokens tokens."""
        self._rows, self._n_tokens = rows, n_tokens

    def group(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return K after RoPE and V of one layer group, (L, H, capacity, D): views to write stored rows to."""
        return self._k[index], self._v[index]

    def update(self, k: torch.Tensor, v: torch.Tensor, layer_idx: int, *_: object, **__: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Write k and v (1, H, S, D) of the pass's rows and return all rows that the pass may attend to.

        A pass of one row gets, on a sliding layer, just the keys inside its window, so that it needs no mask.
        """
        keys, values, window = self._layers[layer_idx]
        if isinstance(self._rows, slice):
            keys[:, :, self._rows] = k
            values[:, :, self._rows] = v
        else:
            keys.index_copy_(2, self._rows, k)
            values.index_copy_(2, self._rows, v)
        first = max(0, self._n_tokens - window) if window and k.shape[2] == 1 else 0
        return keys[:, :, first : self._n_tokens], values[:, :, first : self._n_tokens]


def _empty(group: LayerGroup, head_dim: int, capacity: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.empty(len(group.layers), group.kv_heads, capacity, head_dim, dtype=dtype, device=device)


def position_mask(rows: torch.Tensor, n_tokens: int, window: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the additive mask (1, 1, S, T): 0 where the key's position is at most the row's and inside its window, else lowest.

    Rows may be any ascending positions; a mask aligned to the bottom right would let scattered rows see their future.
    """
    keys = torch.arange(n_tokens, device=rows.device)
    hidden = keys > rows[:, None]
    if window:
        hidden |= keys <= rows[:, None] - window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=rows.device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min)[None, None]
