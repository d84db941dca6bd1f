"""Float4 codes (E2M1) with a float8 step for every 16 channels: what GPUs with float4 units read as it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvkernels import fp4, nvfp4
from kvstore.core.stages import Traits
from kvworker.chunk import DTYPES, ChunkSpec, KVChunk
from kvworker.codec.stages import Fields, Layout, Quantizer


@dataclass(frozen=True)
class Nvfp4(Quantizer):
    """Round blocks of 16 channels of a token to E2M1 with a step in E4M3, and those with a power-of-two scale per head.

    The error of one element is at most a sixth of its block's largest, 5/24 where a step was rounded down, before the cast back. A
    value takes 4.5 bits.

    Paper: none; NVIDIA's format, with a scale per head instead of one per tensor.
    """

    name: ClassVar[str] = "nvfp4"
    traits: ClassVar[Traits] = Traits()

    def layout(self, spec: ChunkSpec) -> Layout:
        """Return codes and steps uint8, scale (L, H) float32, for k and for v."""
        fields: dict[str, tuple[str, tuple[int, ...]]] = {}
        for side, dim in (("k", spec.k_dim), ("v", spec.v_dim)):
            codes, steps = fp4.stored_shapes((spec.n_layers, spec.kv_heads, spec.n_tokens, dim), nvfp4.BLOCK)
            fields[f"{side}.codes"], fields[f"{side}.steps"] = ("uint8", codes), ("uint8", steps)
            fields[f"{side}.scale"] = ("float32", (spec.n_layers, spec.kv_heads))
        return fields

    def encode(self, chunk: KVChunk, spec: ChunkSpec) -> Fields:
        """Return codes, steps and scales of k and of v."""
        fields: Fields = {}
        for side, x in (("k", chunk.k), ("v", chunk.v)):
            parts = nvfp4.encode(x)
            fields |= {f"{side}.{name}": part for name, part in zip(("codes", "steps", "scale"), parts, strict=True)}
        return fields

    def decode(self, fields: Fields, spec: ChunkSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Return k and v rounded to the model's dtype."""
        k, v = (
            nvfp4.decode(fields[f"{side}.codes"], fields[f"{side}.steps"], fields[f"{side}.scale"], dim, DTYPES[spec.dtype])
            for side, dim in (("k", spec.k_dim), ("v", spec.v_dim))
        )
        return k, v
