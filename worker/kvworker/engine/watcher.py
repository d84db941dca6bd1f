"""What the rows of a text ask for and attend to, layer by layer, as a pass over all of them goes by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from kvstore.core.identity import KVLayout
from kvworker.chunk import KVChunk
from kvworker.engine.asked import asked_of
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
        self._q_square[layer] = asked_of(queries, group).cpu()
        self._probes[layer] = unplaced(queries[:, -N_PROBES:], group.rope, max(queries.shape[1] - N_PROBES, 0)).cpu()
        self._mass[layer], self._mass_square[layer] = weights.sum(0).cpu(), weights.square().sum(0).cpu()

    def study(self, keys: Mapping[int, torch.Tensor], values: Sequence[torch.Tensor]) -> Study:
        """Return all of it with K before RoPE (H, T, D) by layer and V (L, H, T, Dv) by group, copied."""
        pairs = zip(self._layout.groups, values, strict=True)
        kv = tuple(KVChunk(torch.stack([keys[layer] for layer in group.layers]), v.clone()) for group, v in pairs)
        return Study(kv, self._q_square, self._mass, self._mass_square, self._probes)
