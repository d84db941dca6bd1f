"""Lossless planes: exponents, which an entropy coder shrinks, apart from the bits that it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvkernels import exponent_split
from kvstore.core.stages import Traits
from kvworker.chunk import DTYPES, ChunkSpec, KVChunk
from kvworker.codec.stages import Fields, Layout, Quantizer


@dataclass(frozen=True)
class ExponentSplit(Quantizer):
    """Split each value into 8 exponent bits and the rest; every bit pattern comes back, NaN payloads included.

    It saves nothing by itself: a byte stage behind it packs the exponents, of which few are common.

    Paper: SplitZip (arXiv 2605.01708) for the split; an entropy coder takes the place of its fixed table of exponents.
    """

    name: ClassVar[str] = "exponent_split"
    traits: ClassVar[Traits] = Traits(is_bit_exact=True, is_token_granular=True)

    def layout(self, spec: ChunkSpec) -> Layout:
        """Return exponent (L, H, T, D) and rest (itemsize - 1, L, H, T, D), both uint8, for k and for v."""
        planes = DTYPES[spec.dtype].itemsize - 1
        fields: dict[str, tuple[str, tuple[int, ...]]] = {}
        for side, dim in (("k", spec.k_dim), ("v", spec.v_dim)):
            shape = (spec.n_layers, spec.kv_heads, spec.n_tokens, dim)
            fields[f"{side}.exponent"] = ("uint8", shape)
            fields[f"{side}.rest"] = ("uint8", (planes, *shape))
        return fields

    def encode(self, chunk: KVChunk, spec: ChunkSpec) -> Fields:
        """Return the planes of k and of v."""
        fields: Fields = {}
        for side, x in (("k", chunk.k), ("v", chunk.v)):
            fields[f"{side}.exponent"], fields[f"{side}.rest"] = exponent_split.encode(x)
        return fields

    def decode(self, fields: Fields, spec: ChunkSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Return k and v, bit for bit."""
        dtype = DTYPES[spec.dtype]
        k, v = (exponent_split.decode(fields[f"{side}.exponent"], fields[f"{side}.rest"], dtype) for side in "kv")
        return k, v
