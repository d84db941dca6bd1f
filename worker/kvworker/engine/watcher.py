"""What the rows of a text ask for and attend to, layer by layer, as a pass over all of them goes by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from kvstore.core.identity import KVLayout, LayerGroup
from kvworker.chunk import KVChunk
from kvworker.engine.engine import N_PROBES, Study
from kvworker.engine.rope import unplaced


class Watcher:
    """Sums up what an observer of attention is told; nothing that it keeps grows with the square of the text."""

    def __init__(self, layout: KVLayout) -> None:
        self._layout = layout
        self._groups = {layer: group for group in layout.groups for layer in group.layers}
        self._q_square: dict[int, torch.Tensor] = {}
        self._mass: dict[int, torch.Tensor] = {}
        self._mass_square: dict[int, torch.Tensor] = {}
        self._probes: dict[int, torch.Tensor] = {}

    def observe(self, layer: int, queries: torch.Tensor, weights: torch.Tensor) -> None:
        """Take in one layer: queries (Q, T, D) after RoPE, scaled, and attention (T, T). Layers that read another's KV are left out."""
        if layer not in self._groups:
            return
        group = self._groups[layer]
        squares = queries.float().square().mean(1).view(group.kv_heads, -1, queries.shape[2]).mean(1)  # (H, D)
        self._q_square[layer] = _over_pairs(squares, group).cpu()
        self._probes[layer] = unplaced(queries[:, -N_PROBES:], group.rope, max(queries.shape[1] - N_PROBES, 0)).cpu()
        self._mass[layer], self._mass_square[layer] = weights.sum(0).cpu(), weights.square().sum(0).cpu()

    def study(self, keys: Mapping[int, torch.Tensor], values: Sequence[torch.Tensor]) -> Study:
        """Return all of it with K before RoPE (H, T, D) by layer and V (L, H, T, Dv) by group, copied."""
        pairs = zip(self._layout.groups, values, strict=True)
        kv = tuple(KVChunk(torch.stack([keys[layer] for layer in group.layers]), v.clone()) for group, v in pairs)
        return Study(kv, self._q_square, self._mass, self._mass_square, self._probes)


def _over_pairs(squares: torch.Tensor, group: LayerGroup) -> torch.Tensor:
    """Return squares (H, D) with both channels of each rotated pair (i, i + rotary_dim / 2) set to their mean."""
    if group.rope is None:
        return squares
    turned, fixed = squares[:, : group.rope.rotary_dim], squares[:, group.rope.rotary_dim :]
    halves = turned.reshape(len(turned), 2, -1).mean(1, keepdim=True).expand(-1, 2, -1)
    return torch.cat((halves.flatten(1), fixed), 1)
