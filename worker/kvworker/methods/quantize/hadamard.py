"""Asymmetric codes per token and head in a rotated basis: large channels are spread over all, so no calibration is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvkernels import hadamard
from kvstore.core.errors import InvalidInputError
from kvstore.core.stages import Traits
from kvworker.chunk import DTYPES, ChunkSpec, KVChunk
from kvworker.codec.stages import Fields, Layout, Quantizer


@dataclass(frozen=True)
class Hadamard(Quantizer):
    """Rotate each token's vector of one head by a Hadamard matrix and round it between its smallest and largest coordinate.

    A rotation keeps lengths, so a vector of D channels is off by at most sqrt(D) / 2 steps in norm. A value of 16 bits takes
    bits + 32 / D bits where D is a power of two; other heads are cut into blocks that are.

    Paper: QuaRot (arXiv 2404.00456), whose cache is this after RoPE.

    Parameters
    ----------
    bits : int
        2, 3 or 4.
    """

    name: ClassVar[str] = "hadamard"
    traits: ClassVar[Traits] = Traits(is_token_granular=True)
    bits: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in hadamard.BITS:
            raise InvalidInputError(f"hadamard: bits {self.bits}; choose bits in {hadamard.BITS}")

    def layout(self, spec: ChunkSpec) -> Layout:
        """Return codes uint8 (L, H, T, bytes), scale and zero (L, H, T, blocks) in the model's dtype, for k and for v."""
        fields: dict[str, tuple[str, tuple[int, ...]]] = {}
        for side, dim in (("k", spec.k_dim), ("v", spec.v_dim)):
            codes, parameters = hadamard.stored_shapes((spec.n_layers, spec.kv_heads, spec.n_tokens, dim), self.bits)
            fields[f"{side}.codes"] = ("uint8", codes)
            fields[f"{side}.scale"] = fields[f"{side}.zero"] = (spec.dtype, parameters)
        return fields

    def encode(self, chunk: KVChunk, spec: ChunkSpec) -> Fields:
        """Return codes, scales and zeros of k and of v."""
        fields: Fields = {}
        for side, x in (("k", chunk.k), ("v", chunk.v)):
            parts = hadamard.encode(x, self.bits)
            fields |= {f"{side}.{name}": part for name, part in zip(("codes", "scale", "zero"), parts, strict=True)}
        return fields

    def decode(self, fields: Fields, spec: ChunkSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Return k and v, rotated back and rounded to the model's dtype."""
        k, v = (self._decode_side(fields, spec, side, dim) for side, dim in (("k", spec.k_dim), ("v", spec.v_dim)))
        return k, v

    def _decode_side(self, fields: Fields, spec: ChunkSpec, side: str, dim: int) -> torch.Tensor:
        """Return k or v."""
        codes, scale, zero = (fields[f"{side}.{name}"] for name in ("codes", "scale", "zero"))
        return hadamard.decode(codes, scale, zero, dim, self.bits, DTYPES[spec.dtype])
