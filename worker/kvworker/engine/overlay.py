"""The private KV cache of one request: stored rows are copied in, computed rows overwrite theirs, nothing is written back."""

from __future__ import annotations

import torch

from kvstore.core.identity import KVLayout, LayerGroup
from kvworker.engine.rope import Rows


class Overlay:
    """K and V of all layers, preallocated for prompt and answer.

    Sliding layers hold all rows too; the window is the attention's business. Attention modules call `update`, the one method of a cache
    that they use.
    """

    def __init__(self, layout: KVLayout, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        self._rows: Rows = slice(0, 0)
        self._n_tokens = 0
        self._k = [_empty(group, group.k_dim, capacity, dtype, device) for group in layout.groups]
        self._v = [_empty(group, group.v_dim, capacity, dtype, device) for group in layout.groups]
        self._layers = {
            layer: (self._k[g][i : i + 1], self._v[g][i : i + 1])
            for g, group in enumerate(layout.groups)
            for i, layer in enumerate(group.layers)
        }

    def begin(self, rows: Rows, n_tokens: int) -> None:
        """Let `update` write to `rows` of a sequence of n_tokens tokens."""
        self._rows, self._n_tokens = rows, n_tokens

    def group(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return K after RoPE and V of one layer group, (L, H, capacity, D): views to write stored rows to."""
        return self._k[index], self._v[index]

    def layer(self, index: int, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a copy of K after RoPE and V of some rows of one layer, (H, S, D)."""
        k, v = (x[0, :, rows].clone() for x in self._layers[index])
        return k, v

    def update(self, k: torch.Tensor, v: torch.Tensor, layer_idx: int, *_: object, **__: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Write k and v (1, H, S, D) of the pass's rows and return K and V of the whole sequence, (1, H, T, D)."""
        keys, values = self._layers[layer_idx]
        if isinstance(self._rows, slice):
            keys[:, :, self._rows] = k
            values[:, :, self._rows] = v
        else:
            keys.index_copy_(2, self._rows, k)
            values.index_copy_(2, self._rows, v)
        return keys[:, :, : self._n_tokens], values[:, :, : self._n_tokens]


def _empty(group: LayerGroup, head_dim: int, capacity: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.empty(len(group.layers), group.kv_heads, capacity, head_dim, dtype=dtype, device=device)
