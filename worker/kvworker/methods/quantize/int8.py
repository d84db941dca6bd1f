"""Int8 codes with one scale per token and head: near-lossless, and the baseline of the other quantizers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvkernels import int8, int8_compiled, place
from kvstore.core.stages import Traits
from kvworker.chunk import DTYPES, ChunkSpec, KVChunk
from kvworker.codec.stages import Compiled, Fields, Layout, Placing


@dataclass(frozen=True)
class Int8(Compiled, Placing):
    """Round each token's vector of one head to int8 with its own scale.

    The error of one element is at most max|x| / 254 over its vector, before the cast back to the model dtype. A value takes
    8 + 32 / D bits.

    Paper: none; symmetric rounding.
    """

    name: ClassVar[str] = "int8"
    traits: ClassVar[Traits] = Traits(is_token_granular=True)

    def layout(self, spec: ChunkSpec) -> Layout:
        """Return codes (L, H, T, D) int8 and scale (L, H, T, 1) float32, for k and for v."""
        rows = (spec.n_layers, spec.kv_heads, spec.n_tokens)
        fields: dict[str, tuple[str, tuple[int, ...]]] = {}
        for side, dim in (("k", spec.k_dim), ("v", spec.v_dim)):
            fields[f"{side}.codes"] = ("int8", (*rows, dim))
            fields[f"{side}.scale"] = ("float32", (*rows, 1))
        return fields

    def encode(self, chunk: KVChunk, spec: ChunkSpec) -> Fields:
        """Return codes and scales of k and of v."""
        fields: Fields = {}
        for side, x in (("k", chunk.k), ("v", chunk.v)):
            fields[f"{side}.codes"], fields[f"{side}.scale"] = int8.encode(x)
        return fields

    def decode(self, fields: Fields, spec: ChunkSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Return k and v, code times scale rounded to the model's dtype."""
        k, v = ((fields[f"{side}.codes"], fields[f"{side}.scale"]) for side in "kv")
        return int8.decode_both(k, v, DTYPES[spec.dtype])

    def place(
        self, fields: Fields, spec: ChunkSpec, side: str, turn: place.Turn | None, rows: torch.Tensor, cache: torch.Tensor
    ) -> None:  # fmt: skip
        """Write code times scale, K turned, to rows of a cache."""
        codes, scale = (fields[f"{side}.{name}"].flatten(0, 1) for name in ("codes", "scale"))
        place.write_int8(codes, scale, turn, rows, cache.view(-1, *cache.shape[2:]))

    def compile(self, spec: ChunkSpec) -> None:
        """Compile for heads of both widths."""
        int8_compiled.prepare(spec.k_dim, spec.v_dim, DTYPES[spec.dtype])
