"""Float8 codes (E4M3): as small as int8 and less exact, but lossless for a cache that is float8 itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvkernels import fp8, place
from kvstore.core.stages import Traits
from kvworker.chunk import DTYPES, ChunkSpec, KVChunk
from kvworker.codec.stages import Fields, Layout, Placing


@dataclass(frozen=True)
class Fp8(Placing):
    """Round to E4M3 with one power-of-two scale per head of each layer.

    The error of one element is at most a sixteenth of itself, or 2**-10 scales if that is more, before the cast back to the model dtype.
    Values that a float8 (E4M3) cache with power-of-two scales holds come back bit for bit. A value takes 8 bits.

    Paper: FP8 Formats for Deep Learning (arXiv 2209.05433); the scale per head is common practice.
    """

    name: ClassVar[str] = "fp8"
    traits: ClassVar[Traits] = Traits()

    def layout(self, spec: ChunkSpec) -> Layout:
        """Return codes (L, H, T, D), E4M3 as uint8, and scale (L, H) float32, for k and for v."""
        fields: dict[str, tuple[str, tuple[int, ...]]] = {}
        for side, dim in (("k", spec.k_dim), ("v", spec.v_dim)):
            fields[f"{side}.codes"] = ("uint8", (spec.n_layers, spec.kv_heads, spec.n_tokens, dim))
            fields[f"{side}.scale"] = ("float32", (spec.n_layers, spec.kv_heads))
        return fields

    def encode(self, chunk: KVChunk, spec: ChunkSpec) -> Fields:
        """Return codes and scales of k and of v."""
        fields: Fields = {}
        for side, x in (("k", chunk.k), ("v", chunk.v)):
            fields[f"{side}.codes"], fields[f"{side}.scale"] = fp8.encode(x)
        return fields

    def decode(self, fields: Fields, spec: ChunkSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Return k and v, code times scale rounded to the model's dtype."""
        dtype = DTYPES[spec.dtype]
        k, v = (fp8.decode(fields[f"{side}.codes"], fields[f"{side}.scale"], dtype) for side in "kv")
        return k, v

    def place(
        self, fields: Fields, spec: ChunkSpec, side: str, turn: place.Turn | None, rows: torch.Tensor, cache: torch.Tensor
    ) -> None:  # fmt: skip
        """Write code times scale, K turned, to rows of a cache."""
        codes, scale = (fields[f"{side}.{name}"].flatten(0, 1) for name in ("codes", "scale"))
        place.write_fp8(codes, scale, turn, rows, cache.view(-1, *cache.shape[2:]))
