"""All layers of a passage side by side, as one layer with one head: what a quantizer that mixes layers takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from kvstore.core.stages import Traits
from kvworker.chunk import ChunkSpec, KVChunk
from kvworker.codec.stages import Crossing, Fields, Layout


@dataclass(frozen=True)
class Cross(Crossing):
    """Lay the channels of all heads of all layers beside each other, layers ascending, heads within; no value changes.

    K and V of one token are alike from layer to layer, which `pca:over=model` makes use of. The price: no layer group can be decoded before
    all bytes are there, and heads cannot be split over workers.

    Paper: KVTC (ICLR 2026, arXiv 2511.01815).
    """

    name: ClassVar[str] = "cross"
    traits: ClassVar[Traits] = Traits(is_bit_exact=True, is_tp_splittable=False, is_token_granular=True)

    def inner(self, specs: Sequence[ChunkSpec]) -> ChunkSpec:
        """Return one layer with one head as wide as all."""
        k_dim, v_dim = (sum(_widths(specs, side)) for side in "kv")
        layers = tuple(sorted(layer for spec in specs for layer in spec.layers))
        return ChunkSpec(1, 1, specs[0].n_tokens, k_dim, v_dim, specs[0].dtype, layers)

    def layout(self, specs: Sequence[ChunkSpec]) -> Layout:
        """Return nothing: all of it goes on."""
        return {}

    def apply(self, chunks: Sequence[KVChunk], specs: Sequence[ChunkSpec]) -> tuple[KVChunk, Fields]:
        """Return K (1, 1, T, channels) and V."""
        rows = [(chunks[group].k[n], chunks[group].v[n]) for group, n in _places(specs)]
        k, v = (torch.cat([x.transpose(0, 1).flatten(1) for x in side], 1)[None, None] for side in zip(*rows, strict=True))
        return KVChunk(k, v), {}

    def restore(self, chunk: KVChunk, fields: Fields, specs: Sequence[ChunkSpec]) -> list[KVChunk]:
        """Return the chunks of the groups."""
        k, v = (_cut(x[0, 0], specs, side) for side, x in (("k", chunk.k), ("v", chunk.v)))
        return [KVChunk(*pair) for pair in zip(k, v, strict=True)]


def _places(specs: Sequence[ChunkSpec]) -> list[tuple[int, int]]:
    """Return group and index within it of every layer, by ascending model layer."""
    named = [(layer, group, n) for group, spec in enumerate(specs) for n, layer in enumerate(spec.layers)]
    return [(group, n) for _, group, n in sorted(named)]


def _widths(specs: Sequence[ChunkSpec], side: str) -> list[int]:
    """Return the channels of every layer, by ascending model layer."""
    return [specs[group].kv_heads * (specs[group].k_dim if side == "k" else specs[group].v_dim) for group, _ in _places(specs)]


def _cut(x: torch.Tensor, specs: Sequence[ChunkSpec], side: str) -> list[torch.Tensor]:
    """Return (L, H, T, D) of every group from (T, channels)."""
    by_place = dict(zip(_places(specs), torch.split(x, _widths(specs, side), 1), strict=True))
    groups = [torch.stack([by_place[group, n] for n in range(spec.n_layers)]) for group, spec in enumerate(specs)]
    return [torch.unflatten(wide, 2, (spec.kv_heads, -1)).transpose(1, 2) for wide, spec in zip(groups, specs, strict=True)]
